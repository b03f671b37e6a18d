"""Revisited Oxford and Paris (Radenovic et al., CVPR 2018): mAP and mP@k at three levels of difficulty.

Every pair of a query and a gallery picture that the protocol knows is graded easy, hard or junk. A level says
which grades are to be found and which are deleted from the ranking, neither right nor wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from guie.metrics.groups import mean
from guie.metrics.hits import Hits, find_stated_hits, stated_mask, trapezoidal_average_precision, without_junk


class Level(NamedTuple):
    """`ok` grades are to be found, `junk` grades are deleted."""

    ok: tuple[str, ...]
    junk: tuple[str, ...]


LEVELS = {
    "E": Level(ok=("easy",), junk=("junk", "hard")),
    "M": Level(ok=("easy", "hard"), junk=("junk",)),
    "H": Level(ok=("hard",), junk=("junk", "easy")),
}


@dataclass(frozen=True)
class Grades:
    """The graded pairs: `query` (P,) row of the query, `item` (P,) gallery position, `grade` (P,) str."""

    query: np.ndarray
    item: np.ndarray
    grade: np.ndarray

    def of(self, grades: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return (query, item) of the pairs of these grades."""
        kept = np.any([np.asarray(self.grade) == grade for grade in grades], axis=0)
        return np.asarray(self.query)[kept], np.asarray(self.item)[kept]


def evaluate(ids: np.ndarray, grades: Grades, *, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Return {"mAP E": .., "mP@1 E": .., .. "mAP M": .., "mAP H": ..}, the means of `per_query`."""
    return {name: mean(values) for name, values in per_query(ids, grades, ks=ks).items()}


def per_query(ids: np.ndarray, grades: Grades, *, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, np.ndarray]:
    """Return the metrics of `evaluate` as {name: (Q,)}; NaN where a query has no picture of that level.

    `ids` (Q,K) gallery positions, best first, each once, -1 for none. The authors rank the whole gallery;
    pictures beyond the depth K count as not found.
    """
    values = {}
    for name, level in LEVELS.items():
        hits = hits_at(ids, grades, level)
        counts = hits.relevant > 0
        filled = replace(hits, relevant=np.maximum(hits.relevant, 1))
        values[f"mAP {name}"] = np.where(counts, trapezoidal_average_precision(filled), np.nan)
        for k in ks:
            values[f"mP@{k} {name}"] = np.where(counts, precision_at(filled, k), np.nan)
    return values


def hits_at(ids: np.ndarray, grades: Grades, level: Level) -> Hits:
    """Return the hits of the rankings `ids` (Q,K) at one level, its junk deleted from them.

    Raises ValueError where a ranking holds more of a query's pictures than there are: one is in it twice.
    """
    hits = find_stated_hits(ids, *grades.of(level.ok), distinct=True)
    if (np.bincount(hits.query, minlength=len(hits)) > hits.relevant).any():
        raise ValueError("ids: a picture twice in one ranking; expected each once")
    return without_junk(hits, stated_mask(ids, *grades.of(level.junk)))


def precision_at(hits: Hits, k: int) -> np.ndarray:
    """Return mP@k of the revisited protocol, (Q,): hits in the top k' over k' = min(rank of the last hit, k).

    Where not all of a query's pictures are among its results, the last is taken to be beyond k: k' = k.
    """
    last = np.full(len(hits), k)
    complete = hits.order == hits.relevant[hits.query]
    last[hits.query[complete]] = np.minimum(hits.rank[complete], k)
    within = hits.rank <= last[hits.query]
    return np.bincount(hits.query[within], minlength=len(hits)) / last
