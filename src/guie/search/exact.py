"""Exact nearest neighbours by inner product within a stated amount of memory.

Never holds Q x N scores: queries go through in tiles. A matrix product rounds a score differently from place
to place; so candidates, a few more than asked for, are scored anew by a sum that depends on the two vectors
alone, and where the last place is not clear of all that was not looked at, that query meets the whole gallery
that way. So equal gallery rows score equal, ties go to the lower position, and the ranking is the same
whatever multiplied (faiss, numpy, a GPU), in whatever tiles, over however many ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from guie.errors import UserError
from guie.search import engines
from guie.types import Ranking, Side

Best = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

# Candidates beyond those asked for: rounding seldom moves a row across so many places.
SPARE = 8

# Two products of unit vectors of D values differ by less than sqrt(D) times this: a sum of D rounded terms
# strays as a random walk does, by 2^-24 a step at most; a third of it is the most that was seen.
ROUNDING = 4 * 2.0**-24

# Neighbours of a query that metrics ask for, and the query itself: what the tile of an index is cut for.
USUAL_DEPTH = 101

# Bytes of candidates' vectors that are scored anew at a time.
RESCORED = 1 << 20


@dataclass(frozen=True)
class Exact:
    """Each query against each gallery row, in working memory of `memory_mib`. Config group `search`.

    `device` cuda holds the gallery on this process's GPU and multiplies there.
    """

    memory_mib: float = 16
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"search.device: '{self.device}'; accepted: cpu, cuda")
        if self.memory_mib <= 0:
            raise UserError(f"memory_mib: {self.memory_mib}; accepted: above 0")
        if self.device == "cuda":
            engines.check_gpu()

    def index(self, gallery: Side) -> ExactIndex:
        """Return the gallery's rows as they are."""
        vectors = np.ascontiguousarray(gallery.vectors, dtype=np.float32)
        engine = engines.OnGpu(vectors) if self.device == "cuda" else engines.OnCpu(vectors)
        return ExactIndex(vectors, self.memory_mib, engine)

    def facts(self) -> dict[str, Any]:
        """Return what a report says of this search."""
        return {"search": "exact"}


class ExactIndex:
    """`vectors` (N,D) float32 and the `engine` that multiplies them with queries."""

    def __init__(self, vectors: np.ndarray, memory_mib: float, engine: Best):
        self.vectors, self.memory_mib, self._engine = vectors, memory_mib, engine
        self._largest = np.fmax.reduce(norms(vectors), initial=0)

    @property
    def tile(self) -> int:
        """Return how many queries fit the memory at once."""
        return tile_rows(USUAL_DEPTH + SPARE, self.memory_mib)

    def search(self, queries: Side, k: int, *, self_ids: np.ndarray | None = None) -> Ranking:
        """Return what `ranked` states: the k best gallery positions of each query, (Q,k)."""
        return ranked(queries, self.vectors, k, self_ids, self.memory_mib, self._best)

    def _best(self, tile: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids, scores), (T,wanted), by the sums of `rescored`, ties to the lower position."""
        width = min(len(self.vectors), wanted + SPARE)
        rough, ids = self._engine(tile, width)
        scores = rescored(tile, self.vectors, ids)
        ids, scores = in_order(ids, scores, wanted)
        if width < len(self.vectors):
            strays = ROUNDING * np.sqrt(tile.shape[1]) * norms(tile) * self._largest
            for row in np.flatnonzero(~(rough[:, -1] + strays < scores[:, -1])):
                ids[row], scores[row] = self._against_all(tile[row], wanted)
        return ids, scores

    def _against_all(self, query: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids, scores), (wanted,), of one query from the sums with every row."""
        scores = _known(np.einsum("nd,d->n", self.vectors, query))
        last = np.partition(scores, len(scores) - wanted)[len(scores) - wanted]
        above, tied = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
        ids = np.concatenate([above, tied[: wanted - len(above)]])[None]
        ids, scores = in_order(ids, scores[ids], wanted)
        return ids[0], scores[0]


def knn(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    self_ids: np.ndarray | None = None,
    memory_mib: float = 16,
) -> Ranking:
    """Return the k gallery rows of highest inner product for each query: `ExactIndex.search` of arrays.

    `queries` (Q,D), `gallery` (N,D) float32; `memory_mib` bounds the working memory beyond inputs and result.
    """
    return Exact(memory_mib).index(Side(gallery)).search(Side(queries), k, self_ids=self_ids)


def ranked(
    queries: Side, gallery: np.ndarray, k: int, self_ids: np.ndarray | None, memory_mib: float, best: Best
) -> Ranking:
    """Return what `best` (tile (T,D), wanted) finds, tile by tile, as (ids, scores) in order, (T,wanted).

    `self_ids` (Q,) gallery position of the query, -1 where it is not in the gallery: it is left out of its
    own result. Where the gallery holds fewer than k others, ids are -1 and scores -inf; what is not a number
    is never found. Raises ValueError on shapes that do not fit.
    """
    check(queries.vectors, gallery, k, self_ids)
    ranking = nobody(len(queries.vectors), k)
    wanted = min(len(gallery), int(k) + (self_ids is not None))
    for here in even_tiles(len(ranking.ids) if wanted else 0, tile_rows(wanted + SPARE, memory_mib)):
        ids, scores = best(np.ascontiguousarray(queries.vectors[here], dtype=np.float32), wanted)
        if self_ids is not None:
            ids, scores = without_self(ids, scores, self_ids[here])
        ranking.ids[here, : min(k, wanted)] = ids[:, :k]
        ranking.scores[here, : min(k, wanted)] = scores[:, :k]
    ranking.ids[np.isneginf(ranking.scores)] = -1
    return ranking


def tile_rows(k: int, memory_mib: float) -> int:
    """Return how many queries fit `memory_mib` at once: a score block, faiss' reservoir and sorted copies."""
    bytes_per_query = 4 * engines.BLOCK + 12 * 2 * k + 40 * k
    return int(np.clip(memory_mib * 2**20 / bytes_per_query, 16, 4096))


def even_tiles(count: int, most: int) -> Iterator[slice]:
    """Yield slices of 0..count of about one size, `most` at most: in a small product a row costs more."""
    tiles = -(-count // most)
    for part in range(tiles):
        yield slice(count * part // tiles, count * (part + 1) // tiles)


def check(queries: np.ndarray, gallery: np.ndarray, k: int, self_ids: np.ndarray | None) -> None:
    """Raise ValueError on shapes that do not fit."""
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape}; expected (Q,D) and (N,D)")
    if k < 1:
        raise ValueError(f"k: {k}; expected at least 1")
    if self_ids is not None and len(self_ids) != len(queries):
        raise ValueError(f"self_ids: {len(self_ids)} for {len(queries)} queries; expected one each")


def nobody(queries: int, k: int) -> Ranking:
    """Return a ranking (Q,k) of empty places."""
    return Ranking(np.full((queries, k), -1, np.int32), np.full((queries, k), -np.inf, np.float32))


def norms(vectors: np.ndarray) -> np.ndarray:
    """Return the length of each vector, (N,)."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def rescored(tile: np.ndarray, gallery: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the inner products (T,W) of `tile` (T,D) with the rows `ids` (T,W) of `gallery`; -inf for id -1.

    Each is a sum whose order depends on D alone, not on where the two vectors stand.
    """
    scores = np.empty(ids.shape, dtype=np.float32)
    held = max(1, RESCORED // (4 * tile.shape[1] or 1))
    columns = max(1, min(held, ids.shape[1]))
    for start in range(0, len(tile), held // columns):
        for first in range(0, ids.shape[1], columns):
            here = slice(start, start + held // columns), slice(first, first + columns)
            scores[here] = np.einsum("twd,td->tw", gallery[ids[here]], tile[here[0]])
    scores[ids < 0] = -np.inf
    return _known(scores)


def in_order(ids: np.ndarray, scores: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `wanted` of (ids, scores), each (T,W), by score and then by lower id."""
    order = np.argsort(-scores, axis=1)
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    tied = np.flatnonzero((scores[:, 1:] == scores[:, :-1]).any(axis=1))
    order = np.lexsort((ids[tied], -scores[tied]), axis=1)
    ids[tied] = np.take_along_axis(ids[tied], order, axis=1)
    return ids[:, :wanted], scores[:, :wanted]


def without_self(ids: np.ndarray, scores: np.ndarray, self_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop one column per row: the query itself, or an empty place added for the rows that lack it."""
    ids = np.pad(ids, ((0, 0), (0, 1)), constant_values=-1)
    scores = np.pad(scores, ((0, 0), (0, 1)), constant_values=-np.inf)
    own = ids == self_ids[:, None]
    place = np.where(own.any(axis=1), own.argmax(axis=1), ids.shape[1] - 1)
    others = np.arange(ids.shape[1]) != place[:, None]
    return ids[others].reshape(len(ids), -1), scores[others].reshape(len(ids), -1)


def _known(scores: np.ndarray) -> np.ndarray:
    """Put -inf where a score is not a number, in place: a row that is never found."""
    scores[np.isnan(scores)] = -np.inf
    return scores
