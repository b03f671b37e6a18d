"""System A's classifier-TTA: every picture as its page says, in evaluation and in the file."""

import numpy as np
import pytest
import torch
from PIL import Image
from system_a import by_the_page, classifier_of, preset, small_system

from guie.datasets.manifest import from_columns
from guie.embed.reading import Reader
from guie.embed.vectors import embed
from guie.export.source import Request, Source
from guie.export.torchscript import torchscript_allowed, write

# Square; wide and tall, with even and odd padding; one pixel; strips.
SIZES = [(40, 40), (33, 33), (1, 1), (30, 50), (50, 30), (31, 50), (50, 31), (2, 1), (5, 200), (300, 4)]
TWICE = [size for size in SIZES for _ in range(6)]


@pytest.fixture(scope="module")
def embedder():
    return small_system()


@pytest.fixture(scope="module")
def classifier(embedder):
    return classifier_of(embedder)


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(0)
    found = []
    for height, width in TWICE:
        blocks = draw.integers(0, 256, (3, -(-height // 9), -(-width // 9)), dtype=np.uint8)
        found.append(blocks.repeat(9, 1).repeat(9, 2)[:, :height, :width])
    return found


@pytest.fixture(scope="module")
def told(embedder, classifier, pictures):
    """Return the vectors and branches of the page."""
    found = [by_the_page(embedder, classifier, torch.from_numpy(picture)) for picture in pictures]
    return np.stack([vector for vector, _ in found]), [branch for _, branch in found]


def saved(folder, pictures):
    names = [f"{number}.png" for number in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / name)
    return from_columns("drawn", folder, {"file": names, "label": names})


def test_every_branch_is_taken(told):
    branches = told[1]
    assert {name: branches.count(name) > 3 for name in set(branches)} == {
        "square": True,
        "thing": True,
        "other": True,
    }


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_evaluation_gives_what_the_page_says_of_each_picture(
    embedder, classifier, pictures, told, batch_size, tmp_path
):
    views = preset("classifier_tta", classifier)
    reader = Reader(batch_size=batch_size, threads=1, views=views)
    found = embed(embedder, saved(tmp_path, pictures), reader).vectors
    np.testing.assert_allclose(found, told[0], atol=2e-6)


def shapes(pictures):
    """Yield the pictures of each size as a batch, and which they are."""
    for start in range(0, len(pictures), 6):
        yield slice(start, start + 6), torch.from_numpy(np.stack(pictures[start : start + 6]))


@pytest.fixture(scope="module")
def script(embedder, classifier, tmp_path_factory):
    """Return the program of gated views, written and read again."""
    path = tmp_path_factory.mktemp("written") / "model.pt"
    source = Source({"": embedder}, views=preset("classifier_tta", classifier))
    write(source, Request(), path, {})
    with torchscript_allowed():
        return torch.jit.load(str(path))


def test_the_file_gives_what_the_page_says_of_each_picture_of_a_batch(script, pictures, told):
    for rows, batch in shapes(pictures):
        for images in (batch, batch.float()):
            np.testing.assert_allclose(script(images).detach().numpy(), told[0][rows], atol=2e-6)
        for one in range(6):
            found = script(batch[one : one + 1]).detach().numpy()
            np.testing.assert_allclose(found, told[0][rows][one : one + 1], atol=2e-6)
