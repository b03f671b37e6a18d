"""Protocols that state pairs: Google Landmarks' retrieval task, and revisited Oxford and Paris."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guie.errors import UserError
from guie.metrics import revisited
from guie.metrics.groups import IGNORED, mean, usage_means
from guie.metrics.hits import average_precision_at, find_stated_hits, recall_at
from guie.protocols.pairs import RIGHT, stated_pairs
from guie.protocols.part import (
    SHOWN,
    Columns,
    Numbers,
    Outcome,
    Part,
    Protocol,
    accepted,
    interval,
    joined,
    positive,
    recall_curve,
    top_of,
)
from guie.protocols.scoring import first_hits, listed


@dataclass(frozen=True)
class Stated(Protocol):
    """Pairs of relation ok are right (Google Landmarks v2 retrieval; Weyand et al., CVPR 2020).

    Numbers: mAP@`map_k` over all queries that a pair names, and of its public and private part; R@k. Queries
    that are ignored count nowhere; those that no pair names are left out and counted. The first `lists`
    results of each query that counts are written.
    """

    map_k: int = 100
    recall_ks: Sequence[int] = (1, 5, 10)
    metric: str = "mAP@100"
    lists: int = 0
    crops: Sequence[str] = ()
    asks: Sequence[str] = ("query",)
    answers: Sequence[str] = ("index",)

    def __post_init__(self) -> None:
        positive("recall_ks", self.recall_ks)
        positive("map_k", [self.map_k])
        accepted("lists", self.lists, self.lists >= 0, "0 (none) or more")

    def evaluate(self, part: Part) -> Outcome:
        """Return the numbers of the stated pairs."""
        queries, gallery = part.roles(self.roles[0])
        every = stated_pairs(part, queries, gallery, relations=RIGHT)
        kept = queries[np.isin(np.arange(len(queries)), every.query) & (every.usage != IGNORED)]
        right = stated_pairs(part, kept, gallery, relations=RIGHT)
        tiles = []
        width = max(SHOWN, self.lists)
        depth = max(self.map_k, *self.recall_ks, width)
        for tile, ranking in part.asked(kept, gallery, depth):
            query, item, _ = right.of(tile)
            hits = find_stated_hits(ranking.ids, query, item, distinct=True)
            values = {f"mAP@{self.map_k}": average_precision_at(hits, self.map_k)}
            values |= {f"R@{k}": recall_at(hits, k) for k in self.recall_ks}
            tiles.append((values, top_of(ranking, width), hits.relevant, first_hits(hits)))
        numbers, table = _summed(part, (kept, gallery), tiles, depth)
        name = f"mAP@{self.map_k}"
        parts = usage_means(table[name], right.usage)
        numbers |= {f"{name} {usage}": value for usage, value in parts.items()}
        numbers |= {"left_out": len(queries) - len(kept), "lost_pairs": right.lost}
        top = joined([tile[1] for tile in tiles])
        lists = listed(part, kept, top, gallery, self.lists) if self.lists else None
        return Outcome(numbers, table | {"usage": right.usage}, lists)


@dataclass(frozen=True)
class Revisited(Protocol):
    """Pairs graded easy, hard and junk (Radenovic et al., CVPR 2018), queries cropped to their box.

    Numbers: mAP and mP@k, k in `ks`, at the levels E, M and H: junk is deleted from the whole ranking of the
    gallery, and queries without a picture of a level are left out of its mean.
    """

    ks: Sequence[int] = (1, 5, 10)
    metric: str = "mAP M"
    crops: Sequence[str] = ("query",)
    asks: Sequence[str] = ("query",)
    answers: Sequence[str] = ("index",)

    def __post_init__(self) -> None:
        positive("ks", self.ks)

    def evaluate(self, part: Part) -> Outcome:
        """Return mAP and mP@k at the three levels."""
        queries, gallery = part.roles(self.roles[0])
        pairs = stated_pairs(part, queries, gallery)
        if not np.isin(pairs.relation, revisited.LEVELS["M"].ok).any():
            raise UserError(
                f"{part.name}: no pair is easy or hard; accepted: graded pairs, or protocol=retrieval"
            )
        tiles = []
        for tile, ranking in part.asked(queries, gallery, len(gallery)):
            grades = revisited.Grades(*pairs.of(tile))
            hits = revisited.hits_at(ranking.ids, grades, revisited.LEVELS["M"])
            values = revisited.per_query(ranking.ids, grades, ks=tuple(self.ks))
            tiles.append((values, top_of(ranking), hits.relevant, first_hits(hits)))
        numbers, table = _summed(part, (queries, gallery), tiles, len(gallery))
        counted = {f"queries {level}": int((~np.isnan(table[f"mAP {level}"])).sum()) for level in "EMH"}
        return Outcome(numbers | counted | {"lost_pairs": pairs.lost}, table)


def _summed(
    part: Part, rows: tuple[np.ndarray, np.ndarray], tiles: list, depth: int
) -> tuple[Numbers, Columns]:
    """Return means and counts, and the per-query columns, of tiles (values, top, relevant, first hit)."""
    queries, gallery = rows
    values = {name: np.concatenate([tile[0][name] for tile in tiles]) for name in tiles[0][0]}
    top = top_of(joined([tile[1] for tile in tiles]))
    relevant, first_hit = (np.concatenate([tile[i] for tile in tiles]) for i in (2, 3))
    numbers: Numbers = {name: mean(column) for name, column in values.items()}
    for name in values:
        counted = values[name][~np.isnan(values[name])]
        if name.startswith("mAP") and len(counted):
            numbers[f"{name}_interval"] = interval(counted)
    numbers |= {"queries": len(queries), "gallery": len(gallery)}
    numbers["recall_curve"] = recall_curve(first_hit, depth, len(gallery))
    columns = part.described(queries) | {"relevant": relevant, "first_hit": first_hit} | values
    return numbers, columns | part.shown(top, gallery)
