"""Pictures as bytes: one set of rules, whatever library wrote or would read them."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from guie import images
from guie.images import BadImage

RNG_SEED = 5
STORED = (30, 20)  # width, height


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(width: int = STORED[0], height: int = STORED[1]) -> np.ndarray:
    return np.random.default_rng(RNG_SEED).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(width: int, height: int) -> np.ndarray:
    """Shapes without detail finer than 16 pixels, so that scaled decoding has nothing to lose."""
    coarse = np.random.default_rng(RNG_SEED).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def with_orientation(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(Image.fromarray(noise()), kind, exif=exif, **options)


def png_header(width: int, height: int) -> bytes:
    """A whole but empty PNG: header, one empty data chunk, end."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_in_every_format(kind: str, orientation: int) -> None:
    data = with_orientation(kind, orientation)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    decoded = images.decode(data)
    np.testing.assert_array_equal(decoded, expected)
    header = images.read_header(data)
    assert (header.height, header.width) == decoded.shape[:2]


def test_ignoring_orientation_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_orientation("JPEG", 6)
    upright = images.decode(data)
    monkeypatch.setattr(images, "_upright", lambda pixels, orientation: pixels)
    assert images.decode(data).shape != upright.shape


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_outside_1_to_8_is_ignored(value: int) -> None:
    assert images.read_header(with_orientation("JPEG", value)).orientation == 1


def test_broken_exif_does_not_make_a_picture_bad() -> None:
    data = encoded(Image.fromarray(noise()), "JPEG", exif=b"Exif\0\0MM\0*garbage")
    assert images.decode(data).shape == (20, 30, 3)


JPEG = encoded(Image.fromarray(noise(64, 48)), "JPEG", quality=90)
PNG = encoded(Image.fromarray(noise(64, 48)), "PNG")
BAD = {
    "zero bytes": (b"", "empty: zero bytes"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "not a picture"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "a JPEG without its last 20 bytes": (JPEG[:-20], "truncated"),
    "half a JPEG with an end marker": (JPEG[: len(JPEG) // 2] + b"\xff\xd9", "truncated"),
    "a JPEG header only": (JPEG[:30], "truncated"),
    "two bytes of a JPEG": (JPEG[:2], "truncated"),
    "a JPEG of zeros": (b"\xff\xd8" + bytes(50), "no marker"),
    "half a PNG": (PNG[: len(PNG) // 2], "OSError|truncated"),
    "half a WebP": (encoded(Image.fromarray(noise(64, 48)), "WEBP")[:500], "not a picture|Error"),
    "floating-point TIFF": (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_whole_picture_is_bad_with_a_reason(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(BadImage, match=reason) as caught:
        images.decode(data)
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_jpeg_is_bad() -> None:
    for length in range(0, len(JPEG) - 2, 97):
        with pytest.raises(BadImage):
            images.decode(JPEG[:length])


def test_a_header_that_asks_for_all_memory_is_refused_before_decoding() -> None:
    data = png_header(60_000, 60_000)
    assert len(data) <= 74
    with pytest.raises(BadImage, match=r"pixels"):
        images.read_header(data)
    with pytest.raises(BadImage, match=r"pixels"):
        images.decode(data)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (20_000, 20_000)])
def test_a_small_png_of_many_pixels_is_refused_by_its_header(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_decode_pillow", lambda *_: pytest.fail("pixels were decoded"))
    with pytest.raises(BadImage, match=f"header says {width} x {height} pixels; at most 89478485"):
        images.decode(png_header(width, height))


def test_decoding_in_threads_leaves_the_warning_filters_alone() -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(images.decode, [PNG, JPEG] * 100))
    assert warnings.filters == before
    for pixels, expected in zip(decoded[2:], decoded, strict=False):
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_limit_is_an_argument(kind: str) -> None:
    data = encoded(Image.fromarray(noise()), kind)
    assert images.decode(data, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(BadImage, match="30 x 20 pixels; at most 599"):
        images.decode(data, max_pixels=599)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.array([[0, 255, 256, 32_768, 65_535]], dtype=np.uint16)
    decoded = images.decode(encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 128, 255])
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_frame_0_counts(kind: str) -> None:
    red, blue = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(red, kind, save_all=True, append_images=[blue, blue], duration=50, **options)
    np.testing.assert_array_equal(images.decode(data), np.asarray(red))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_modes_without_alpha_become_rgb(mode: str) -> None:
    picture = Image.fromarray(noise()).convert(mode)
    np.testing.assert_array_equal(images.decode(encoded(picture, "PNG")), np.asarray(picture.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb() -> None:
    data = encoded(Image.fromarray(smooth(64, 48)).convert("CMYK"), "JPEG", quality=95)
    decoded = images.decode(data)
    assert np.abs(decoded.astype(int) - smooth(64, 48)).mean() < 3


def test_grey_jpeg_becomes_rgb() -> None:
    data = encoded(Image.fromarray(smooth(64, 48)).convert("L"), "JPEG")
    assert (images.decode(data) == images.decode(data)[..., :1]).all()


def test_a_jpeg_with_stray_bytes_is_still_read() -> None:
    stray = JPEG[:-2] + bytes(7) + JPEG[-2:]
    np.testing.assert_array_equal(images.decode(stray), images.decode(JPEG))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_alpha_is_composited_over_the_background(mode: str, background: tuple[int, int, int]) -> None:
    alpha = np.array([[0, 64, 128, 255]], dtype=np.uint8)
    colour = np.full((1, 4, 3), 90, dtype=np.uint8)
    if mode == "P":
        alpha = np.array([[0, 255, 0, 255]], dtype=np.uint8)
        indices = Image.fromarray((alpha // 255).astype(np.uint8), "L").convert("P")
        indices.putpalette([1, 2, 3, 90, 90, 90])
        data = encoded(indices, "PNG", transparency=0)
    else:
        rgba = Image.fromarray(np.dstack([colour, alpha]))
        data = encoded(rgba.convert(mode), "PNG")
    decoded = images.decode(data, background=background)
    share = alpha[..., None] / 255
    expected = colour * share + np.array(background) * (1 - share)
    np.testing.assert_allclose(decoded, expected, atol=1)


def test_the_default_background_is_white() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "PNG")
    assert (images.decode(data) == 255).all()


def test_transparent_16_bit_grey_becomes_background() -> None:
    grey = np.array([[7, 65_535]], dtype=np.uint16)
    data = encoded(Image.fromarray(grey), "PNG", transparency=7)
    np.testing.assert_array_equal(images.decode(data, background=(1, 2, 3))[0], [[1, 2, 3], [255] * 3])


def test_jpeg_pixels_equal_pillows() -> None:
    with Image.open(io.BytesIO(JPEG)) as picture:
        expected = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(images.decode(JPEG) - expected).max() <= 1


@pytest.mark.parametrize(
    "options", [{}, {"restart_marker_blocks": 5}, {"subsampling": 0}, {"progressive": True}]
)
@pytest.mark.parametrize("box", [(0, 0, 640, 480), (3, 5, 200, 100), (100, 17, 64, 300), (600, 440, 40, 40)])
def test_a_region_holds_the_pixels_of_the_full_decode(options: dict, box: tuple[int, int, int, int]) -> None:
    data = encoded(Image.fromarray(smooth(640, 480)), "JPEG", **options)
    x, y, width, height = box
    region = images.decode_region(data, box, (height, width))
    assert region.box == box
    cut = region.image[y : y + height, x : x + width]
    np.testing.assert_array_equal(cut, images.decode(data)[y : y + height, x : x + width])


def test_rows_below_the_box_are_not_decoded() -> None:
    data = encoded(Image.fromarray(smooth(640, 480)), "JPEG")
    assert images.decode_region(data, (0, 0, 640, 100), (100, 640)).image.shape[0] < 200


def test_a_truncated_jpeg_is_bad_for_a_region_too() -> None:
    data = encoded(Image.fromarray(noise(640, 480)), "JPEG")
    for cut in (data[: len(data) // 2], data[:-2], data[:-200]):
        with pytest.raises(BadImage, match="truncated"):
            images.decode_region(cut, (0, 0, 640, 100), (100, 640))


def test_a_small_crop_is_decoded_at_full_scale() -> None:
    data = encoded(Image.fromarray(smooth(640, 480)), "JPEG")
    assert images.decode_region(data, (0, 200, 300, 280), (224, 224)).image.shape[1] == 640


def test_a_region_of_another_format_is_the_whole_picture() -> None:
    data = encoded(Image.fromarray(noise()), "PNG")
    region = images.decode_region(data, (1, 2, 3, 4), (1, 1))
    np.testing.assert_array_equal(region.image, noise())
    assert region.box == (1, 2, 3, 4)


def test_the_shared_pictures_decode_as_pillow_does(shared) -> None:
    files = sorted(shared.glob("data/**/*.jpg"))[::150] + sorted(shared.glob("data/**/*.png"))[::150]
    assert files
    for file in files:
        with Image.open(file) as picture:
            if picture.has_transparency_data:
                continue
            expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB")).astype(int)
        assert np.abs(images.decode(file.read_bytes()) - expected).max() <= 1, file
