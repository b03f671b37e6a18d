"""Recognition: one label for each query, or none, by a vote of its neighbours; and plain kNN accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from guie.errors import UserError
from guie.metrics import micro
from guie.metrics.groups import IGNORED, USAGES
from guie.metrics.recognition import accuracy, gap, ranked_predictions
from guie.metrics.votes import knn_correct, knn_vote, vote
from guie.protocols.part import (
    Columns,
    Numbers,
    Outcome,
    Part,
    Protocol,
    accepted,
    codes,
    interval,
    joined,
    positive,
    top_of,
)
from guie.types import Ranking

_DRAWS = 200  # of the interval: each one ranks all predictions again


@dataclass(frozen=True)
class Recognition(Protocol):
    """GAP, GAP- and ACC of the label that the `k` nearest vote for (Google Landmarks recognition; Met).

    A neighbour's vote weighs its similarity, or exp(similarity / `temperature`); the winner's weight is the
    score. Queries of the label `distractor` show nothing known: any prediction is wrong. Of a query with
    several landmarks any one is right. Where rows have a usage, its public and private part are told apart.
    """

    by_label: ClassVar[bool] = True
    k: int = 1
    temperature: float | None = None
    distractor: str = "distractor"
    metric: str = "GAP"
    crops: Sequence[str] = ()
    asks: Sequence[str] = ("query",)
    answers: Sequence[str] = ("index",)

    def __post_init__(self) -> None:
        positive("k", [self.k])
        warm = self.temperature is None or self.temperature > 0
        accepted("temperature", self.temperature, warm, "above 0, or null")

    def evaluate(self, part: Part) -> Outcome:
        """Return the numbers of one prediction for each query."""
        queries, gallery = part.roles(self.roles[0])
        queries = queries[_usage(part)[queries] != IGNORED]
        labels, names = codes(part.embeddings.labels)
        tiles = []
        for _, ranking in part.asked(queries, gallery, self.k):
            near = np.where(ranking.ids >= 0, labels[gallery][ranking.ids], -1)
            won = (
                vote(near, np.where(near >= 0, ranking.scores, 0.0))
                if self.temperature is None
                else knn_vote(near, ranking.scores, self.k, temperature=self.temperature)
            )
            tiles.append((won.labels, won.weights, top_of(ranking)))
        predicted, scores = (np.concatenate([tile[i] for tile in tiles]) for i in (0, 1))
        texts = np.array([names[label] if label >= 0 else "" for label in predicted], dtype=object)
        texts[texts == self.distractor] = ""
        answers = _Predictions(texts, scores, *self._right(part, queries, texts))
        return Outcome(
            self._numbers(answers, _usage(part)[queries]) | {"gallery": len(gallery)},
            self._table(part, queries, gallery, answers, joined([tile[2] for tile in tiles])),
        )

    def _right(self, part: Part, queries: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (correct, known), (Q,) bool."""
        truth = np.asarray(part.embeddings.labels, dtype=object)[queries]
        known = truth != self.distractor
        if not known.any():
            raise UserError(
                f"{part.name}: every query is {self.distractor!r}; accepted: some that show something known"
            )
        several = part.embeddings.further.get("landmarks")
        if several is None:
            return (predicted == truth) & known, known
        accepted_labels = [text.split() for text in np.asarray(several, dtype=object)[queries]]
        right = [label in those for label, those in zip(predicted, accepted_labels, strict=True)]
        return np.array(right, dtype=bool) & known, known

    def _numbers(self, answers: _Predictions, usage: np.ndarray) -> Numbers:
        numbers = answers.numbers()
        ranked = ranked_predictions(answers.correct, answers.scores, answers.known, answered=answers.answered)
        numbers["GAP_interval"] = list(micro.bootstrap_interval(ranked, samples=_DRAWS))
        for name in USAGES:
            chosen = usage == name
            if (chosen & answers.known).any():
                numbers |= {f"{key} {name}": value for key, value in answers.of(chosen).numbers().items()}
        return numbers | {"queries": len(answers.known), "known": int(answers.known.sum())}

    def _table(
        self, part: Part, queries: np.ndarray, gallery: np.ndarray, answers: _Predictions, top: Ranking
    ) -> Columns:
        table = part.described(queries) | {"usage": _usage(part)[queries], "predicted": answers.labels}
        table |= {"prediction_score": answers.scores.astype(np.float64)}
        table["ACC"] = np.where(answers.known, answers.correct, np.nan)
        first_hit = answers.correct.astype(np.int32)
        table |= {"relevant": answers.known.astype(np.int64), "first_hit": first_hit}
        return table | part.shown(top, gallery)


def _usage(part: Part) -> np.ndarray:
    """Return the usage of each row, (N,) str, '' where it has none."""
    rows = len(part.embeddings.vectors)
    return np.asarray(part.embeddings.further.get("usage", np.full(rows, "")), dtype=object)


class _Predictions(NamedTuple):
    """(Q,): predicted `labels` ('' none), their `scores`, whether `correct`, whether the query is `known`."""

    labels: np.ndarray
    scores: np.ndarray
    correct: np.ndarray
    known: np.ndarray

    @property
    def answered(self) -> np.ndarray:
        return self.labels != ""

    def of(self, chosen: np.ndarray) -> _Predictions:
        return _Predictions(*(column[chosen] for column in self))

    def numbers(self) -> Numbers:
        minus = self.answered & self.known
        return {
            "GAP": gap(self.correct, self.scores, self.known, answered=self.answered),
            "GAP-": gap(self.correct, self.scores, self.known, answered=minus),
            "ACC": accuracy(self.correct, self.known),
        }


@dataclass(frozen=True)
class KNN(Protocol):
    """kNN accuracy: the k nearest vote with exp(similarity / T), k in `ks` (Wu et al., CVPR 2018).

    Queries whose label the gallery lacks are dropped and counted.
    """

    ks: Sequence[int] = (10, 20, 100, 200)
    temperature: float = 0.07
    metric: str = "kNN@20"
    crops: Sequence[str] = ()
    asks: Sequence[str] = ("test",)
    answers: Sequence[str] = ("train",)

    def __post_init__(self) -> None:
        positive("ks", self.ks)
        accepted("temperature", self.temperature, self.temperature > 0, "above 0")

    def evaluate(self, part: Part) -> Outcome:
        """Return the accuracy for each k."""
        queries, gallery = part.roles(self.roles[0])
        labels, _ = codes(part.embeddings.labels)
        kept = queries[np.isin(labels[queries], labels[gallery])]
        if not len(kept):
            raise UserError(f"{part.name}: no query's label is in the gallery; accepted: labels of both")
        tiles = []
        for tile, ranking in part.asked(kept, gallery, max(self.ks)):
            near = np.where(ranking.ids >= 0, labels[gallery][ranking.ids], -1)
            right = labels[kept[tile]]
            values = knn_correct(near, ranking.scores, right, ks=tuple(self.ks), temperature=self.temperature)
            hit = near == right[:, None]
            first = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0).astype(np.int32)
            tiles.append((values, first, top_of(ranking)))
        values = {name: np.concatenate([tile[0][name] for tile in tiles]) for name in tiles[0][0]}
        numbers: Numbers = {name: float(column.mean()) for name, column in values.items()}
        numbers |= {f"{name}_interval": interval(column) for name, column in values.items()}
        numbers |= {"queries": len(kept), "gallery": len(gallery)}
        numbers["dropped_lone_queries"] = len(queries) - len(kept)
        counts = np.bincount(labels[gallery], minlength=labels.max() + 1)
        table = part.described(kept) | {"relevant": counts[labels[kept]]}
        table |= {"first_hit": np.concatenate([tile[1] for tile in tiles])} | values
        return Outcome(numbers, table | part.shown(joined([tile[2] for tile in tiles]), gallery))
