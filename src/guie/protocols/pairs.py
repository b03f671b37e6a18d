"""Stated pairs by position: which of the protocol's pairs are between a search's queries and its gallery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from guie.errors import UserError
from guie.protocols.part import Part

RIGHT = ("ok", "easy", "hard")
GRADED = (*RIGHT, "junk")


class Stated(NamedTuple):
    """Pairs (P,): `query` position, `item` gallery position, `relation`; `usage` (Q,), '' where not stated.

    `lost` pairs name a picture that is not there: an item that could not be read counts as never found.
    """

    query: np.ndarray
    item: np.ndarray
    relation: np.ndarray
    usage: np.ndarray
    lost: int

    def of(self, tile: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (query within the tile, item, relation) of the pairs of a tile of queries."""
        kept = (self.query >= tile.start) & (self.query < tile.stop)
        return self.query[kept] - tile.start, self.item[kept], self.relation[kept]


def stated_pairs(
    part: Part, queries: np.ndarray, gallery: np.ndarray, *, relations: Sequence[str] = GRADED
) -> Stated:
    """Return the pairs between rows `queries` and rows `gallery`; UserError where there are none.

    An item that is not in the gallery gets a position of its own behind it, which no search returns.
    """
    truth = part.embeddings.truth
    if truth is None:
        raise UserError(
            f"{part.name}: no stated pairs; accepted: a data set with truth, or protocol=retrieval"
        )
    asks, answers = (_positions(part, rows) for rows in (queries, gallery))
    query = np.array([asks.get(file, -1) for file in truth.query], dtype=np.int64)
    found = np.array([answers.get(file, -1) for file in truth.item], dtype=np.int64)
    lost = found < 0
    item = np.where(lost, len(gallery) + np.cumsum(lost), found)
    relation = np.asarray(truth.relation, dtype=str)
    kept = (query >= 0) & np.isin(relation, relations)
    if not kept.any():
        raise UserError(f"{part.name}: no stated pair of its queries; accepted: truth that names their files")
    usage = np.full(len(queries), "", dtype=object)
    usage[query[kept]] = np.asarray(truth.usage, dtype=object)[kept]
    return Stated(query[kept], item[kept], relation[kept], usage, int(lost[kept].sum()))


def _positions(part: Part, rows: np.ndarray) -> dict[str, int]:
    return {part.embeddings.files[row]: position for position, row in enumerate(rows.tolist())}
