"""Pictures in memory embedded as those of a data set are: through files, a manifest, the reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from guie.datasets.manifest import from_columns
from guie.embed.reading import Reader
from guie.embed.vectors import embed
from guie.views import Views


def vectors_of(embedder: Any, pictures: Sequence[np.ndarray], views: Views | None = None) -> np.ndarray:
    """Return (N,D) float32 of N pictures (3,H,W) uint8 RGB, on the device of the embedder."""
    from PIL import Image

    with TemporaryDirectory() as folder:
        names = [f"{number}.png" for number in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            Image.fromarray(picture.transpose(1, 2, 0)).save(Path(folder) / name, compress_level=1)
        rows = from_columns("drawn", folder, {"file": names, "label": names})
        device = next((tensor.device for tensor in embedder.parameters()), "cpu")
        return embed(embedder, rows, Reader(batch_size=8, device=device, views=views)).vectors
