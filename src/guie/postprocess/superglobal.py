"""Re-ranking by global features alone: SuperGlobal (Shao et al., ICCV 2023)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from guie.postprocess.step import ANY, SOME, Ranges, Stage, Step, followed_by
from guie.types import Ranking, Side


class SuperGlobal(Step):
    """Two scores from refined vectors, averaged (Shao et al. 2023, section 3.4, and its program).

    Each of the first `shortlist` results becomes the weighted mean of itself, weight 1, and its `neighbours`
    nearest among them, weight `beta` x similarity. One score is that of the query with these; the other is
    that of the largest value in each dimension over the `neighbours` + 1 best of them. Equal scores: lower
    gallery position first.
    """

    kind = "rerank"
    ranges: ClassVar[Ranges] = {"shortlist": SOME, "neighbours": ANY, "beta": ANY}

    def __init__(self, shortlist: int = 400, neighbours: int = 9, beta: float = 0.15) -> None:
        self.shortlist = shortlist
        self.neighbours = neighbours
        self.beta = beta

    @property
    def depth(self) -> int:
        """Return the length of the shortlist."""
        return self.shortlist

    def rerank(self, ranking: Ranking, queries: Side, stage: Stage, self_ids: np.ndarray | None) -> Ranking:
        """Return the shortlist in the order of the new scores, then the rest as it was."""
        ids = ranking.ids[:, : self.shortlist].copy()
        scores = ranking.scores[:, : self.shortlist].copy()
        for row, vector in enumerate(queries.vectors):
            found = ids[row][ids[row] >= 0]
            if len(found):
                score = self._scores(vector, np.asarray(stage.gallery.vectors[found], dtype=np.float32))
                order = np.lexsort((found, -score))
                ids[row, : len(found)], scores[row, : len(found)] = found[order], score[order]
        return followed_by(Ranking(ids, scores), ranking)

    def _scores(self, query: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Return (M,) scores of one query (D,) with its results (M,D)."""
        refined = self._refined(found)
        first = refined @ query
        best = refined[np.argsort(-first, kind="stable")[: self.neighbours + 1]]
        return (first + refined @ best.max(axis=0)) / 2

    def _refined(self, found: np.ndarray) -> np.ndarray:
        similarity = found @ found.T
        np.fill_diagonal(similarity, -np.inf)
        count = min(self.neighbours, len(found) - 1)
        nearest = np.argpartition(-similarity, max(count - 1, 0), axis=1)[:, :count]
        weights = np.float32(self.beta) * np.take_along_axis(similarity, nearest, axis=1)
        total = found + np.einsum("mk,mkd->md", weights, found[nearest])
        return total / (1 + weights.sum(axis=1, keepdims=True))
