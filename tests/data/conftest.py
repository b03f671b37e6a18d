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
    return from_columns("small", tmp_path, {"file": files, "label": labels, "domain": domains})


@pytest.fixture
def spoiled(pictures):
    """Return the same with row 5 cut short and row 9 missing."""
    cut = pictures.root / "p05.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (pictures.root / "p09.jpg").unlink()
    return pictures
