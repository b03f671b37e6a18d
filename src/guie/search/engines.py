"""Candidates of a tile of queries: (T,D) by (N,D) to scores and ids, each (T,k), best first.

They are right but for rounding, which differs between libraries and from place to place in a product:
`search.exact` scores them anew.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from guie.errors import UserError

if TYPE_CHECKING:
    import torch

Found = tuple[np.ndarray, np.ndarray]

# faiss multiplies blocks of this many gallery rows at a time; its buffer is that wide.
BLOCK = 1024

# The same on a GPU, which wants larger products.
GPU_BLOCK = 1 << 17

# Below this many scores numpy is done before faiss is imported.
WITHOUT_FAISS = 6_000_000


class OnCpu:
    """`gallery` (N,D) float32 multiplied by faiss where it is there and worth its import, else by numpy."""

    def __init__(self, gallery: np.ndarray):
        self._gallery = gallery
        self._has_faiss = importlib.util.find_spec("faiss") is not None
        self._asked = 0

    def __call__(self, tile: np.ndarray, k: int) -> Found:
        """Return the candidates of `tile`."""
        self._asked += len(tile)
        worth = self._asked * len(self._gallery) > WITHOUT_FAISS
        return (by_faiss if self._has_faiss and worth else by_numpy)(tile, self._gallery, k)


class OnGpu:
    """`gallery` (N,D) float32 held by this process's GPU."""

    def __init__(self, gallery: np.ndarray):
        import torch

        self._gallery = torch.as_tensor(gallery, device="cuda")

    def __call__(self, tile: np.ndarray, k: int) -> Found:
        """Return the candidates of `tile`."""
        return by_torch(tile, self._gallery, k)


def check_gpu() -> None:
    """Raise UserError where this process has no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("search.device: 'cuda', but torch finds no GPU; accepted here: cpu")


def by_faiss(tile: np.ndarray, gallery: np.ndarray, k: int) -> Found:
    """Multiply with the library that faiss was built with."""
    import faiss

    # By default faiss multiplies matrices only from 128,000 / D queries on; below it takes 4 times as long.
    faiss.cvar.distance_compute_blas_threshold = min(20, faiss.cvar.distance_compute_blas_threshold)
    scores, ids = faiss.knn(tile, gallery, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, ids


def by_numpy(tile: np.ndarray, gallery: np.ndarray, k: int) -> Found:
    """Multiply block by block of the gallery."""
    scores = np.empty((len(tile), 0), dtype=np.float32)
    ids = np.empty((len(tile), 0), dtype=np.int32)
    for start in range(0, len(gallery), BLOCK):
        block = tile @ gallery[start : start + BLOCK].T
        best = _best_columns(block, k)
        scores = np.concatenate([scores, np.take_along_axis(block, best, axis=1)], axis=1)
        ids = np.concatenate([ids, best.astype(np.int32) + start], axis=1)
        if start:
            best = _best_columns(scores, k)
            scores, ids = np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)
    order = np.argsort(-scores, axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def by_torch(tile: np.ndarray, gallery: torch.Tensor, k: int) -> Found:
    """Multiply on the device of `gallery`, a large block at a time."""
    import torch

    queries = torch.as_tensor(tile, device=gallery.device)
    scores = queries.new_empty(len(tile), 0)
    ids = torch.empty_like(scores, dtype=torch.int64)
    for start in range(0, len(gallery), GPU_BLOCK):
        with _full_precision():
            block = queries @ gallery[start : start + GPU_BLOCK].T
        found, columns = block.topk(min(k, block.shape[1]))
        scores, ids = torch.cat([scores, found], 1), torch.cat([ids, columns + start], 1)
        scores, best = scores.topk(min(k, scores.shape[1]))
        ids = ids.gather(1, best)
    return scores.cpu().numpy(), ids.cpu().numpy()


@contextmanager
def _full_precision() -> Iterator[None]:
    """Forbid TF32, whose products have 10 bits, whatever training allowed."""
    import torch

    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def _best_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the places of each row's k largest, (T, k or all there are), in no order."""
    left_out = scores.shape[1] - k
    if left_out <= 0:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.argpartition(scores, left_out, axis=1)[:, left_out:]
