"""One-shot classification in episodes, as Omniglot's official runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from guie.errors import UserError
from guie.protocols.part import Outcome, Part, Protocol
from guie.protocols.retrieval import Retrieval


@dataclass(frozen=True)
class OneShot(Protocol):
    """Each domain is an episode whose queries have one right picture in its index (Lake et al. 2015).

    Numbers: one_shot_error, the share of wrong nearest neighbours in the own index, averaged over episodes,
    and one_shot_accuracy; beside them those of `Retrieval`.
    """

    by_label: ClassVar[bool] = True
    metric: str = "one_shot_accuracy"
    crops: Sequence[str] = ()
    asks: Sequence[str] = ("query",)
    answers: Sequence[str] = ("index",)

    def evaluate(self, part: Part) -> Outcome:
        """Return the error over the episodes."""
        outcome = Retrieval(asks=self.asks, answers=self.answers).evaluate(replace(part, merged=False))
        wrong = np.flatnonzero(outcome.queries["relevant"] != 1)
        if len(wrong) or outcome.numbers["dropped_lone_queries"]:
            found = outcome.queries["relevant"][wrong[0]] if len(wrong) else 0
            raise UserError(
                f"{part.name}: a query with {found} pictures of its label in the index; accepted: one each"
            )
        right = [entry["R@1"] for entry in outcome.numbers["domains"].values() if "R@1" in entry]
        accuracy = float(np.mean(right))
        found = {"one_shot_error": 1.0 - accuracy, "one_shot_accuracy": accuracy}
        queries = outcome.queries | {self.metric: outcome.queries["own R@1"]}
        return outcome._replace(numbers=outcome.numbers | found, queries=queries)
