"""Drawn pictures and a small embedder that several files look at."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guie.datasets.manifest import from_columns

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))  # ranks.py, tiny.py
from tiny import TinyEmbedder

N = 11


@pytest.fixture
def manifest(tmp_path):
    """Return 11 pictures of 3 classes, each of another size."""
    draw = np.random.default_rng(0)
    for i in range(N):
        pixels = draw.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    labels = [str(i % 3) for i in range(N)]
    return from_columns("drawn", tmp_path, {"file": [f"{i}.png" for i in range(N)], "label": labels})


@pytest.fixture
def embedder():
    """Return a network of 4 x 4 pictures with a batch norm, in training mode."""
    torch.manual_seed(0)
    return TinyEmbedder(norm=True).train()
