"""The table of odd and bad pictures through train, embed and export: odd ones work, bad ones are named."""

import csv
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from commands import SMALL, loaded, run
from PIL import Image

from guie import embeddings
from guie.errors import UserError
from guie.images import decode


def drawing(seed, size=(48, 40)):
    """Return a smooth coloured picture, width and height in `size`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(picture):
    """Return the picture stored lying on its side, with the EXIF note to show it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def deep_grey(seed):
    ramp = np.random.default_rng(seed).integers(0, 65536, (40, 48)).astype(np.uint16)
    return encoded(Image.fromarray(ramp), "PNG")


def animation(seed):
    frames = [drawing(seed + i).quantize(64) for i in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def huge_header():
    """Return 74 bytes that claim 60000 x 60000 pixels: torchvision's decoder crashes on them."""
    body = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", body), (b"IDAT", zlib.compress(b"0123456789")), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content
        data += struct.pack(">I", zlib.crc32(kind + content))
    return data


GOOD = {
    "upright.png": lambda seed: encoded(drawing(seed), "PNG"),
    "turned.png": lambda seed: turned(drawing(seed)),
    "turned.jpg": lambda seed: encoded(drawing(seed), "JPEG", exif=b"Exif\0\0" + exif_bytes(6)),
    "deep_grey.png": deep_grey,
    "animation.gif": animation,
    "cmyk.jpg": lambda seed: encoded(drawing(seed).convert("CMYK"), "JPEG"),
    "palette.png": lambda seed: encoded(drawing(seed).quantize(32), "PNG"),
    "grey_alpha.png": lambda seed: encoded(drawing(seed).convert("LA"), "PNG"),
    "one_bit.png": lambda seed: encoded(drawing(seed).convert("1"), "PNG"),
}
BAD = {
    "truncated.jpg": (lambda: encoded(drawing(7, (200, 160)), "JPEG")[:1500], "truncated"),
    "empty.jpg": (lambda: b"", "zero bytes"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html>404</html>", "not a picture"),
    "huge.png": (huge_header, "60000 x 60000"),
}
POLICY = ["bad_images=skip", "max_bad_share=0.9"]


def exif_bytes(orientation):
    """Return a TIFF block with one entry, by hand."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder train/ and test/, two classes in each, every kind of picture in every class."""
    root = tmp_path_factory.mktemp("pictures")
    for number, folder in enumerate(["train/a", "train/b", "test/c", "test/d"]):
        place = root / folder
        place.mkdir(parents=True)
        for name, make in GOOD.items():
            (place / name).write_bytes(make(10 * number))
        for name, (make, _) in BAD.items():
            (place / name).write_bytes(make())
        (place / "gone.jpg").symlink_to("nowhere.jpg")
    return root


def arguments(pictures, *more):
    chosen = [f"{key}.folder.root={pictures}" for key in ("dataset", "eval_on")]
    return ["dataset=[folder]", "eval_on=[folder]", *chosen, *SMALL, "trainer.batch_size=8", *more]


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("odd") / "run", tmp_path_factory.mktemp("odd_data")
    assert run("train", *arguments(pictures, *POLICY, f"data_root={data}", f"run_dir={folder}")) == 0
    return folder


def listed(path):
    with path.open(newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("name", "classes"),
    [("bad_images_train.csv", ("train/a", "train/b")), ("bad_images.csv", ("test/c", "test/d"))],
)
def test_exactly_the_bad_pictures_are_listed_with_their_reasons(trained, name, classes):
    found = listed(trained / name)
    assert set(found) == {f"{place}/{bad}" for place in classes for bad in [*BAD, "gone.jpg"]}
    for place in classes:
        for bad, (_, reason) in BAD.items():
            assert reason in found[f"{place}/{bad}"]
        assert found[f"{place}/gone.jpg"]


def test_every_good_picture_has_an_embedding_and_no_bad_one(trained):
    found = embeddings.load(trained / "embeddings" / "folder")
    assert sorted(found.files) == sorted(f"test/{c}/{name}" for c in "cd" for name in GOOD)


def test_a_picture_turned_by_exif_has_the_embedding_of_the_upright_one(trained):
    found = embeddings.load(trained / "embeddings" / "folder")
    vectors = dict(zip(found.files, found.vectors, strict=True))
    assert np.array_equal(vectors["test/c/turned.png"], vectors["test/c/upright.png"])
    # The JPEG is the upright picture with a note that turns it: seen as another picture.
    assert np.abs(vectors["test/c/turned.jpg"] - vectors["test/c/upright.png"]).max() > 1e-3


def test_the_exported_file_agrees_on_every_odd_picture(trained, pictures, tmp_path):
    assert run("export", f"ckpt={trained}", f"pt={tmp_path / 'model.pt'}") == 0
    model = loaded(tmp_path / "model.pt")
    found = embeddings.load(trained / "embeddings" / "folder")
    for file, vector in zip(found.files, found.vectors, strict=True):
        pixels = torch.from_numpy(decode((pictures / file).read_bytes()).copy())
        given = model(pixels.permute(2, 0, 1)[None])[0].detach().numpy()
        assert np.abs(given - vector).max() < 1e-5, file


def test_above_the_default_share_the_run_stops_and_says_where_they_are_listed(pictures, tmp_path):
    with pytest.raises(UserError, match=r"^bad_images: .*bad_images\.csv.*at most 1\.0%") as caught:
        run("train", *arguments(pictures, f"data_root={tmp_path}", f"run_dir={tmp_path / 'run'}"))
    assert "\n" not in str(caught.value)
    assert listed(tmp_path / "run" / "bad_images.csv")


def test_with_policy_fail_the_first_bad_picture_ends_the_run(pictures, tmp_path):
    with pytest.raises(UserError, match=r"^bad_images: test/\S+ cannot be used \(.*'fail'") as caught:
        run(
            "train",
            *arguments(pictures, "bad_images=fail", f"data_root={tmp_path}", f"run_dir={tmp_path / 'r'}"),
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "choices",
    [["augment=crop_flip"], ["trainer=frozen", "augment=none"], ["trainer=frozen", "augment=warp"]],
    ids=["decoded anew", "cached features", "cached pixels and features"],
)
def test_other_ways_to_read_pictures_skip_the_same_ones(pictures, tmp_path, choices, monkeypatch):
    monkeypatch.setattr("guie.training.conclude", lambda job: None)
    monkeypatch.setattr("guie.bench.Bench.floors", lambda *_: {"none": {"merged": {"mP@5": 0.0}}})
    monkeypatch.setattr("guie.training._evaluated", lambda *_: {"mP@5": 0.0})
    places = [f"data_root={tmp_path}", f"run_dir={tmp_path / 'run'}"]
    assert run("train", *choices, *arguments(pictures, *POLICY, *places, "trainer.epochs=4")) == 0
    found = set(listed(tmp_path / "run" / "bad_images_train.csv"))
    assert found == {f"train/{c}/{bad}" for c in "ab" for bad in [*BAD, "gone.jpg"]}
