"""What a post-processing step is: it maps vectors, or asks the gallery for neighbours, or re-ranks.

A step is made from config: its parameters are attributes of the same names. It keeps nothing of a gallery or
of queries: what it makes of a gallery comes back to it as `Stage.kept`, so one step serves many galleries.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from guie.errors import UserError
from guie.postprocess.layers import Layer
from guie.types import Index, Ranking, Side

Ranges = Mapping[str, tuple[float, float]]
ANY = (0, np.inf)
SOME = (1, np.inf)
# Why a file that is given one picture cannot do what a step of this kind does.
OUTSIDE = {
    "map": "is known by its program alone",
    "gallery": "changes the gallery by its own neighbours",
    "query": "asks the gallery for neighbours",
    "rerank": "orders the results of a search",
}

Role = Literal["query", "gallery"]
Kind = Literal["map", "gallery", "query", "rerank"]


@dataclass(frozen=True)
class Stage:
    """A gallery as a step finds it: `gallery` after the steps before it, `index` over those vectors.

    `kept` is what the step's own `prepare` returned for this gallery.
    """

    gallery: Side
    index: Index
    kept: Any = None


class Step:
    """One entry of `postprocess`; it overrides what it does, the rest leaves everything as it is.

    `kind` says which method is called: "map" `apply`, "gallery" `of_gallery`, "query" `of_queries`, "rerank"
    `rerank`; `prepare` goes before the last three. `needs_bank`: it is fitted on training vectors.
    `all_queries`: its result depends on which queries are asked together, so they must come at once.
    `reads_vectors`: False for a re-ranking that looks at the ranking, files and pictures alone.
    `ends_vectors`: what it returns is no embedding any more, only steps that do not read vectors may follow.
    `ranges`: the least and the largest value of each parameter that has such.
    """

    kind: ClassVar[Kind] = "map"
    needs_bank: ClassVar[bool] = False
    all_queries: ClassVar[bool] = False
    reads_vectors: ClassVar[bool] = True
    ends_vectors: ClassVar[bool] = False
    ranges: ClassVar[Ranges] = {}

    @property
    def unfitted(self) -> bool:
        """Tell whether the step needs training vectors that it has not seen."""
        return self.needs_bank and not self.state()

    @property
    def depth(self) -> int:
        """Return how many results of a query `rerank` is given at least, where the gallery has them."""
        return 0

    def settings(self) -> dict[str, Any]:
        """Return the parameters by name, as a config gives them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def check(self) -> None:
        """Raise UserError on a parameter outside of its range."""
        for name, (least, most) in self.ranges.items():
            if not least <= (value := getattr(self, name)) <= most:
                accepted = f"{least} or more" if most == np.inf else f"{least} to {most}"
                raise UserError(f"{name}: {value}; accepted: {accepted}")

    def identity(self) -> dict[str, Any]:
        """Return the settings that the embedding space depends on; what was fitted counts beside them."""
        return self.settings()

    def fit(self, bank: Side) -> None:
        """Learn from training vectors (N,D), as the steps before have left them, and their labels."""

    def state(self) -> dict[str, np.ndarray]:
        """Return what was fitted, by name; empty before `fit` or where there is nothing to fit."""
        return {}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned."""

    def apply(self, vectors: np.ndarray, role: Role) -> np.ndarray:
        """Return each of (N,D) vectors mapped by itself, (N,D') float32."""
        return vectors

    def layer(self, width: int) -> Layer:
        """Return what `apply` does to vectors of `width` D, for a file to be deployed.

        Raises UserError where it is more than a function of one vector, or the width does not fit.
        """
        why = "gives no embedding" if self.ends_vectors else OUTSIDE[self.kind]
        accepted = "in a file linear maps and negative subtraction (this one where you search)"
        raise UserError(f"_target_: {type(self).__name__} {why}; accepted: {accepted}")

    def prepare(self, gallery: Side, index: Index) -> Any:
        """Return what is worth computing once per gallery; it comes back as `Stage.kept`."""
        return None

    def of_gallery(self, stage: Stage) -> Side:
        """Return the gallery with each vector changed by its neighbours."""
        return stage.gallery

    def of_queries(self, queries: Side, stage: Stage, self_ids: np.ndarray | None) -> Side:
        """Return the queries changed by their neighbours; `self_ids` as in `Index.search`."""
        return queries

    def rerank(self, ranking: Ranking, queries: Side, stage: Stage, self_ids: np.ndarray | None) -> Ranking:
        """Return (Q,K) in a better order, best first, -1 where there is none; K as wide as `ranking`.

        `ranking.ids` are positions in `stage.gallery`; a query's own position is never among the results.
        Scores fall along a row; results behind those that were re-ranked keep their order (`followed_by`).
        """
        return ranking


def followed_by(head: Ranking, ranking: Ranking) -> Ranking:
    """Return (Q,K): the `head` (Q,H) of a ranking in its new order, then the places H.. of `ranking` (Q,K).

    A score behind the head is lowered to that of the last place before it, so that scores fall along a row.
    """
    width = head.ids.shape[1]
    ids = np.concatenate([head.ids, ranking.ids[:, width:]], axis=1)
    scores = np.concatenate([head.scores, ranking.scores[:, width:]], axis=1)
    return Ranking(ids.astype(np.int32), np.minimum.accumulate(scores, axis=1).astype(np.float32))
