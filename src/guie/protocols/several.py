"""Several protocols on one data set, such as retrieval and kNN accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from guie.protocols.part import Columns, Outcome, Part, Protocol, Roles


@dataclass(frozen=True)
class Several(Protocol):
    """Each of `parts` by name; the first stands for all. Of the others a number that it lacks is added."""

    parts: Mapping[str, Any]

    @property
    def first(self) -> Protocol:
        """Return the protocol that stands for all."""
        return next(iter(self.parts.values()))

    @property
    def metric(self) -> str:  # type: ignore[override]
        """Return the first one's."""
        return self.first.metric

    @property
    def by_label(self) -> bool:  # type: ignore[override]
        """Return whether label equality decides in the first one."""
        return self.first.by_label

    @property
    def crops(self) -> Sequence[str]:  # type: ignore[override]
        """Return the splits that any of them crops."""
        return sorted({split for one in self.parts.values() for split in one.crops})

    @property
    def roles(self) -> Sequence[Roles]:
        """Return who asks whom in each."""
        return [role for one in self.parts.values() for role in one.roles]

    def over(self, split: str, present: Sequence[str]) -> Self:
        """Return all of them with `split` asking."""
        return type(self)({name: one.over(split, present) for name, one in self.parts.items()})

    def evaluate(self, part: Part) -> Outcome:
        """Return the first one's outcome with what the others add; all of theirs is under their names."""
        outcome = self.first.evaluate(part)
        for name, other in list(self.parts.items())[1:]:
            added = other.evaluate(part)
            numbers = {key: value for key, value in added.numbers.items() if key not in outcome.numbers}
            queries = outcome.queries | _beside(outcome.queries, added.queries)
            lists = outcome.lists or added.lists
            outcome = Outcome({**outcome.numbers, **numbers, name: added.numbers}, queries, lists)
        return outcome


def _beside(queries: Columns, added: Columns) -> Columns:
    """Return the columns of numbers that `added` has more, in the order of `queries`; NaN for others."""
    place = {file: row for row, file in enumerate(added["file"].tolist())}
    rows = np.array([place.get(file, -1) for file in queries["file"].tolist()])
    return {
        name: np.where(rows >= 0, column[rows], np.nan)
        for name, column in added.items()
        if name not in queries and isinstance(column, np.ndarray) and column.dtype.kind == "f"
    }
