"""Labels by the sum of their neighbours' scores. Pure numpy; Q queries, K neighbours, T labels kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Votes(NamedTuple):
    """`labels` (Q,T) int64, best first, -1 where fewer were voted for; `scores` (Q,T) float32, then 0."""

    labels: np.ndarray
    scores: np.ndarray


class Support(NamedTuple):
    """What a list says of some labels, (Q,T) float32 each; 0 where it does not hold the label."""

    total: np.ndarray
    highest: np.ndarray
    mean: np.ndarray


def label_votes(labels: np.ndarray, scores: np.ndarray, top: int = 3) -> Votes:
    """Return the `top` labels of the highest summed score of (Q,K) neighbours, best first.

    `labels` (Q,K) int64, best neighbour first, -1 where there is none. Of equal sums the label that is met
    first is first.
    """
    query, column = np.nonzero(labels >= 0)
    found = labels[query, column]
    order = np.lexsort((found, query))  # stable: of one label the best neighbour stays first
    query, found, column = query[order], found[order], column[order]
    begins = np.ones(len(query), dtype=bool)
    begins[1:] = (query[1:] != query[:-1]) | (found[1:] != found[:-1])
    starts = np.flatnonzero(begins)
    sums = np.add.reduceat(np.asarray(scores, np.float64)[query, column], starts) if len(starts) else starts
    query, found, column = query[starts], found[starts], column[starts]
    return _best(query, found, np.lexsort((column, -sums, query)), sums, (len(labels), top))


def _best(
    query: np.ndarray, label: np.ndarray, order: np.ndarray, sums: np.ndarray, shape: tuple[int, int]
) -> Votes:
    """Return the first T of each query's candidates (V,), which `order` puts best first within a query."""
    query, label, sums = query[order], label[order], sums[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    kept = rank < shape[1]
    votes = Votes(np.full(shape, -1, np.int64), np.zeros(shape, np.float32))
    votes.labels[query[kept], rank[kept]] = label[kept]
    votes.scores[query[kept], rank[kept]] = sums[kept]
    return votes


def support(labels: np.ndarray, scores: np.ndarray, candidates: np.ndarray) -> Support:
    """Return what neighbours (Q,K) of `labels` with `scores` say of the `candidates` (Q,T)."""
    same = (labels[:, None, :] == candidates[:, :, None]) & (candidates >= 0)[:, :, None]
    given = np.where(same, scores[:, None, :], 0).astype(np.float32)
    total, count = given.sum(axis=2), same.sum(axis=2)
    highest = np.where(same, scores[:, None, :], -np.inf).max(axis=2, initial=-np.inf)
    return Support(
        total,
        np.where(count > 0, highest, 0).astype(np.float32),
        (total / np.maximum(count, 1)).astype(np.float32),
    )
