"""Descriptors without training against loops, and on pictures that are hard to describe."""

import io

import numpy as np
import pytest
from PIL import Image

from guie import floors
from guie.datasets.manifest import from_columns
from guie.errors import UserError


def random_image(seed, height=20, width=30):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def test_the_histogram_counts_cells_of_colour():
    image = random_image(0)
    counts = np.zeros((4, 4, 4))
    for pixel in image.reshape(-1, 3):
        counts[tuple(int(value) // 64 for value in pixel)] += 1
    expected = np.sqrt(counts.ravel() / counts.sum())
    np.testing.assert_allclose(floors.colour_histogram(image), expected, atol=1e-6)
    assert np.linalg.norm(floors.colour_histogram(image)) == pytest.approx(1, abs=1e-6)


def test_the_histogram_does_not_see_where_colours_are():
    image = random_image(1)
    np.testing.assert_allclose(floors.colour_histogram(image), floors.colour_histogram(image[::-1, ::-1]))


def test_raw_pixels_are_area_means_centred_to_unit_length():
    image = random_image(2, 8, 8)
    means = np.array(
        [[image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((0, 1)) for x in range(4)] for y in range(4)]
    )
    expected = means.ravel() - means.mean()
    ours = floors.raw_pixels(image, size_px=4)
    assert float(ours @ (expected / np.linalg.norm(expected))) == pytest.approx(1, abs=1e-4)
    assert ours.sum() == pytest.approx(0, abs=1e-4) and np.linalg.norm(ours) == pytest.approx(1, abs=1e-6)


def test_a_picture_of_one_colour_has_a_finite_unit_vector():
    plain = np.full((9, 9, 3), 200, dtype=np.uint8)
    for describe in floors.FLOORS.values():
        assert np.linalg.norm(describe(plain)) == pytest.approx(1)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def manifest(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(random_image(i)) if i != 2 else b"not a picture")
    columns = {"file": [f"{i}.png" for i in range(4)], "label": list("aabb"), "split": ["test"] * 4}
    return from_columns("mini", tmp_path, columns)


@pytest.mark.parametrize("kind", floors.FLOORS)
def test_pictures_that_do_not_decode_are_left_out(manifest, kind):
    embeddings = floors.floor_embeddings(manifest, kind)
    assert embeddings.files.tolist() == ["0.png", "1.png", "3.png"]
    assert embeddings.labels.tolist() == ["a", "a", "b"]
    np.testing.assert_array_equal(embeddings.vectors[2], floors.FLOORS[kind](random_image(3)))
    assert embeddings.space_id == f"floor-{kind}"


def test_an_unknown_floor_is_named(manifest):
    with pytest.raises(UserError, match="floor: hog; accepted: colour_histogram, raw_pixels"):
        floors.floor_embeddings(manifest, "hog")
