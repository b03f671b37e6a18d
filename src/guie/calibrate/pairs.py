"""How similar pairs of pictures are, counted and not kept. numpy alone.

A pair is a query and a picture of its gallery, never itself; genuine where both show the same thing (a label
in common, or as the data set states), else an impostor's; what is stated as junk is neither. Similarity is
the cosine, on a grid of 2^-15. Shapes: Q queries, N gallery, G levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from guie.protocols.labels import NOTHING, labels_of
from guie.protocols.pairs import RIGHT
from guie.protocols.part import Part, vectors_of
from guie.types import Embeddings, Pairs

STEPS = 1 << 15
# Pairs that are looked at in a group, about, and queries of its sample at least and at most.
PAIRS, FEWEST, MOST = 100_000_000, 500, 5_000
# Pairs held at a time, at some 20 bytes each, but of no fewer queries: each tile reads the whole gallery.
TILE, TOGETHER = 1 << 20, 8
LEVELS, EVEN = 512, 65
IMPOSTOR, GENUINE = range(2)


class Related(NamedTuple):
    """Pairs (P,) that are no impostor's, each once: `query` among those asked about, `item`, and whether the
    pair is `genuine`; else it is neither."""

    query: np.ndarray
    item: np.ndarray
    genuine: np.ndarray


@dataclass(frozen=True)
class Group:
    """Who is compared: `queries` (Q,D) and `gallery` (N,D), unit vectors.

    `related` (start, stop) tells of some of the queries. Where `num_asked` is more than Q, they are a sample.
    """

    queries: np.ndarray
    gallery: np.ndarray
    related: Callable[[int, int], Related]
    num_asked: int

    def tiles(self) -> Iterator[tuple[slice, np.ndarray, Related]]:
        """Yield (queries, their similarity (T,N) float32 to the gallery, their related pairs)."""
        step = max(TOGETHER, TILE // max(1, len(self.gallery)))
        for start in range(0, len(self.queries), step):
            stop = min(start + step, len(self.queries))
            yield slice(start, stop), self.queries[start:stop] @ self.gallery.T, self.related(start, stop)


def group(part: Part, queries: np.ndarray, gallery: np.ndarray, seed: int = 0) -> Group:
    """Return the rows `queries` (Q,) against the rows `gallery` (N,), a sample of queries where many."""
    drawn = min(len(queries), max(FEWEST, min(MOST, PAIRS // max(1, len(gallery)))))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(queries))[:drawn])
    asks = queries[chosen]
    asking, held = (_unit(vectors_of(part.embeddings.vectors, rows)) for rows in (asks, gallery))
    own = part.self_ids(asks, gallery)
    if part.embeddings.truth is None:
        labels = _labels(part.embeddings)
        related = _by_label(labels[asks], labels[gallery], own)
    else:
        related = _by_pair(part, part.embeddings.truth, asks, gallery, own)
    return Group(asking, held, related, len(queries))


def _labels(embeddings: Embeddings) -> np.ndarray:
    """Return the labels of each row, (N,L) int64, -1 behind them; `class_ids`, `landmarks` tell of more."""
    labels = labels_of(embeddings)
    every = labels.first[:, None] if labels.all is None else labels.all
    known = dict(zip(embeddings.labels, labels.first.tolist(), strict=True))
    several = [text.split() for text in embeddings.further.get("landmarks", ())]
    further = np.full((len(every), max(map(len, several), default=0)), NOTHING, dtype=np.int64)
    for row, names in enumerate(several):
        further[row, : len(names)] = [known.get(name, NOTHING) for name in names]
    return np.concatenate([every, further], axis=1)


def _by_label(asked: np.ndarray, held: np.ndarray, own: np.ndarray) -> Callable[[int, int], Related]:
    """Return the relation by any shared one of the labels `asked` (Q,L) and `held` (N,L)."""
    items, columns = np.nonzero(held != NOTHING)
    order = np.argsort(held[items, columns], kind="stable")
    items, sorted_labels = items[order], held[items, columns][order]
    first, last = (np.searchsorted(sorted_labels, asked, side) for side in ("left", "right"))

    def related(start: int, stop: int) -> Related:
        counts = (last - first)[start:stop]
        place = np.repeat(np.arange(counts.size), counts.ravel())
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts.ravel(), counts.ravel())
        item = items[first[start:stop].ravel()[place] + within]
        query = place // asked.shape[1]
        if asked.shape[1] > 1:  # a pair may share several
            query, item = np.divmod(np.unique(query * len(held) + item), len(held))
        return Related(query, item, item != own[start:stop][query])

    return related


def _by_pair(
    part: Part, truth: Pairs, queries: np.ndarray, gallery: np.ndarray, own: np.ndarray
) -> Callable[[int, int], Related]:
    asks, answers = (
        {part.embeddings.files[row]: i for i, row in enumerate(rows.tolist())} for rows in (queries, gallery)
    )
    right = np.isin(np.asarray(truth.relation, dtype=str), RIGHT)
    places = (
        (asks.get(query, -1), answers.get(item, -1))
        for query, item in zip(truth.query, truth.item, strict=True)
    )
    # A pair that is stated twice is genuine where it is so once; a picture and itself are no pair.
    found: dict[tuple[int, int], bool] = {}
    for place, genuine in zip(places, right.tolist(), strict=True):
        found[place] = genuine or found.get(place, False)
    found |= {(query, item): False for query, item in enumerate(own.tolist())}
    pairs = sorted(
        (query, item, genuine) for (query, item), genuine in found.items() if min(query, item) >= 0
    )
    query, item, genuine = np.array(pairs, dtype=np.int64).reshape(-1, 3).T

    def related(start: int, stop: int) -> Related:
        here = slice(*np.searchsorted(query, [start, stop]))
        return Related(query[here] - start, item[here], genuine[here].astype(bool))

    return related


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
    lookup, width = np.searchsorted(steps, np.arange(len(hist)), side="right"), len(steps) + 1
    counts = np.zeros((2, len(pairs.queries), width), dtype=np.int64)
    for rows, similarity, related in pairs.tiles():
        step = lookup[_steps_of(similarity)]
        step += width * np.arange(len(step))[:, None]
        of_related = step[related.query, related.item]
        num = step.shape[0] * width
        counts[GENUINE, rows] = np.bincount(of_related[related.genuine], minlength=num).reshape(-1, width)
        others = np.bincount(step.ravel(), minlength=num) - np.bincount(of_related, minlength=num)
        counts[IMPOSTOR, rows] = others.reshape(-1, width)
    above = counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1][:, :, 1:]
    return Tally(steps / STEPS - 1, above[GENUINE], above[IMPOSTOR], best[GENUINE], best[IMPOSTOR])


def _histogram(pairs: Group) -> tuple[np.ndarray, np.ndarray]:
    """Return the impostors at each step of the grid, and the best (2,Q) similarity of each kind."""
    hist = np.zeros(2 * STEPS + 1, dtype=np.int64)
    best = np.full((2, len(pairs.queries)), -np.inf, dtype=np.float32)
    for rows, similarity, related in pairs.tiles():
        step, places = _steps_of(similarity), (related.query, related.item)
        hist += np.bincount(step.ravel(), minlength=len(hist))
        hist -= np.bincount(step[places], minlength=len(hist))
        asks = related.query[related.genuine]
        np.maximum.at(best[GENUINE, rows], asks, similarity[places][related.genuine])
        similarity[places] = -np.inf
        best[IMPOSTOR, rows] = similarity.max(axis=1, initial=-np.inf)
    return hist, best


def _steps_of(similarity: np.ndarray) -> np.ndarray:
    """Return the highest step that each similarity reaches, from 0 (-1) to 2 STEPS (1)."""
    scaled = similarity + np.float32(1)
    scaled *= np.float32(STEPS)
    return np.clip(scaled, 0, 2 * STEPS, out=scaled).astype(np.intp)


def _levels(hist: np.ndarray, rates: tuple[float, ...]) -> np.ndarray:
    """Return ascending steps: evenly laid ones, those of `rates` and of many more, and one above all."""
    above = np.append(hist[::-1].cumsum()[::-1], 0)
    total = max(1, int(above[0]))
    wanted = np.concatenate([rates, np.geomspace(1 / total, 1, LEVELS), [0]])
    # `above` falls: the first place at which it is no more than wanted.
    steps = len(above) - np.searchsorted(above[::-1], np.floor(wanted * total + 1e-9), side="right")
    even = np.linspace(0, 2 * STEPS, EVEN).astype(np.int64)
    return np.array(sorted({*steps.tolist(), *even.tolist(), 2 * STEPS + 1}), dtype=np.int64)
