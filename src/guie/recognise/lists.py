"""Lists of neighbours before the vote. Pure numpy; Q queries, K neighbours, N gallery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from guie.metrics.votes import vote
from guie.types import Ranking

Similarity = Literal["cosine", "squared_l2"]


def similarities(ranking: Ranking, measure: Similarity) -> Ranking:
    """Return cosines of (Q,K) as they are, or as 1 - the squared distance of unit vectors: 2 cos - 1."""
    return ranking if measure == "cosine" else Ranking(ranking.ids, 2 * ranking.scores - 1)


def merged(rankings: Sequence[Ranking], weights: Sequence[float], k: int) -> Ranking:
    """Return the k gallery positions of the highest sum of score * weight over several lists, (Q,k).

    A position that a list does not hold gets nothing from it. Ties to the lower position.
    """
    ids = np.concatenate([one.ids for one in rankings], axis=1)
    weighed = [one.scores * np.float32(weight) for one, weight in zip(rankings, weights, strict=True)]
    order = np.argsort(ids, axis=1, kind="stable")
    by_position = np.take_along_axis(np.concatenate(weighed, axis=1), order, axis=1)
    best = vote(np.take_along_axis(ids, order, axis=1), by_position, top=k)
    scores = np.where(best.labels < 0, -np.inf, best.scores).astype(np.float32)
    return Ranking(best.labels.astype(np.int32), scores)
