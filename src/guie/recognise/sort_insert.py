"""Discriminative re-ranking: results with the label that the query is recognised as.

Yokoo et al., Two-stage Discriminative Re-ranking for Large-scale Landmark Retrieval, CVPR workshops 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from guie.errors import UserError
from guie.metrics.votes import vote
from guie.postprocess.step import SOME, Kind, Ranges, Stage, Step
from guie.search.exact import knn
from guie.types import Index, Ranking, Side


class Recognised(NamedTuple):
    """`labels` (N,) int64, -1 where there is none, and `scores` (N,) float32 of one side."""

    labels: np.ndarray
    scores: np.ndarray


class SortInsert(Step):
    """Results of the query's label first, and behind these what else the gallery has of it.

    Labels are those of the training vectors: each picture gets the one of the highest summed similarity
    among its `neighbours` nearest there; its score is that sum / `neighbours`. Sort: results of the query's
    label come first, otherwise in their order. Insert: other gallery pictures of the label follow them,
    best score first, where their score + the query's is above `threshold` (None: all of them, as in the first
    version). A query's own position is never inserted.
    """

    kind: ClassVar[Kind] = "rerank"
    needs_bank: ClassVar[bool] = True
    ranges: ClassVar[Ranges] = {"neighbours": SOME}

    def __init__(self, neighbours: int = 3, threshold: float | None = 0.6):
        self.neighbours, self.threshold = neighbours, threshold
        self._state: dict[str, np.ndarray] = {}

    def fit(self, bank: Side) -> None:
        """Take over training vectors (N,D) and their labels."""
        if bank.labels is None:
            raise UserError("bank: no labels; accepted: training vectors with labels")
        codes = np.unique(np.asarray(bank.labels, dtype=str), return_inverse=True)[1]
        self._state = {"vectors": np.asarray(bank.vectors, np.float32), "labels": codes.astype(np.int64)}

    def state(self) -> dict[str, np.ndarray]:
        """Return the training `vectors` (N,D) and their `labels` (N,) as numbers."""
        return self._state

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned."""
        self._state = dict(state)

    def prepare(self, gallery: Side, index: Index) -> Recognised:
        """Return the gallery's labels."""
        return self._recognised(gallery.vectors)

    def rerank(self, ranking: Ranking, queries: Side, stage: Stage, self_ids: np.ndarray | None) -> Ranking:
        """Return (Q,K) as `sort_and_insert`, the labels of queries by the training vectors, too."""
        kept: Any = stage.kept
        return sort_and_insert(
            ranking, self._recognised(queries.vectors), kept, threshold=self.threshold, self_ids=self_ids
        )

    def _recognised(self, vectors: np.ndarray) -> Recognised:
        bank = self._state
        near = knn(vectors, bank["vectors"], self.neighbours)
        labels = np.where(near.ids >= 0, bank["labels"][near.ids], -1)
        won = vote(labels, near.scores)
        return Recognised(won.labels[:, 0], (won.scores[:, 0] / self.neighbours).astype(np.float32))


def sort_and_insert(
    ranking: Ranking,
    queries: Recognised,
    gallery: Recognised,
    *,
    threshold: float | None = 0.6,
    self_ids: np.ndarray | None = None,
) -> Ranking:
    """Return (Q,K) as `SortInsert` orders it; of equal gallery scores the lower position is first.

    `queries` and `gallery`: as what each is recognised. Scores are 2 + similarity of the label's results,
    1 + score of what is inserted, then similarities, each no higher than the one before.
    """
    by_label = np.lexsort((-gallery.scores, gallery.labels))  # stable: equal scores by position
    ordered_labels = gallery.labels[by_label]
    ids, scores = ranking.ids.copy(), ranking.scores.copy()
    for row, label in enumerate(queries.labels):
        if label < 0:
            continue
        old = ids[row][ids[row] >= 0]
        first, last = np.searchsorted(ordered_labels, [label, label + 1])
        own = -1 if self_ids is None else self_ids[row]
        offered = _offered(by_label[first:last], gallery.scores, queries.scores[row], threshold)
        new = offered[~np.isin(offered, np.append(old, own))]
        positive = gallery.labels[old] == label
        similar = ranking.scores[row, : len(old)]
        parts = [old[positive], new, old[~positive]]
        values = [similar[positive] + 2, gallery.scores[new] + 1, similar[~positive]]
        width = min(ids.shape[1], len(old) + len(new))
        ids[row, :width] = np.concatenate(parts)[:width]
        scores[row, :width] = np.minimum.accumulate(np.concatenate(values)[:width])
    return Ranking(ids, scores)


def _offered(ids: np.ndarray, scores: np.ndarray, mine: float, threshold: float | None) -> np.ndarray:
    """Return the ids (M,) that may be inserted."""
    return ids if threshold is None else ids[scores[ids] + mine > threshold]
