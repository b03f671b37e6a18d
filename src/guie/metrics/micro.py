"""Micro-averaged precision: the answers of all queries stand in one list, sorted by score.

So scores must mean the same for every query. Shapes: P answers, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from guie.metrics.bootstrap import percentile_interval


@dataclass(frozen=True)
class Answers:
    """Answers in one list, best first.

    `query` (P,) int64; `correct` (P,) bool; `scores` (P,) float64 descending; `positives` (Q,) int64: how
    many correct answers each query has, given or not.
    """

    query: np.ndarray
    correct: np.ndarray
    scores: np.ndarray
    positives: np.ndarray

    def __len__(self) -> int:
        """Return P, the number of answers."""
        return len(self.query)


class OperatingPoint(NamedTuple):
    """`recall` reached by the answers with at least `threshold`; that is NaN where there is no such point."""

    recall: float
    threshold: float


class Curve(NamedTuple):
    """`precision`, `recall`, `scores` (P,): of the answers down to each one, best first."""

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray


def sorted_answers(
    query: np.ndarray,
    correct: np.ndarray,
    scores: np.ndarray,
    positives: np.ndarray,
    *,
    ties: Literal["against", "given"],
) -> Answers:
    """Return answers (P,) sorted by falling score.

    Of equal scores the wrong ones come first where ties go `against` the system, else they stay in the order
    given. Raises ValueError where a score is NaN.
    """
    scores = np.asarray(scores, dtype=np.float64)
    correct = np.asarray(correct, dtype=bool)
    if np.isnan(scores).any():
        raise ValueError(f"scores: {np.isnan(scores).sum()} of {len(scores)} are NaN; expected numbers")
    keys = (correct, -scores) if ties == "against" else (-scores,)
    order = np.lexsort(keys)
    counts = np.asarray(positives, dtype=np.int64)
    return Answers(np.asarray(query, dtype=np.int64)[order], correct[order], scores[order], counts)


def curve(answers: Answers) -> Curve:
    """Return precision and recall after each answer. Raises ValueError where nothing is to be found."""
    found = np.cumsum(answers.correct)
    precision = found / np.arange(1, len(answers) + 1)
    return Curve(precision, found / _num_positives(answers), answers.scores)


def average_precision(answers: Answers) -> float:
    """Return AP, not interpolated: sum over answers i of P(i) correct(i), over all there is to find."""
    found = np.flatnonzero(answers.correct)
    return float(np.sum(np.arange(1, len(found) + 1) / (found + 1)) / _num_positives(answers))


def recall_at_precision(answers: Answers, precision: float = 0.9) -> OperatingPoint:
    """Return the highest recall at which precision is at least `precision`, and the highest score there."""
    points = curve(answers)
    reached = np.flatnonzero(points.precision >= precision)
    if not len(reached):
        return OperatingPoint(0.0, float("nan"))
    place = np.searchsorted(points.recall, points.recall[reached[-1]])  # its first answer
    return OperatingPoint(float(points.recall[place]), float(points.scores[place]))


def per_query(answers: Answers) -> np.ndarray:
    """Return (Q,) values whose mean is the average precision: what each query's answers add to it."""
    found = np.flatnonzero(answers.correct)
    precision = np.arange(1, len(found) + 1) / (found + 1)
    num_queries = len(answers.positives)
    added = np.bincount(answers.query[found], weights=precision, minlength=num_queries)
    return added * num_queries / _num_positives(answers)


def bootstrap_interval(
    answers: Answers, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of AP; queries are drawn, each with all of its answers.

    Every draw is a ranking of its own: an answer moves the precision of all that follow, which the mean of
    `per_query` does not know (its interval is wider). Draws with nothing to be found are left out.
    """
    rng = np.random.default_rng(seed)
    num_queries = len(answers.positives)
    drawn = (rng.integers(num_queries, size=num_queries) for _ in range(samples))
    times = (np.bincount(queries, minlength=num_queries) for queries in drawn)
    values = [average_precision_of_draw(answers, each) for each in times if each @ answers.positives]
    return percentile_interval(np.array(values), level)


def average_precision_of_draw(answers: Answers, times: np.ndarray) -> float:
    """Return AP where query q is there `times[q]` times (Q,), to second order in the share of one answer.

    An answer's copies stand side by side; all are given the precision of the middle one.
    """
    weights = times[answers.query]
    found = np.flatnonzero(answers.correct)
    own = weights[found]
    correct, all_answers = np.cumsum(own) - own, np.cumsum(weights)[found] - own
    middle = (own + 1) / 2
    precision = (correct + middle) / (all_answers + middle)
    return float(np.sum(own * precision) / (times @ answers.positives))


def _num_positives(answers: Answers) -> int:
    number = int(answers.positives.sum())
    if number <= 0:
        raise ValueError("positives: no query has a correct answer to be found; expected at least one")
    return number
