"""Resizing: the numbers of PIL and torchvision, and the training path against full decode and resize."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from guie import images, resize
from guie.types import Preprocess

SIZES = [(1, 1), (37, 500), (40, 3000), (1200, 1600), (2, 3), (223, 225), (400, 500), (1, 700), (224, 224)]
TARGETS = [(224, 224), (31, 77), (448, 336)]
KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Gradients, shapes with edges and a little grain: (H,W,3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x / width, y / height, (x + y) / (width + height)], axis=-1) * 180
    for _ in range(12):
        centre, radius = rng.uniform(0, (width, height)), rng.uniform(2, max(4, min(height, width) / 3))
        pixels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = rng.uniform(0, 255, 3)
    return (pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def assert_within_a_level(ours: np.ndarray, expected: np.ndarray) -> None:
    """At most 1 level; 2 for a few values in ten thousand, where two roundings meet."""
    difference = np.abs(ours.transpose(1, 2, 0).astype(int) - expected.astype(int))
    assert difference.max() <= 2
    assert (difference > 1).mean() < 5e-4
    assert difference.mean() < 0.05


def pil(image: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """Resize by PIL to (height, width), rows before columns whatever order this Pillow finds cheaper."""
    kernel = KERNELS[interpolation]
    return np.asarray(
        Image.fromarray(image).resize((size[1], image.shape[0]), kernel).resize(size[::-1], kernel)
    )


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize(("source", "target"), list(itertools.product(SIZES, TARGETS)))
def test_stretch_gives_pils_numbers(
    source: tuple[int, int], target: tuple[int, int], interpolation: str
) -> None:
    image = photograph(*source)
    expected = pil(image, target, interpolation)
    ours = resize.apply(image, Preprocess(size_px=target, interpolation=interpolation))
    assert ours.shape == (3, *target)
    assert ours.dtype == np.uint8
    assert_within_a_level(ours, expected)


def test_a_tall_picture_stays_close_to_the_order_that_pillow_chooses() -> None:
    image = photograph(640, 333)
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    ours = resize.apply(image, Preprocess()).transpose(1, 2, 0)
    assert np.abs(ours.astype(int) - expected).mean() < 0.3


def test_half_a_pixel_of_shift_would_be_noticed() -> None:
    image = photograph(400, 500)
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    shifted = resize.crop_resize(image, (1, 0, 499, 400), (224, 224))
    with pytest.raises(AssertionError):
        assert_within_a_level(shifted, expected)


@pytest.mark.parametrize("fraction", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("source", [(400, 500), (1200, 1600), (223, 225), (40, 3000), (37, 500), (1, 1)])
def test_center_gives_torchvisions_numbers(source: tuple[int, int], fraction: float) -> None:
    height, width = source
    image = photograph(*source)
    short = int(224 / fraction)
    size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    top, left = round((size[0] - 224) / 2.0), round((size[1] - 224) / 2.0)
    expected = pil(image, size)[top : top + 224, left : left + 224]
    ours = resize.apply(image, Preprocess(crop="center", crop_fraction=fraction))
    assert_within_a_level(ours, expected)


def test_the_long_side_is_rounded_down_as_torchvision_does() -> None:
    assert resize.center_size(1200, 1600, Preprocess(crop="center")) == (224, 298)
    assert resize.center_size(1600, 1200, Preprocess(crop="center")) == (298, 224)


def test_rounding_to_nearest_would_be_noticed() -> None:
    image = photograph(1200, 1600)
    wrong = Image.fromarray(image).resize((299, 224), Image.Resampling.BICUBIC)
    with pytest.raises(AssertionError):
        assert_within_a_level(
            resize.apply(image, Preprocess(crop="center")), np.asarray(wrong)[:, 38 : 38 + 224]
        )


def test_center_covers_a_target_that_is_not_square() -> None:
    for source in [(100, 400), (400, 100), (333, 334)]:
        ours = resize.apply(photograph(*source), Preprocess(size_px=(96, 160), crop="center"))
        assert ours.shape == (3, 96, 160)


def test_a_picture_one_pixel_wide_needs_no_memory_for_what_is_cut_away() -> None:
    image = photograph(30_000, 1)
    ours = resize.apply(image, Preprocess(crop="center"))
    assert ours.shape == (3, 224, 224)
    assert np.abs(ours[:, 112, 0].astype(int) - image[15_000, 0]).max() <= 40


def test_pad_fits_the_long_side_and_fills_the_rest() -> None:
    image = photograph(100, 400)
    ours = resize.apply(image, Preprocess(crop="pad", background=(1, 2, 3)))
    assert (ours[:, :84].transpose(1, 2, 0) == (1, 2, 3)).all()
    assert (ours[:, 140:].transpose(1, 2, 0) == (1, 2, 3)).all()
    expected = pil(image, (56, 224))
    assert_within_a_level(ours[:, 84:140], expected)


@pytest.mark.parametrize("source", [(1, 3000), (3000, 1), (224, 224), (225, 224)])
def test_pad_keeps_at_least_one_pixel(source: tuple[int, int]) -> None:
    assert resize.apply(photograph(*source), Preprocess(crop="pad")).shape == (3, 224, 224)


def test_a_picture_of_the_right_size_is_unchanged() -> None:
    image = photograph(224, 224)
    for crop in ("stretch", "center", "pad"):
        ours = resize.apply(image, Preprocess(crop=crop))
        np.testing.assert_array_equal(ours.transpose(1, 2, 0), image)
        assert not np.shares_memory(ours, image) or crop != "pad"


@pytest.mark.parametrize(
    ("image", "spec", "message"),
    [
        (np.zeros((4, 4), np.uint8), Preprocess(), r"image: \(4, 4\) uint8; accepted: \(H,W,3\) uint8"),
        (np.zeros((4, 4, 3)), Preprocess(), "float64"),
        (np.zeros((0, 4, 3), np.uint8), Preprocess(), "not empty"),
        (np.zeros((4, 4, 3), np.uint8), Preprocess(crop="middle"), "crop: 'middle'; accepted: stretch"),
        (np.zeros((4, 4, 3), np.uint8), Preprocess(crop="center", crop_fraction=1.5), "crop_fraction: 1.5"),
    ],
)
def test_a_wrong_argument_is_named(image: np.ndarray, spec: Preprocess, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize.apply(image, spec)


def test_memory_that_torch_cannot_borrow_is_copied() -> None:
    image = photograph(60, 80)
    frozen = image.copy()
    frozen.flags.writeable = False
    mirrored = np.ascontiguousarray(image[::-1])
    spec = Preprocess(size_px=(20, 20))
    np.testing.assert_array_equal(resize.apply(frozen, spec), resize.apply(image, spec))
    np.testing.assert_array_equal(resize.apply(image[::-1], spec), resize.apply(mirrored, spec))


def test_load_is_decode_then_apply() -> None:
    data = jpeg(photograph(300, 400))
    spec = Preprocess(size_px=(64, 64), crop="center")
    np.testing.assert_array_equal(resize.load(data, spec), resize.apply(images.decode(data), spec))


def test_a_box_on_whole_pixels_gives_the_resized_cut() -> None:
    image = photograph(300, 400)
    ours = resize.crop_resize(image, (10, 20, 333, 211), (64, 96), "bilinear")
    expected = pil(image[20:231, 10:343], (64, 96), "bilinear")
    assert_within_a_level(ours, expected)


@pytest.mark.parametrize("offset", [0.25, 0.5, 0.8])
def test_a_box_at_a_fraction_of_a_pixel_is_honoured(offset: float) -> None:
    image = photograph(300, 400)
    box = (100 + offset, 80 + offset, 210, 150)
    ours = resize.crop_resize(image, box, (64, 64), "bilinear")
    edges = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    expected = Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR, box=edges)
    expected = np.asarray(expected).transpose(2, 0, 1).astype(int)
    whole = resize.crop_resize(image, (round(box[0]), round(box[1]), 210, 150), (64, 64), "bilinear")
    assert np.abs(ours - expected).mean() < 0.6 * np.abs(whole - expected).mean()


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (-3, 0, 5, 5), (0, 0, 41, 5), (0, 36, 5, 5)])
def test_a_box_outside_the_picture_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="inside 40 x 40 pixels"):
        resize.crop_resize(photograph(40, 40), box, (8, 8))


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_training_path_is_within_a_level_of_full_decode(orientation: int, interpolation: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photograph(597, 805), exif=exif)
    header = images.read_header(data)
    full = images.decode(data)
    rng = np.random.default_rng(orientation)
    for _ in range(6):
        width, height = (int(rng.uniform(0.3, 1) * side) for side in (header.width, header.height))
        x, y = int(rng.integers(header.width - width + 1)), int(rng.integers(header.height - height + 1))
        ours = resize.load_crop(data, (x, y, width, height), (96, 96), interpolation=interpolation)
        expected = resize.crop_resize(full, (x, y, width, height), (96, 96), interpolation)
        assert np.abs(ours.astype(int) - expected).mean() <= 1


def test_another_place_in_the_scaled_picture_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    data, box = jpeg(photograph(597, 805)), (13, 21, 640, 500)
    expected = resize.crop_resize(images.decode(data), box, (96, 96))
    place = images._scaled_box
    monkeypatch.setattr(images, "_scaled_box", lambda *a: tuple(v + 1 for v in place(*a)[:2]) + place(*a)[2:])
    assert np.abs(resize.load_crop(data, box, (96, 96)).astype(int) - expected).mean() > 1


def test_a_small_crop_is_exactly_the_full_path() -> None:
    data, box = jpeg(photograph(300, 400)), (20, 30, 250, 240)
    expected = resize.crop_resize(images.decode(data), box, (224, 224))
    np.testing.assert_array_equal(resize.load_crop(data, box, (224, 224)), expected)


def test_a_thin_crop_of_a_scaled_picture_keeps_a_pixel() -> None:
    data = jpeg(photograph(800, 800))
    assert resize.load_crop(data, (0, 0, 800, 800), (1, 1)).shape == (3, 1, 1)
    assert resize.load_crop(data, (799, 3, 1, 700), (16, 16)).shape == (3, 16, 16)


def loaded_modules(imports: str) -> set[str]:
    code = f"{imports}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_picture_path_loads_no_torch() -> None:
    heavy = {"torch", "torchvision", "cv2", "albumentations"}
    assert not heavy & loaded_modules("import guie.resize, guie.images, guie.records.pictures")


def test_that_a_heavy_import_would_be_seen() -> None:
    assert "xml.dom" in loaded_modules("import guie.resize, xml.dom")
