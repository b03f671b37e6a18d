"""From a query's neighbours to one label with a score: the recognition systems as one object.

Lists of one or several models are merged, confirmed by local features, counted label by label; what the
query shares with pictures of nothing known, and labels seen too often, take off its score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from guie.errors import UserError
from guie.local.fusion import inlier_score, ordered
from guie.metrics.votes import vote
from guie.recognise.evidence import Evidence, Neighbours, support
from guie.recognise.lists import Similarity, merged, similarities
from guie.recognise.nothing import ban_frequent
from guie.search.exact import Exact
from guie.types import Ranking, Search, Side


class Predictions(NamedTuple):
    """One answer per query: `ids` (Q,) files, `labels` (Q,) str, "" for no answer, `scores` (Q,) float32."""

    ids: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class View:
    """What one model sees: `queries`, a `gallery` with labels, and `negatives`, pictures of nothing known.

    Its list counts `weight` times in the merged one; with 0 it is looked at by the confidence model alone.
    `space_id` names the embedding space.
    """

    queries: Side
    gallery: Side
    negatives: Side | None = None
    weight: float = 1.0
    search: Search = field(default_factory=Exact)
    space_id: str = ""


class Recogniser:
    """The `neighbours` nearest vote for their label with their `similarity`; `labels` candidates are kept.

    `local` (`guie.local.rerank.LocalFeatures`) adds inlier scores to the first `local.top` neighbours.
    `confidence` (`guie.recognise.confidence.Boosted`) chooses among the candidates; else the first is the
    answer and the sum of its votes the score. `penalty` (`guie.recognise.nothing.Penalty`) lowers it by the
    likeness to pictures of nothing known; labels of more than `ban_above` queries score minus their number.
    """

    def __init__(
        self,
        neighbours: int = 10,
        similarity: Similarity = "cosine",
        labels: int = 3,
        local: Any = None,
        confidence: Any = None,
        penalty: Any = None,
        ban_above: int | None = None,
    ):
        for name, value in {"neighbours": neighbours, "labels": labels}.items():
            if value < 1:
                raise UserError(f"recognise.{name}: {value}; accepted: 1 or more")
        if local is not None:
            try:
                local.check()
            except UserError as error:
                raise UserError(f"recognise.local.{error}") from error
        self.neighbours, self.similarity, self.labels = neighbours, similarity, labels
        self.local, self.confidence, self.penalty = local, confidence, penalty
        self.ban_above = ban_above

    def predict(self, views: Mapping[str, View]) -> Predictions:
        """Return the answers for the queries that all `views` share; the ban counts over all of them."""
        evidence, names = self.evidence(views)
        if self.confidence is not None:
            labels, scores = self.confidence.choose(evidence)
        else:
            labels, scores = evidence.votes.labels[:, 0], evidence.votes.scores[:, 0]
        if self.penalty is not None:
            if not evidence.negatives:
                raise UserError(
                    "recognise.penalty: no pictures of nothing known; accepted: with them, or null"
                )
            scores = self.penalty.apply(scores, np.mean(list(evidence.negatives.values()), axis=0))
        if self.ban_above is not None:
            scores = ban_frequent(labels, scores, self.ban_above)
        names = np.append(names, "")  # the last: what -1 stands for
        return Predictions(_files(views), names[labels], scores.astype(np.float32))

    def fit(self, views: Mapping[str, View], truth: Sequence[Sequence[str]]) -> None:
        """Train `confidence` on queries of which any label of `truth` (Q,) is right.

        Labels that the gallery lacks, or none: nothing known.
        """
        if self.confidence is None:
            raise UserError("recognise.confidence: none; accepted: a confidence model to be trained")
        evidence, names = self.evidence(views)
        numbers = {name: number for number, name in enumerate(names)}
        right = [[numbers[name] for name in labels if name in numbers] for labels in truth]
        self.confidence.fit(evidence, _one_of(right, evidence.votes.labels))

    def evidence(self, views: Mapping[str, View]) -> tuple[Evidence, np.ndarray]:
        """Return what is known of the queries, and the label of each number (C,) str."""
        first = _checked(views)
        numbers, names = _codes(first.gallery.labels)
        found = {name: self._neighbours(view) for name, view in views.items()}
        weighed = {name: view.weight for name, view in views.items() if view.weight}
        whole = merged([found[name] for name in weighed], list(weighed.values()), self.neighbours)
        confirmed = self._confirmed(whole, first)
        ranked = ordered(whole.ids, whole.scores + confirmed)
        votes = vote(_labels(numbers, ranked.ids), ranked.scores, self.labels)
        lists = {name: Neighbours(_labels(numbers, one.ids), one.scores) for name, one in found.items()}
        inliers: np.ndarray | None = support(_labels(numbers, whole.ids), confirmed, votes.labels).total
        negatives, inliers = self._negatives(views), inliers if self.local else None
        return Evidence(votes, lists, negatives, inliers, self._made_by(views)), names

    def _made_by(self, views: Mapping[str, View]) -> dict[str, Any]:
        made: dict[str, Any] = {"neighbours": self.neighbours, "similarity": self.similarity}
        if self.local is not None:
            made |= {f"local.{name}": getattr(self.local, name) for name in ("top", "cap", "weight")}
        made |= {f"weights.{name}": view.weight for name, view in views.items()}
        return made | {f"space of {name}": view.space_id for name, view in views.items()}

    def _neighbours(self, view: View) -> Ranking:
        found = view.search.index(view.gallery).search(view.queries, self.neighbours)
        return similarities(found, self.similarity)

    def _confirmed(self, ranking: Ranking, view: View) -> np.ndarray:
        """Return the weighted inlier score (Q,K) of each place of the list, 0 without local features."""
        inliers = np.zeros(ranking.ids.shape, np.int32)
        if self.local is None:
            return inliers
        top = self.local.top
        inliers[:, :top] = self.local.inliers(ranking.ids[:, :top], view.queries, view.gallery)
        return np.float32(self.local.weight) * inlier_score(inliers, self.local.cap)

    def _negatives(self, views: Mapping[str, View]) -> dict[str, np.ndarray]:
        return {
            name: view.search.index(view.negatives).search(view.queries, self.neighbours).scores
            for name, view in views.items()
            if view.negatives is not None
        }


def _files(views: Mapping[str, View]) -> np.ndarray:
    """Return the files of the queries, or their numbers where they have none."""
    queries = next(iter(views.values())).queries
    return np.arange(len(queries.vectors)).astype(str) if queries.files is None else queries.files


def _checked(views: Mapping[str, View]) -> View:
    """Return the first view; UserError where the views differ in their pictures."""
    name, first = next(iter(views.items()))
    if first.gallery.labels is None:
        raise UserError(f"recognise: {name} has a gallery without labels; accepted: with labels")
    for other, view in views.items():
        for side in ("queries", "gallery"):
            mine, others = getattr(first, side).files, getattr(view, side).files
            if mine is not None and (others is None or not np.array_equal(mine, others)):
                raise UserError(
                    f"recognise: {other} has other {side} than {name}; accepted: the same pictures"
                )
    if not any(view.weight for view in views.values()):
        raise UserError("recognise: every model weighs 0; accepted: a weight for one at least")
    return first


def _codes(labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers (N,) int64 of the labels, in the order in which they are met, and the labels (C,)."""
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(str(label), len(numbers)) for label in (() if labels is None else labels)]
    return np.array(codes, np.int64), np.array(list(numbers), dtype=object)


def _labels(numbers: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the numbers of the labels of gallery positions (Q,K), -1 where there is none."""
    return np.where(ids >= 0, numbers[np.maximum(ids, 0)], -1) if len(numbers) else np.full(ids.shape, -1)


def _one_of(right: Sequence[Sequence[int]], candidates: np.ndarray) -> np.ndarray:
    """Return the best candidate (Q,T) that is right, else a right label, -1 where there is none; (Q,)."""
    found = zip(candidates.tolist(), right, strict=True)
    return np.array(
        [next((c for c in [*row, *labels] if c in labels), -1) for row, labels in found], np.int64
    )
