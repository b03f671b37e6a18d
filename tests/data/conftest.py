"""Small pictures on disk, told apart by their colour."""

import io

import numpy as np
import pytest
from PIL import Image

from guie.datasets.manifest import from_columns


def jpeg(colour, size=(40, 30)):
    pixels = np.broadcast_to(np.asarray(colour, np.uint8), (size[1], size[0], 3)).copy()
    pixels[: size[1] // 2, : size[0] // 2] //= 2  # a dark corner, so that turns and flips show
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=95)
    return data.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """Return a manifest of 6 classes x 4 pictures in 2 domains, row i painted in (10 i, 100, 200)."""
    files, labels = [], []
    for i in range(24):
        files.append(f"p{i:02d}.jpg")
        labels.append(f"c{i // 4}")
        (tmp_path / files[-1]).write_bytes(jpeg((10 * i, 100, 200)))
    domains = ["a"] * 12 + ["b"] * 12
    columns = {"file": files, "label": labels, "domain": domains, "width": [40] * 24, "height": [30] * 24}
    return from_columns("small", tmp_path, columns)


@pytest.fixture
def shapes(tmp_path):
    """Return a manifest of 8 classes x 6 pictures in 3 domains, wide, square and tall by turns."""
    sizes = [(60, 30), (40, 40), (24, 48)]
    columns = {"file": [f"s{i:02d}.jpg" for i in range(48)], "label": [f"c{i // 6}" for i in range(48)]}
    columns["domain"] = ["a"] * 6 + ["b"] * 12 + ["c"] * 30
    columns |= {side: [sizes[i % 3][k] for i in range(48)] for k, side in enumerate(("width", "height"))}
    for i, file in enumerate(columns["file"]):
        (tmp_path / file).write_bytes(jpeg((5 * i, 100, 200), sizes[i % 3]))
    return from_columns("shapes", tmp_path, columns)


@pytest.fixture
def spoiled(pictures):
    """Return the same with row 5 cut short and row 9 missing."""
    cut = pictures.root / "p05.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (pictures.root / "p09.jpg").unlink()
    return pictures
