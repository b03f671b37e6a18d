"""Labels by vote of the nearest neighbours. Shapes: Q queries, K neighbours, T labels kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

KS = (10, 20, 100, 200)


class Votes(NamedTuple):
    """`labels` (Q,T) int64, best first, -1 where fewer were voted for; `scores` (Q,T) float64, then 0."""

    labels: np.ndarray
    scores: np.ndarray


def vote(labels: np.ndarray, scores: np.ndarray, top: int = 1) -> Votes:
    """Return the T = `top` labels of the highest summed score among each query's neighbours, best first.

    `labels` (Q,K) int64 of the neighbours, nearest first, -1 where there is none; `scores` (Q,K). Of equal
    sums the label that is met first is first.
    """
    query, column = np.nonzero(labels >= 0)
    found = labels[query, column]
    order = np.lexsort((found, query))  # stable: a label's neighbours stay nearest first
    query, found, column = query[order], found[order], column[order]
    begins = np.ones(len(query), dtype=bool)
    begins[1:] = (query[1:] != query[:-1]) | (found[1:] != found[:-1])
    starts = np.flatnonzero(begins)
    sums = np.add.reduceat(np.asarray(scores, dtype=np.float64)[query, column], starts)
    query, found, column = query[starts], found[starts], column[starts]
    return _best(query, found, np.lexsort((column, -sums, query)), sums, (len(labels), top))


def _best(
    query: np.ndarray, label: np.ndarray, order: np.ndarray, sums: np.ndarray, shape: tuple[int, int]
) -> Votes:
    """Return the first T of each query's candidates (V,), which `order` puts best first within a query."""
    query, label, sums = query[order], label[order], sums[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    kept = rank < shape[1]
    votes = Votes(np.full(shape, -1, np.int64), np.zeros(shape))
    votes.labels[query[kept], rank[kept]] = label[kept]
    votes.scores[query[kept], rank[kept]] = sums[kept]
    return votes


def knn_vote(labels: np.ndarray, similarities: np.ndarray, k: int, *, temperature: float = 0.07) -> Votes:
    """Return the vote of the k nearest, each weighing exp(similarity / T) (Wu et al., CVPR 2018).

    `labels` (Q,K) as in `vote`; `similarities` (Q,K), at most 1.
    """
    return vote(labels[:, :k], np.exp(np.asarray(similarities[:, :k], dtype=np.float64) / temperature))


def knn_correct(
    labels: np.ndarray,
    similarities: np.ndarray,
    query_labels: np.ndarray,
    *,
    ks: tuple[int, ...] = KS,
    temperature: float = 0.07,
) -> dict[str, np.ndarray]:
    """Return {"kNN@10": (Q,) 1 where the vote of the 10 nearest is the query's label, else 0, ..}.

    Its mean is the kNN accuracy. A k of more than K neighbours is left out rather than approximated; where
    the gallery is smaller, give all of it and -1.
    """
    fitting = [k for k in ks if k <= labels.shape[1]]
    won = {k: knn_vote(labels, similarities, k, temperature=temperature).labels[:, 0] for k in fitting}
    return {f"kNN@{k}": (won[k] == query_labels).astype(np.float64) for k in fitting}
