"""Recognition: one label for each query, or none, by a vote of its neighbours; and plain kNN accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from guie.errors import UserError
from guie.metrics import micro
from guie.metrics.groups import IGNORED, USAGES
from guie.metrics.hits import count_relevant
from guie.metrics.recognition import judged, ranked_predictions
from guie.metrics.votes import knn_correct, knn_vote, vote
from guie.protocols.part import (
    SHOWN,
    Columns,
    Numbers,
    Outcome,
    Part,
    Protocol,
    Roles,
    accepted,
    codes,
    interval,
    joined,
    positive,
    top_of,
)
from guie.types import Embeddings, Ranking, Truth

_DRAWS = 200  # of the interval: each one ranks all predictions again


@dataclass(frozen=True)
class Recognition(Protocol):
    """GAP, GAP- and ACC of the label that the `k` nearest vote for (Google Landmarks recognition; Met).

    A neighbour's vote weighs its similarity, or exp(similarity / `temperature`); the winner's weight is the
    score. Queries of the label `distractor` show nothing known: any prediction is wrong. Of a query with
    several landmarks any one is right. Where rows have a usage, its public and private part are told apart.
    Where there are rows of the split `tuned_on`, k and temperature are those of `ks` and `temperatures` with
    the highest GAP there (Met).
    """

    by_label: ClassVar[bool] = True
    k: int = 1
    temperature: float | None = None
    tuned_on: str | None = None
    ks: Sequence[int] = (1, 2, 3, 5, 7, 10, 15, 20, 50)
    temperatures: Sequence[float] = (1.0, 0.2, 0.1, 0.05, 0.02, 0.01)
    distractor: str = "distractor"
    metric: str = "GAP"
    crops: Sequence[str] = ()
    asks: Sequence[str] = ("query",)
    answers: Sequence[str] = ("index",)

    def __post_init__(self) -> None:
        positive("k", [self.k])
        positive("ks", self.ks)
        alone = [] if self.temperature is None else [self.temperature]
        for name, values in (("temperature", alone), ("temperatures", self.temperatures)):
            accepted(name, getattr(self, name), all(value > 0 for value in values), "above 0")

    @property
    def roles(self) -> Sequence[Roles]:
        """Return who asks whom; what is tuned on asks, too."""
        tuning = [Roles((self.tuned_on,), self.answers)] if self.tuned_on else []
        return [Roles(self.asks, self.answers), *tuning]

    def over(self, split: str, present: Sequence[str]) -> Self:
        """Return the protocol with `split` asking, not tuned on itself."""
        made = super().over(split, present)
        return replace(made, tuned_on=None) if split == self.tuned_on else made

    def evaluate(self, part: Part) -> Outcome:
        """Return the numbers of one prediction for each query."""
        queries, gallery = part.roles(self.roles[0])
        queries = queries[usage_of(part.embeddings, queries) != IGNORED]
        k, temperature = self._tuned(part, gallery)
        near = _Near.of(part, queries, gallery, k)
        answers = self._answers(part, queries, near, k, temperature)
        numbers = self._numbers(answers, usage_of(part.embeddings, queries))
        numbers |= {"gallery": len(gallery), "k": k, "temperature": temperature}
        return Outcome(numbers, self._table(part, queries, gallery, answers, near.top))

    def _tuned(self, part: Part, gallery: np.ndarray) -> tuple[int, float | None]:
        """Return k and temperature: those with the highest GAP on `tuned_on`, the first of equals."""
        rows = part.rows([self.tuned_on]) if self.tuned_on else np.empty(0, np.int64)
        if not len(rows):
            return self.k, self.temperature
        near = _Near.of(part, rows, gallery, max(self.ks))
        grid = [(k, temperature) for k in self.ks for temperature in self.temperatures]
        return max(grid, key=lambda pair: self._answers(part, rows, near, *pair).numbers()["GAP"])

    def _answers(
        self, part: Part, rows: np.ndarray, near: _Near, k: int, temperature: float | None
    ) -> Judged:
        """Return what the k nearest vote for."""
        if temperature is None:
            won = vote(near.labels[:, :k], np.where(near.labels >= 0, near.scores, 0.0)[:, :k])
        else:
            won = knn_vote(near.labels, near.scores, k, temperature=temperature)
        names = np.array([*near.names, ""], dtype=object)  # the last: what -1 stands for
        found = judge(part.embeddings, rows, names[won.labels[:, 0]], won.scores[:, 0], self.distractor)
        if not found.known.any():
            raise UserError(
                f"{part.name}: every query is {self.distractor!r}; accepted: some that show something known"
            )
        return found

    def _numbers(self, answers: Judged, usage: np.ndarray) -> Numbers:
        ranked = ranked_predictions(answers.correct, answers.scores, answers.known, answered=answers.answered)
        numbers: Numbers = {"GAP_interval": list(micro.bootstrap_interval(ranked, samples=_DRAWS))}
        numbers |= answers.numbers() | answers.by_usage(usage)
        return numbers | {"queries": len(answers.known), "known": int(answers.known.sum())}

    def _table(
        self, part: Part, queries: np.ndarray, gallery: np.ndarray, answers: Judged, top: Ranking
    ) -> Columns:
        table = part.described(queries) | {
            "usage": usage_of(part.embeddings, queries),
            "predicted": answers.labels,
        }
        table |= {"prediction_score": answers.scores.astype(np.float64)}
        table["ACC"] = np.where(answers.known, answers.correct, np.nan)
        first_hit = answers.correct.astype(np.int32)
        table |= {"relevant": answers.known.astype(np.int64), "first_hit": first_hit}
        return table | part.shown(top, gallery)


class _Near(NamedTuple):
    """The K nearest of each query: `labels` (Q,K), positions in `names`, -1 none; `scores` (Q,K); `top`."""

    labels: np.ndarray
    scores: np.ndarray
    names: list[str]
    top: Ranking

    @classmethod
    def of(cls, part: Part, rows: np.ndarray, gallery: np.ndarray, k: int) -> _Near:
        """Return the neighbours of `rows` in `gallery`."""
        if not len(rows):
            raise UserError(f"{part.name}: every query is ignored; accepted: some public or private ones")
        labels, names = codes(part.embeddings.labels)
        found = [
            (top_of(ranking, k), top_of(ranking)) for _, ranking in part.asked(rows, gallery, max(k, SHOWN))
        ]
        near, top = joined([one for one, _ in found]), joined([one for _, one in found])
        return cls(np.where(near.ids >= 0, labels[gallery][near.ids], -1), near.scores, names, top)


class Judged(NamedTuple):
    """(Q,): predicted `labels` ('' none), their `scores`, whether `correct`, whether the query is `known`."""

    labels: np.ndarray
    scores: np.ndarray
    correct: np.ndarray
    known: np.ndarray

    @property
    def answered(self) -> np.ndarray:
        """Return which queries have a prediction, (Q,) bool."""
        return self.labels != ""

    def numbers(self) -> Numbers:
        """Return GAP, GAP- and ACC."""
        return dict(judged(self.correct, self.scores, self.known, self.answered))

    def by_usage(self, usage: np.ndarray) -> Numbers:
        """Return {"GAP public": ..} of the public and the private part, where there is one; `usage` (Q,)."""
        numbers: Numbers = {}
        for name in USAGES:
            chosen = usage == name
            if (chosen & self.known).any():
                part = Judged(*(column[chosen] for column in self))
                numbers |= {f"{key} {name}": value for key, value in part.numbers().items()}
        return numbers


def judge(
    embeddings: Embeddings,
    rows: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray,
    distractor: str = Recognition.distractor,
) -> Judged:
    """Return whether the labels `predicted` (Q,) for the queries `rows` (Q,) are right; '' is none.

    Of a query with several `landmarks` any one is right; one that shows a `distractor` has none. To predict
    `distractor` is to predict nothing.
    """
    given = np.where(predicted == distractor, "", predicted).astype(object)
    truth = np.asarray(embeddings.labels, dtype=object)[rows]
    known = truth != distractor
    several = embeddings.further.get("landmarks")
    if several is None:
        return Judged(given, scores, (given == truth) & known, known)
    accepted_labels = [text.split() for text in np.asarray(several, dtype=object)[rows]]
    right = [label in those for label, those in zip(given, accepted_labels, strict=True)]
    return Judged(given, scores, np.array(right, dtype=bool) & known, known)


def usage_of(embeddings: Embeddings, rows: np.ndarray) -> np.ndarray:
    """Return the usage of the rows (Q,), '' where there is none."""
    given = embeddings.further.get("usage")
    return np.full(len(rows), "", dtype=object) if given is None else np.asarray(given, dtype=object)[rows]


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
        own = part.self_ids(queries, gallery)
        relevant = count_relevant(Truth(labels[queries], labels[gallery], own))
        kept, relevant = queries[relevant > 0], relevant[relevant > 0]
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
        table = part.described(kept) | {"relevant": relevant}
        table |= {"first_hit": np.concatenate([tile[1] for tile in tiles])} | values
        return Outcome(numbers, table | part.shown(joined([tile[2] for tile in tiles]), gallery))
