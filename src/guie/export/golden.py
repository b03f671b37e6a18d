"""Input-output pairs that an exported file must reproduce: drawn pictures, vectors of the evaluation path."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from guie import resize
from guie.errors import UserError
from guie.side import side_inputs
from guie.types import Preprocess

# (height, width): one pixel, thin and wide, the usual input, a photograph, a long strip.
GOLDEN_SIZES: tuple[tuple[int, int], ...] = ((1, 1), (37, 500), (224, 224), (640, 480), (3000, 40))
GOLDEN_BATCHES: tuple[int, ...] = (1, 3, 8)
BLOCK_PX = 7


@dataclass(frozen=True)
class Golden:
    """`images[i]` (B,3,H,W) uint8 RGB of one size each; `vectors[i]` (B,D) float32, what they must give.

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

    Block edges make any other resize filter visible; flat areas keep the file small.
    """
    height, width = size
    rng = np.random.default_rng((seed, height, width))
    grid = (count, 3, -(-height // BLOCK_PX), -(-width // BLOCK_PX))
    blocks = rng.integers(0, 192, grid, dtype=np.uint8).repeat(BLOCK_PX, axis=2).repeat(BLOCK_PX, axis=3)
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 63 // max(1, height + width)
    return blocks[:, :, :height, :width] + ramp.astype(np.uint8)


def make_golden(
    embedder: nn.Module,
    *,
    sizes: tuple[tuple[int, int], ...] = GOLDEN_SIZES,
    batches: tuple[int, ...] = GOLDEN_BATCHES,
    seed: int = 0,
) -> Golden:
    """Draw pictures and embed them as the evaluation does: `guie.resize`, then the embedder in eager mode.

    `embedder(images (B,3,h,w) uint8)` returns an Output and has `.preprocess`. Raises UserError when the
    embedder gives something other than finite vectors.
    """
    images = [draw(size, max(batches), seed) for size in sizes]
    vectors = [_evaluate(embedder, pictures) for pictures in images]
    if not all(np.isfinite(rows).all() for rows in vectors):
        raise UserError("ckpt: the model gives vectors that are not finite; accepted: finite weights")
    return Golden(images, vectors, batches)


def _evaluate(embedder: nn.Module, pictures: np.ndarray) -> np.ndarray:
    spec: Preprocess = embedder.preprocess  # type: ignore[assignment]
    resized = np.stack([resize.apply(picture.transpose(1, 2, 0), spec) for picture in pictures])
    inputs = [torch.from_numpy(resized)]
    if getattr(embedder, "side_dim", 0):
        sizes = np.broadcast_to(pictures.shape[2:], (len(pictures), 2))
        inputs.append(torch.from_numpy(side_inputs(sizes)))
    with torch.inference_mode():
        return embedder(*inputs).z.float().numpy()
