"""Exact nearest neighbours by inner product within a stated amount of memory; faiss where it is installed.

Never holds Q x N scores: queries go through in tiles. Ties are broken by the lower gallery position, so that
the same vectors give the same ranking on every machine that rounds alike.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from guie.types import Ranking, Side

# faiss multiplies blocks of this many gallery rows at a time; its buffer is that wide.
FAISS_BLOCK = 1024

# Below this many scores numpy is done before faiss is imported.
WITHOUT_FAISS = 6_000_000

# Neighbours of a query that metrics ask for, about: what the tile of an index is cut for.
USUAL_DEPTH = 102

Tile = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Exact:
    """Each query against each gallery row, in working memory of `memory_mib`. Config group `search`."""

    memory_mib: float = 16

    def index(self, gallery: Side) -> ExactIndex:
        """Return the gallery's rows as they are."""
        return ExactIndex(np.ascontiguousarray(gallery.vectors, dtype=np.float32), self.memory_mib)


@dataclass(frozen=True)
class ExactIndex:
    """`vectors` (N,D) float32, searched as `knn` does."""

    vectors: np.ndarray
    memory_mib: float

    @property
    def tile(self) -> int:
        """Return how many queries fit the memory at once."""
        return tile_rows(USUAL_DEPTH, self.memory_mib)

    def search(self, queries: Side, k: int, *, self_ids: np.ndarray | None = None) -> Ranking:
        """Return the k best gallery positions of each query, (Q,k), ties to the lower position."""
        return knn(queries.vectors, self.vectors, k, self_ids=self_ids, memory_mib=self.memory_mib)


def knn(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    self_ids: np.ndarray | None = None,
    memory_mib: float = 16,
) -> Ranking:
    """Return the k gallery rows of highest inner product for each query, exactly.

    `queries` (Q,D), `gallery` (N,D) float32; `self_ids` (Q,) gallery position of the query, -1 where it
    is not in the gallery: it is left out of its own result. `memory_mib` bounds the working memory beyond
    inputs and result. Where the gallery holds fewer than k others, ids are -1 and scores -inf.
    Raises ValueError on shapes that do not fit.
    """
    _check(queries, gallery, k, self_ids)
    found = np.full((len(queries), k), -1, dtype=np.int32)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    # One more than asked shows whether the last place is tied, one more again stands in for the query itself.
    width = min(len(gallery), int(k) + 1 + (self_ids is not None))
    large = len(queries) * len(gallery) > WITHOUT_FAISS
    search_tile = _faiss_tile if large and importlib.util.find_spec("faiss") else _numpy_tile
    rows = tile_rows(width, memory_mib)
    for start in range(0, len(queries) if width else 0, rows):
        tile = np.ascontiguousarray(queries[start : start + rows], dtype=np.float32)
        selves = None if self_ids is None else self_ids[start : start + rows]
        ids, values = _ranked_tile(tile, gallery, width, selves, search_tile)
        kept = min(k, ids.shape[1])
        found[start : start + rows, :kept] = ids[:, :kept]
        scores[start : start + rows, :kept] = values[:, :kept]
    found[np.isneginf(scores)] = -1
    return Ranking(found, scores)


def tile_rows(k: int, memory_mib: float) -> int:
    """Return how many queries fit `memory_mib` at once: a score block, faiss' reservoir and sorted copies."""
    bytes_per_query = 4 * FAISS_BLOCK + 12 * 2 * k + 40 * k
    return int(np.clip(memory_mib * 2**20 / bytes_per_query, 16, 4096))


def _check(queries: np.ndarray, gallery: np.ndarray, k: int, self_ids: np.ndarray | None) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape}; expected (Q,D) and (N,D)")
    if k < 1:
        raise ValueError(f"k: {k}; expected at least 1")
    if self_ids is not None and len(self_ids) != len(queries):
        raise ValueError(f"self_ids: {len(self_ids)} for {len(queries)} queries; expected one each")


def _ranked_tile(
    tile: np.ndarray, gallery: np.ndarray, width: int, self_ids: np.ndarray | None, search_tile: Tile
) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, scores) of a tile, (T, width or width - 1), ties settled and the query itself removed."""
    scores, ids = search_tile(tile, gallery, width)
    _order_ties(ids, scores)
    if width < len(gallery):
        _settle_last_place(tile, gallery, ids, scores)
    return (ids, scores) if self_ids is None else _without_self(ids, scores, self_ids)


def _without_self(ids: np.ndarray, scores: np.ndarray, self_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop one column per row: the query itself, or an empty place added for the rows that lack it."""
    ids = np.pad(ids, ((0, 0), (0, 1)), constant_values=-1)
    scores = np.pad(scores, ((0, 0), (0, 1)), constant_values=-np.inf)
    own = ids == self_ids[:, None]
    own[~own.any(axis=1), -1] = True
    return ids[~own].reshape(len(ids), -1), scores[~own].reshape(len(ids), -1)


def _order_ties(ids: np.ndarray, scores: np.ndarray) -> None:
    """Order equal scores by id, in place."""
    tied = np.flatnonzero((scores[:, 1:] == scores[:, :-1]).any(axis=1))
    if len(tied):
        order = np.lexsort((ids[tied], -scores[tied]), axis=1)
        ids[tied] = np.take_along_axis(ids[tied], order, axis=1)


def _settle_last_place(tile: np.ndarray, gallery: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> None:
    """Give places tied with the last one to the lowest ids of the whole gallery, in place."""
    for row in np.flatnonzero(scores[:, -1] == scores[:, -2]) if ids.shape[1] > 1 else ():
        last = scores[row, -1]
        tied = scores[row] == last
        candidates = np.flatnonzero(gallery @ tile[row] == last)
        # Another matrix product may round otherwise; then what was found stays.
        if len(candidates) >= tied.sum():
            ids[row, tied] = candidates[: tied.sum()]


def _faiss_tile(tile: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    # By default faiss multiplies matrices only from 128,000 / D queries on; below it takes 4 times as long.
    faiss.cvar.distance_compute_blas_threshold = min(20, faiss.cvar.distance_compute_blas_threshold)
    scores, ids = faiss.knn(tile, gallery, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, ids


def _numpy_tile(tile: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `_faiss_tile` returns, (scores, ids) best first, from blocks of the gallery."""
    scores = np.empty((len(tile), 0), dtype=np.float32)
    ids = np.empty((len(tile), 0), dtype=np.int32)
    for start in range(0, len(gallery), FAISS_BLOCK):
        block = tile @ np.asarray(gallery[start : start + FAISS_BLOCK], dtype=np.float32).T
        best = _best_columns(block, k)
        scores = np.concatenate([scores, np.take_along_axis(block, best, axis=1)], axis=1)
        ids = np.concatenate([ids, best.astype(np.int32) + start], axis=1)
        if start:
            best = _best_columns(scores, k)
            scores, ids = np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)
    order = np.lexsort((ids, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _best_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the places of each row's k largest, (T, k or all there are), in no order."""
    left_out = scores.shape[1] - k
    if left_out <= 0:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.argpartition(scores, left_out, axis=1)[:, left_out:]
