"""The JPEGs that benchmarks 1, 2 and 3 read: made, not stored; shapes, gradients and fine grain.

They are made by another process: large arrays freed in the measuring process would teach its malloc to keep
memory, and the sides would not pay for theirs as they do in a fresh worker.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = (500, 400, 85)  # about 50 kB
LARGE = (1600, 1200, 84)  # about 370 kB


def jpegs(count: int, width: int, height: int, quality: int) -> list[bytes]:
    """Return `count` different JPEG pictures."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [folder, *map(str, (count, width, height, quality))]
        subprocess.run([sys.executable, __file__, *arguments], check=True)
        return [(Path(folder) / str(seed)).read_bytes() for seed in range(count)]


def _jpeg(seed: int, width: int, height: int, quality: int) -> bytes:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pixels = np.stack([x / width * 180, y / height * 180, (x + y) / (width + height) * 180], axis=-1)
    for _ in range(40):
        centre, radius = rng.uniform(0, (width, height)), rng.uniform(5, height / 4)
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        pixels[inside] = rng.uniform(0, 255, 3) + 20 * np.sin(x[inside] / rng.uniform(3, 30))[:, None]
    pixels += rng.normal(0, 8, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _main(folder: str, count: str, *shape: str) -> None:
    width, height, quality = map(int, shape)
    for seed in range(int(count)):
        (Path(folder) / str(seed)).write_bytes(_jpeg(seed, width, height, quality))


if __name__ == "__main__":
    _main(*sys.argv[1:])
