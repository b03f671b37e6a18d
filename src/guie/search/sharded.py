"""A gallery cut over the ranks of a run: each answers every query on its own rows, the answers are merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from guie.search.exact import in_order
from guie.types import Index, Ranking, Search, Side


@dataclass(frozen=True)
class Sharded:
    """`search` on the rows of this rank (`rank` of `size`), a run of rows that follow each other.

    `gather` returns each rank's value, in the order of ranks, on every rank (`World.gather`). All ranks make
    the same indexes and ask the same queries in the same order; all get the whole answer.
    """

    search: Search
    rank: int
    size: int
    gather: Callable[[Any], list[Any]]

    def index(self, gallery: Side) -> ShardedIndex:
        """Return the index of all ranks' parts; each rank holds its own alone."""
        num = len(gallery.vectors)
        start, stop = (num * part // self.size for part in (self.rank, self.rank + 1))
        own = self.search.index(_part(gallery, start, stop))
        tile = min((tile for tile in self.gather(own.tile) if tile is not None), default=None)
        return ShardedIndex(own, start, stop, tile, self.gather)

    def facts(self) -> dict[str, Any]:
        """Return what the search of this rank's part says of itself: a recall is that of its part."""
        return {**getattr(self.search, "facts", dict)(), "ranks": self.size}


class ShardedIndex:
    """This rank's index `own` of the gallery rows from `start` to `stop`, asked `tile` queries at a time."""

    def __init__(
        self, own: Index, start: int, stop: int, tile: int | None, gather: Callable[[Any], list[Any]]
    ):
        self.own, self.start, self.stop, self.tile, self._gather = own, start, stop, tile, gather

    def search(self, queries: Side, k: int, *, self_ids: np.ndarray | None = None) -> Ranking:
        """Return the k best gallery positions of each query, (Q,k), ties to the lower position."""
        num = len(queries.vectors)
        step = self.tile or max(num, 1)
        selves = np.full(num, -1) if self_ids is None else np.asarray(self_ids)
        mine = np.where((selves >= self.start) & (selves < self.stop), selves - self.start, -1)
        found = [
            self._merged(_part(queries, at, at + step), k, None if self_ids is None else mine[at : at + step])
            for at in range(0, max(num, 1), step)
        ]
        return Ranking(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _merged(self, queries: Side, k: int, self_ids: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids, scores), (T,k), of one tile: the best of all ranks' best."""
        here = self.own.search(queries, k, self_ids=self_ids)
        ids = np.where(here.ids < 0, -1, here.ids + self.start).astype(np.int32)
        ids_of, scores_of = zip(*self._gather((ids, here.scores)), strict=True)
        return in_order(np.concatenate(ids_of, axis=1), np.concatenate(scores_of, axis=1), k)


def _part(side: Side, start: int, stop: int) -> Side:
    """Return the rows of `side` from `start` to `stop`: views."""
    columns = {name: getattr(side, name) for name in ("vectors", "files", "labels")}
    rows = {name: column[start:stop] for name, column in columns.items() if column is not None}
    return replace(side, **rows)
