"""Copy detection (DISC21, Image Similarity Challenge; Douze et al. 2021): scored pairs against true pairs.

A prediction is a pair of a query and a reference with a score; the pairs of all queries stand in one list,
and the true ones should come first. Queries and references are numbers from 0; `numbered` gives names theirs.
Shapes: P predicted pairs, T true pairs, Q queries.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from guie.metrics.hits import count_stated, stated
from guie.metrics.micro import Answers, average_precision, recall_at_precision, sorted_answers

# What the challenge accepts from one system.
MOST_PAIRS = 500_000


class ScoredPairs(NamedTuple):
    """`query`, `item` (P,) int64; `scores` (P,), the higher the more alike."""

    query: np.ndarray
    item: np.ndarray
    scores: np.ndarray


def evaluate(pairs: ScoredPairs, true_query: np.ndarray, true_item: np.ndarray) -> dict[str, float]:
    """Return uAP, RP90 (recall at precision 0.9), RP90_threshold (its score), R@1 and R@10.

    `true_query`, `true_item` (T,) are the true pairs. Where precision never reaches 0.9, RP90 is 0 and its
    threshold NaN. Raises ValueError as `ranked_pairs` does.
    """
    answers = ranked_pairs(pairs, true_query, true_item)
    point = recall_at_precision(answers, 0.9)
    values = {"uAP": average_precision(answers), "RP90": point.recall, "RP90_threshold": point.threshold}
    return values | {f"R@{k}": recall_at(answers, k) for k in (1, 10)}


def ranked_pairs(
    pairs: ScoredPairs, true_query: np.ndarray, true_item: np.ndarray, *, num_queries: int | None = None
) -> Answers:
    """Return predicted pairs as one list, of equal scores the false ones first ("against the system").

    `num_queries` is Q, by default as many as pairs name. A true pair stated twice counts once. Raises
    ValueError on more than 500,000 predicted pairs, one predicted twice, a NaN score.
    """
    if len(pairs.query) > MOST_PAIRS:
        raise ValueError(f"pairs: {len(pairs.query):,}; expected {MOST_PAIRS:,} at most, the globally best")
    named = 1 + int(max(np.max(pairs.query, initial=-1), np.max(true_query, initial=-1)))
    counts = count_stated(pairs.query, pairs.item, named)
    if counts.sum() < len(pairs.query):
        raise ValueError(f"pairs: {len(pairs.query) - counts.sum():,} predicted twice; expected each once")
    correct = stated(pairs.query, pairs.item, true_query, true_item)
    positives = count_stated(true_query, true_item, max(named, num_queries or 0))
    return sorted_answers(pairs.query, correct, pairs.scores, positives, ties="against")


def recall_at(answers: Answers, k: int) -> float:
    """Return R@k of pairs: the share of the true ones that are among their query's k best.

    Not the share of queries with a hit: a query with three copies counts three times.
    """
    order = np.argsort(answers.query, kind="stable")
    query = answers.query[order]
    rank = np.arange(1, len(query) + 1) - np.searchsorted(query, query)
    return float(answers.correct[order][rank <= k].sum() / answers.positives.sum())


def numbered(*columns: np.ndarray) -> list[np.ndarray]:
    """Return columns of names (P,) as numbers from 0, the same name the same number in all of them."""
    numbers: dict[str, int] = {}
    return [
        np.fromiter((numbers.setdefault(name, len(numbers)) for name in column), np.int64, len(column))
        for column in columns
    ]
