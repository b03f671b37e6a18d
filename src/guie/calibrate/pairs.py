"""How similar pairs of pictures are, counted and not kept. numpy alone.

A pair is a query and a picture of its gallery, never itself; genuine where both show the same thing (equal
labels, or as the data set states), else an impostor's; what is stated as junk is neither. Similarity is the
cosine, on a grid of 2^-15. Shapes: Q queries, N gallery, G levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from guie.protocols.pairs import RIGHT
from guie.protocols.part import Part, codes, vectors_of
from guie.types import Pairs

STEPS = 1 << 15
# Pairs that are looked at in a group, about, and queries of its sample at least and at most.
PAIRS, FEWEST, MOST = 50_000_000, 1_000, 5_000
# Pairs held at a time: some 30 MB.
TILE = 1 << 20
LEVELS, EVEN = 512, 65
IMPOSTOR, GENUINE, NEITHER = range(3)

# Query positions (T,) to (T,N) int8: what each pair is.
Relation = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Group:
    """Who is compared: `queries` (Q,D) and `gallery` (N,D) unit vectors; all pairs of `num_asked` queries
    were too many where that is more than Q, which are then drawn."""

    queries: np.ndarray
    gallery: np.ndarray
    relation: Relation
    num_asked: int

    def tiles(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (query positions (T,), similarity (T,N) float32, what each pair is (T,N))."""
        step = max(1, TILE // max(1, len(self.gallery)))
        for start in range(0, len(self.queries), step):
            rows = np.arange(start, min(start + step, len(self.queries)))
            yield rows, self.queries[rows] @ self.gallery.T, self.relation(rows)


def group(part: Part, queries: np.ndarray, gallery: np.ndarray, seed: int = 0) -> Group:
    """Return the rows `queries` (Q,) against the rows `gallery` (N,), a sample of queries where many."""
    drawn = min(len(queries), max(FEWEST, min(MOST, PAIRS // max(1, len(gallery)))))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(queries))[:drawn])
    asks = queries[chosen]
    asking, held = (_unit(vectors_of(part.embeddings.vectors, rows)) for rows in (asks, gallery))
    return Group(asking, held, _relation(part, asks, gallery), len(queries))


def _relation(part: Part, queries: np.ndarray, gallery: np.ndarray) -> Relation:
    own = part.self_ids(queries, gallery)
    if part.embeddings.truth is not None:
        return _stated(*_pairs(part, part.embeddings.truth, queries, gallery), own, len(gallery))
    labels, _ = codes(part.embeddings.labels)
    asked, held = labels[queries], labels[gallery]

    def by_label(rows: np.ndarray) -> np.ndarray:
        found = (asked[rows, None] == held).astype(np.int8)
        return _without_self(found, own[rows])

    return by_label


def _pairs(
    part: Part, truth: Pairs, queries: np.ndarray, gallery: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (query position, gallery position, what it is) of the stated pairs by query, genuine last."""
    asks, answers = (
        {part.embeddings.files[row]: i for i, row in enumerate(rows.tolist())} for rows in (queries, gallery)
    )
    query = np.array([asks.get(file, -1) for file in truth.query], dtype=np.int64)
    item = np.array([answers.get(file, -1) for file in truth.item], dtype=np.int64)
    kind = np.where(np.isin(np.asarray(truth.relation, dtype=str), RIGHT), GENUINE, NEITHER).astype(np.int8)
    order = np.lexsort((kind == GENUINE, query))
    order = order[(query[order] >= 0) & (item[order] >= 0)]
    return query[order], item[order], kind[order]


def _stated(query: np.ndarray, item: np.ndarray, kind: np.ndarray, own: np.ndarray, total: int) -> Relation:
    """Return the relation by pairs (P,) of ascending `query`."""

    def by_pair(rows: np.ndarray) -> np.ndarray:
        found = np.zeros((len(rows), total), dtype=np.int8)
        here = slice(*np.searchsorted(query, [rows[0], rows[-1] + 1]))
        found[query[here] - rows[0], item[here]] = kind[here]
        return _without_self(found, own[rows])

    return by_pair


def _without_self(found: np.ndarray, own: np.ndarray) -> np.ndarray:
    there = np.flatnonzero(own >= 0)
    found[there, own[there]] = NEITHER
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]


@dataclass(frozen=True)
class Tally:
    """`levels` (G,) ascending similarities; `genuine`, `impostor` (Q,G) int64: how many pairs of a query are
    at least so similar (the lowest level: all of them); `best_genuine`, `best_impostor` (Q,) float32, -inf
    where a query has no such pair."""

    levels: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray
    best_genuine: np.ndarray
    best_impostor: np.ndarray


def tally(pairs: Group, rates: tuple[float, ...]) -> Tally:
    """Count the pairs of `pairs` in two passes; among the levels are those of the false-match `rates`.

    A rate's level is the lowest of the grid at which no more than this share of impostors is as similar.
    """
    hist, best = _histogram(pairs)
    steps = _levels(hist, rates)
    lookup = np.searchsorted(steps, np.arange(len(hist)), side="right")
    counts = np.zeros((2, len(pairs.queries), len(steps) + 1), dtype=np.int64)
    for rows, similarity, relation in pairs.tiles():
        place = lookup[_steps_of(similarity)] + (len(steps) + 1) * np.arange(len(rows))[:, None]
        for kind in (IMPOSTOR, GENUINE):
            found = np.bincount(place[relation == kind], minlength=len(rows) * (len(steps) + 1))
            counts[kind, rows] = found.reshape(len(rows), -1)
    above = counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:]
    return Tally(steps / STEPS - 1, above[GENUINE], above[IMPOSTOR], best[GENUINE], best[IMPOSTOR])


def _histogram(pairs: Group) -> tuple[np.ndarray, np.ndarray]:
    """Return the impostors at each step of the grid, and the best (2,Q) similarity of each kind."""
    hist = np.zeros(2 * STEPS + 1, dtype=np.int64)
    best = np.full((2, len(pairs.queries)), -np.inf, dtype=np.float32)
    for rows, similarity, relation in pairs.tiles():
        hist += np.bincount(_steps_of(similarity)[relation == IMPOSTOR], minlength=len(hist))
        for kind in (IMPOSTOR, GENUINE):
            best[kind, rows] = np.where(relation == kind, similarity, -np.inf).max(axis=1, initial=-np.inf)
    return hist, best


def _steps_of(similarity: np.ndarray) -> np.ndarray:
    """Return the highest step that each similarity reaches, from 0 (-1) to 2 STEPS (1)."""
    return np.clip((similarity + np.float32(1)) * np.float32(STEPS), 0, 2 * STEPS).astype(np.int32)


def _levels(hist: np.ndarray, rates: tuple[float, ...]) -> np.ndarray:
    """Return ascending steps: evenly laid ones, those of `rates` and of many more, and one above all."""
    above = np.append(hist[::-1].cumsum()[::-1], 0)
    total = max(1, int(above[0]))
    wanted = np.concatenate([rates, np.geomspace(1 / total, 1, LEVELS), [0]])
    # `above` falls: the first place at which it is no more than wanted.
    steps = len(above) - np.searchsorted(above[::-1], np.floor(wanted * total + 1e-9), side="right")
    even = np.linspace(0, 2 * STEPS, EVEN).astype(np.int64)
    return np.array(sorted({*steps.tolist(), *even.tolist(), 2 * STEPS + 1}), dtype=np.int64)
