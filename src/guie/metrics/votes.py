"""Labels by vote of the nearest neighbours. Shapes: Q queries, K neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

KS = (10, 20, 100, 200)


class Votes(NamedTuple):
    """`labels` (Q,) int64 that won, -1 where nobody voted; `weights` (Q,) float64 that they got."""

    labels: np.ndarray
    weights: np.ndarray


def vote(labels: np.ndarray, weights: np.ndarray) -> Votes:
    """Return the label with the most weight among each query's neighbours.

    `labels` (Q,K) int64 of the neighbours, nearest first, -1 where there is none; `weights` (Q,K). Of labels
    with equal weight the one met first wins.
    """
    query, column = np.nonzero(labels >= 0)
    label = labels[query, column]
    order = np.lexsort((label, query))  # stable: a label's neighbours stay nearest first
    query, label, column = query[order], label[order], column[order]
    begins = np.ones(len(query), dtype=bool)
    begins[1:] = (query[1:] != query[:-1]) | (label[1:] != label[:-1])
    starts = np.flatnonzero(begins)
    sums = np.add.reduceat(np.asarray(weights, dtype=np.float64)[query, column], starts)
    return _winners(query[starts], label[starts], column[starts], sums, len(labels))


def _winners(
    query: np.ndarray, label: np.ndarray, first: np.ndarray, weight: np.ndarray, num_queries: int
) -> Votes:
    """Return each query's best candidate of (V,) by weight, then by the rank `first` at which it is met."""
    order = np.lexsort((first, -weight, query))
    best = order[np.diff(query[order], prepend=-1) > 0]
    won = Votes(np.full(num_queries, -1, dtype=np.int64), np.zeros(num_queries))
    won.labels[query[best]] = label[best]
    won.weights[query[best]] = weight[best]
    return won


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
    won = {k: knn_vote(labels, similarities, k, temperature=temperature).labels for k in fitting}
    return {f"kNN@{k}": (won[k] == query_labels).astype(np.float64) for k in fitting}
