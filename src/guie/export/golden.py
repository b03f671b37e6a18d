"""Input-output pairs that an exported file must reproduce: drawn pictures, vectors of the evaluation path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guie import resize
from guie.errors import UserError
from guie.types import Preprocess

Evaluate = Callable[[Sequence[np.ndarray]], np.ndarray]  # N pictures (3,H,W) uint8 -> vectors (N,D) float32

# (sizes, count, seed) -> for each size (count,3,H,W) uint8
Draw = Callable[[Sequence[tuple[int, int]], int, int], list[np.ndarray]]

# (height, width): one pixel, thin and wide, the usual input, a photograph, a long strip.
GOLDEN_SIZES: tuple[tuple[int, int], ...] = ((1, 1), (37, 500), (224, 224), (1200, 1600), (3000, 40))
GOLDEN_BATCHES: tuple[int, ...] = (1, 3, 8)
BLOCK_PX = 7
MOST_BLOCKS = 72  # along the longer side
MARGIN = 4  # its part of a side


@dataclass(frozen=True)
class Golden:
    """`images[i]` (B,3,H,W) of one size each, as the file takes them; `vectors[i]` (B,D) float32, theirs.

    A prefix of `images[i]` must give the same prefix of `vectors[i]`: that is how `batches` are checked.
    """

    images: list[np.ndarray]
    vectors: list[np.ndarray]
    batches: tuple[int, ...]

    def save(self, path: Path) -> str:
        """Write an .npz with `images_0, vectors_0, ...` and `batches`; return its sha256."""
        arrays = {"batches": np.array(self.batches)}
        arrays |= {f"images_{i}": images for i, images in enumerate(self.images)}
        arrays |= {f"vectors_{i}": vectors for i, vectors in enumerate(self.vectors)}
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        return hashlib.sha256(path.read_bytes()).hexdigest()


def draw(size: tuple[int, int], count: int, seed: int) -> np.ndarray:
    """Return (count,3,H,W) uint8 of random flat blocks over a ramp.

    Block edges make any other resize filter visible; flat areas keep the file small, so that large pictures
    have larger blocks. Every third picture has a plain margin, which networks may trim.
    """
    height, width = size
    rng = np.random.default_rng((seed, height, width))
    px = max(BLOCK_PX, max(size) // MOST_BLOCKS)
    grid = (count, 3, -(-height // px), -(-width // px))
    blocks = rng.integers(0, 192, grid, dtype=np.uint8).repeat(px, axis=2).repeat(px, axis=3)
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 63 // max(1, height + width)
    pictures = blocks[:, :, :height, :width] + ramp.astype(np.uint8)
    above, before = height // MARGIN, width // MARGIN
    plain = np.ones((height, width), bool)
    plain[above : height - above, before : width - before] = False
    pictures[2::3, :, plain] = 255
    return pictures


def draw_each(sizes: Sequence[tuple[int, int]], count: int, seed: int) -> list[np.ndarray]:
    """Return `count` pictures of each size."""
    return [draw(size, count, seed) for size in sizes]


def normalised(picture: np.ndarray, spec: Preprocess) -> np.ndarray:
    """Return a picture (H,W,3) uint8 as a network reads it, (3,h,w) float32."""
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    return ((resize.apply(picture, spec) / 255 - mean) / std).astype(np.float32)


def make_golden(
    evaluate: Evaluate,
    *,
    sizes: Sequence[tuple[int, int]] = GOLDEN_SIZES,
    batches: tuple[int, ...] = GOLDEN_BATCHES,
    inputs: Callable[[np.ndarray], np.ndarray] | None = None,
    drawing: Draw = draw_each,
    seed: int = 0,
) -> Golden:
    """Draw pictures and take their vectors from the evaluation.

    `evaluate` gives (N,D) float32 for N pictures of several sizes; `inputs` makes of (B,3,H,W) what the file
    takes, where that is something else. Raises UserError when a vector is not finite.
    """
    images = drawing(sizes, max(batches), seed)
    vectors = evaluate([picture for pictures in images for picture in pictures])
    if not np.isfinite(vectors).all():
        raise UserError("ckpt: the model gives vectors that are not finite; accepted: finite weights")
    taken = [inputs(pictures) for pictures in images] if inputs else images
    return Golden(taken, np.split(vectors, len(sizes)), batches)
