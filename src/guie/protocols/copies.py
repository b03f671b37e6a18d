"""Copy detection: pairs of all queries in one list, best first (DISC21, the Image Similarity Challenge)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from guie.errors import UserError
from guie.metrics import copies, micro
from guie.metrics.copies import ScoredPairs
from guie.metrics.hits import stated
from guie.protocols.pairs import RIGHT, stated_pairs
from guie.protocols.part import (
    SHOWN,
    Numbers,
    Outcome,
    Part,
    Protocol,
    accepted,
    asked,
    codes,
    cut,
    joined,
    positive,
    recall_curve,
    top_of,
)
from guie.types import Index, Ranking, Side

log = logging.getLogger("guie")

# Is given some query positions and their ranking.
Seen = Callable[[np.ndarray, Ranking], None]

_DRAWS = 200  # of the interval: each one ranks all pairs again


@dataclass(frozen=True)
class Copies(Protocol):
    """uAP, RP90 and R@k of scored pairs (Douze et al. 2021); true are the stated pairs, else equal labels.

    `track` descriptor: the `max_pairs` globally best pairs by the search's score, of vectors of at most
    `max_dim` numbers (wider ones are evaluated and told). Track matching: the best of each query's
    `candidates`, which a re-ranking may have scored, of vectors of any width.
    """

    track: Literal["descriptor", "matching"] = "descriptor"
    max_pairs: int = 500_000
    max_dim: int = 256
    candidates: int = 10
    metric: str = "uAP"
    crops: Sequence[str] = ()
    asks: Sequence[str] = ("query",)
    answers: Sequence[str] = ("index",)

    def __post_init__(self) -> None:
        positive("max_pairs", [self.max_pairs])
        most = copies.MOST_PAIRS
        accepted("max_pairs", self.max_pairs, self.max_pairs <= most, f"{most:,} at most")
        positive("candidates", [self.candidates])

    def evaluate(self, part: Part) -> Outcome:
        """Return the numbers of the best pairs."""
        queries, gallery = part.roles(self.roles[0])
        truth = true_pairs(part, queries, gallery)
        asking = Asking(
            part.side(queries),
            part.self_ids(queries, gallery),
            part.search.index(part.side(gallery, labels=True)),
            len(gallery),
        )
        matching, first = self.track == "matching", _First(truth)
        depth = min(self.candidates, len(gallery)) if matching else usual_depth(asking, self.max_pairs)
        pairs = best_pairs(asking, depth, self.max_pairs, deepen=not matching, seen=first.add)
        return self._outcome(part, (queries, gallery), pairs, first)

    def _outcome(
        self,
        part: Part,
        rows: tuple[np.ndarray, np.ndarray],
        pairs: ScoredPairs,
        first: _First,
    ) -> Outcome:
        (queries, gallery), truth = rows, first.truth
        answers = copies.ranked_pairs(pairs, *truth, num_queries=len(queries))
        numbers: Numbers = dict(copies.evaluate(pairs, *truth))
        numbers["uAP_interval"] = list(micro.bootstrap_interval(answers, samples=_DRAWS))
        top, first_hit = joined(first.tops), np.concatenate(first.hits)
        curve = recall_curve(first_hit[np.unique(truth[0])], first.depth, len(gallery))
        numbers |= {"queries": len(queries), "gallery": len(gallery), "recall_curve": curve}
        numbers |= {"pairs": len(pairs.query), "true_pairs": len(truth[0])}
        numbers["within_limits"] = self._within_limits(part)
        relevant = np.bincount(truth[0], minlength=len(queries))
        table = part.described(queries) | {"relevant": relevant, "first_hit": first_hit}
        table["uAP"] = micro.per_query(answers)
        return Outcome(numbers, table | part.shown(top, gallery))

    def _within_limits(self, part: Part) -> bool:
        width = part.embeddings.vectors.shape[1]
        within = self.track == "matching" or width <= self.max_dim
        if not within:
            log.warning(
                "%s: vectors of %d numbers; the descriptor track takes %d", part.name, width, self.max_dim
            )
        return within


def true_pairs(part: Part, queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (query, gallery position) of the true pairs: those stated, else those of equal labels.

    Raises UserError where there are none.
    """
    if part.embeddings.truth is not None:
        pairs = stated_pairs(part, queries, gallery, relations=RIGHT)
        return pairs.query, pairs.item
    labels, _ = codes(part.embeddings.labels)
    order = np.argsort(labels[gallery], kind="stable")
    ordered = labels[gallery][order]
    start, stop = (np.searchsorted(ordered, labels[queries], side) for side in ("left", "right"))
    query = np.repeat(np.arange(len(queries)), stop - start)
    within = np.arange(len(query)) - np.repeat(np.cumsum(stop - start) - (stop - start), stop - start)
    item = order[start[query] + within]
    other = gallery[item] != queries[query]
    if not other.any():
        raise UserError(f"{part.name}: no query has a copy in the index; accepted: labels that occur in both")
    return query[other], item[other]


class _First:
    """The first results of each query, and the rank of its first true one among those looked at, 0: none."""

    def __init__(self, truth: tuple[np.ndarray, np.ndarray]) -> None:
        self.truth = truth
        self.depth = 0
        self.tops: list[Ranking] = []
        self.hits: list[np.ndarray] = []

    def add(self, rows: np.ndarray, ranking: Ranking) -> None:
        """Add the results of queries `rows`."""
        mask = stated(rows[:, None], ranking.ids, *self.truth)
        self.depth = ranking.ids.shape[1]
        self.tops.append(top_of(ranking))
        self.hits.append(np.where(mask.any(axis=1), mask.argmax(axis=1) + 1, 0).astype(np.int32))


def best_pairs(
    asking: Asking, depth: int, limit: int, *, deepen: bool = True, seen: Seen | None = None
) -> ScoredPairs:
    """Return the `limit` best pairs; of equal scores the lower query, then the better rank, is first.

    With `deepen` a query whose last result of `depth` is among the best is asked again, eight times as deep:
    so the pairs are those of the whole Q x N, of which about twice `limit` are ever held. Else each query
    gives `depth` at most. `seen` is given each query's first `depth` results.
    """
    best = _Best(limit)
    waiting = np.arange(len(asking.queries.vectors))
    while len(waiting):
        last = np.full(len(asking.queries.vectors), -np.inf)
        for rows, ranking in asking.ask(waiting, depth):
            best.add(rows, ranking)
            last[rows] = ranking.scores[:, -1]
            if seen:
                seen(rows, ranking)
        seen = None
        if depth >= asking.gallery or not deepen:
            break
        best.prune()
        waiting = np.flatnonzero((last >= best.least) & np.isfinite(last))
        best.forget(waiting)
        depth = min(asking.gallery, 8 * depth)
    best.prune()
    return best.pairs


@dataclass(frozen=True)
class Asking:
    """Queries, where each is in the gallery itself (Q,), the index, and how many pictures it holds."""

    queries: Side
    self_ids: np.ndarray
    index: Index
    gallery: int

    def ask(self, rows: np.ndarray, depth: int) -> Iterator[tuple[np.ndarray, Ranking]]:
        """Yield (some of the query positions `rows`, their ranking)."""
        for tile, ranking in asked(self.index, cut(self.queries, rows), depth, self.self_ids[rows]):
            yield rows[tile], ranking


def usual_depth(asking: Asking, limit: int) -> int:
    """Return how many results of each query are most often enough for the `limit` best pairs of all."""
    return min(asking.gallery, max(SHOWN, 2 * limit // len(asking.queries.vectors)))


class _Best:
    """The `limit` best pairs so far; `least` is a score that all of those have, whatever else is found."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.least = -np.inf
        self.pairs = ScoredPairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    def add(self, rows: np.ndarray, ranking: Ranking) -> None:
        """Add the results of queries `rows`."""
        query, column = np.nonzero((ranking.scores >= self.least) & (ranking.ids >= 0))
        found = rows[query], ranking.ids[query, column], ranking.scores[query, column]
        self.pairs = ScoredPairs(*map(np.concatenate, zip(self.pairs, found, strict=True)))
        if len(self.pairs.query) > 2 * self.limit:
            self.prune()

    def prune(self) -> None:
        """Leave the best in order; what is beyond `limit` is gone."""
        order = np.lexsort((self.pairs.query, -self.pairs.scores))[: self.limit]
        self.pairs = ScoredPairs(*(column[order] for column in self.pairs))
        if len(order) == self.limit:
            self.least = max(self.least, float(self.pairs.scores[-1]))

    def forget(self, rows: np.ndarray) -> None:
        """Drop the pairs of queries that are asked again."""
        kept = ~np.isin(self.pairs.query, rows)
        self.pairs = ScoredPairs(*(column[kept] for column in self.pairs))
