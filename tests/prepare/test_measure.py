import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from guie.images import BadImage
from guie.prepare.measure import measure, perceptual_hashes


def drawing(seed, size=(90, 70)):
    coarse = np.random.default_rng(seed).integers(0, 256, (15, 18, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(picture, kind="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def hash_of(data):
    hashes, structured = perceptual_hashes(measure(data).grey[None])
    assert structured[0]
    return int(hashes[0])


def plain_hash(grey):
    """The same 64 bits by the formula of the DCT-II, in loops."""
    found = []
    for v in range(1, 9):
        for u in range(1, 9):
            total = 0.0
            for y in range(32):
                for x in range(32):
                    total += (
                        float(grey[y, x])
                        * np.cos(np.pi * v * (2 * y + 1) / 64)
                        * np.cos(np.pi * u * (2 * x + 1) / 64)
                    )
            found.append(total)
    middle = np.median(found)
    return sum(1 << (63 - i) for i, value in enumerate(found) if value > middle)


def test_size_is_as_shown_and_the_hash_is_that_of_the_bytes():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(drawing(0), exif=exif)
    found = measure(data)
    assert (found.width, found.height) == (70, 90)
    assert found.sha256 == hashlib.sha256(data).digest()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_perceptual_hash_is_the_formula(seed):
    grey = measure(encoded(drawing(seed))).grey
    hashes, _ = perceptual_hashes(grey[None])
    assert int(hashes[0]) == plain_hash(grey)


def test_copies_share_the_perceptual_hash_and_others_do_not():
    picture = drawing(3, (640, 480))
    original = hash_of(encoded(picture, quality=95))
    for copy in (
        encoded(picture, quality=40),
        encoded(picture, "PNG"),
        encoded(picture.resize((200, 150)), quality=80),
        encoded(picture.point(lambda value: value * 0.8 + 20)),
    ):
        assert (original ^ hash_of(copy)).bit_count() <= 4
    others = [hash_of(encoded(drawing(seed, (640, 480)))) for seed in range(4, 24)]
    assert min((original ^ other).bit_count() for other in others) > 10


def test_a_plain_surface_has_no_perceptual_hash():
    greys = np.stack([measure(encoded(Image.new("RGB", (64, 64), (200, 10, 10)))).grey])
    hashes, structured = perceptual_hashes(greys)
    assert not structured[0] and hashes[0] == 0


@pytest.mark.parametrize("damage", [lambda data: data[:-200], lambda data: b"", lambda data: b"<html>"])
@pytest.mark.parametrize("size", [(90, 70), (1200, 900)])
def test_what_is_not_a_whole_picture_is_bad(damage, size):
    with pytest.raises(BadImage):
        measure(damage(encoded(drawing(0, size))))
