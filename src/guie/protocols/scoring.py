"""Queries by label equality on one index: search, hits and their numbers, tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from guie.metrics.hits import Hits, per_query
from guie.protocols.labels import Labels
from guie.protocols.part import SHOWN, Columns, Part, joined, top_of
from guie.types import Ranking

# Results per query searched for MAP@R at most; where a class is larger, MAP@R is left out.
DEEPEST = 1000


@dataclass(frozen=True)
class Depths:
    """`recall_ks` of R@k, `map_k` of mAP@k, `lists`: how many results of each query are kept."""

    recall_ks: tuple[int, ...] = (1, 5, 10)
    map_k: int = 100
    lists: int = 0


@dataclass(frozen=True)
class Scores:
    """Per-query results on one index.

    `rows` (Q,) row of each query; `values` {metric: (Q,)}; `top` (Q,K) the first results as gallery positions
    (-1: none); `relevant` (Q,); `first_hit` (Q,) rank of the first hit, 0 where the results hold none;
    `gallery` (N,) its rows; `dropped` lone queries left out; `depth`: how many results were looked at.
    """

    rows: np.ndarray
    values: dict[str, np.ndarray]
    top: Ranking
    relevant: np.ndarray
    first_hit: np.ndarray
    gallery: np.ndarray
    dropped: int
    depth: int


def score(part: Part, labels: Labels, queries: np.ndarray, gallery: np.ndarray, depths: Depths) -> Scores:
    """Search rows `queries` (Q,) of `part` in its rows `gallery` (N,) and score them, tile by tile.

    A row in both is not its own neighbour; lone queries are dropped. Working memory
    is a few tiles of the search, whatever Q is.
    """
    own = part.self_ids(queries, gallery)
    relevant = labels.relevant(queries, gallery, own)
    kept, own, relevant = queries[relevant > 0], own[relevant > 0], relevant[relevant > 0]
    depth, width = _depth(depths, relevant), max(SHOWN, depths.lists)
    tiles = []
    for tile, ranking in part.asked(kept, gallery, depth):
        hits = labels.hits(ranking.ids, kept[tile], gallery, own[tile], relevant[tile])
        values = per_query(hits, recall_ks=tuple(depths.recall_ks), map_k=depths.map_k)
        if depths.map_k == 1000:
            values["mAP@1k"] = values.pop("mAP@1000")  # ILIAS' name for it
        tiles.append((values, top_of(ranking, width), first_hits(hits)))
    values, top, first_hit = _joined(tiles, width)
    dropped = len(queries) - len(kept)
    return Scores(kept, values, top, relevant, first_hit, gallery, dropped, depth)


def first_hits(hits: Hits) -> np.ndarray:
    """Return the rank of each query's first hit, (Q,) int32, 0 where there is none."""
    found = np.zeros(len(hits), dtype=np.int32)
    first = hits.order == 1
    found[hits.query[first]] = hits.rank[first]
    return found


def listed(part: Part, rows: np.ndarray, top: Ranking, gallery: np.ndarray, count: int) -> Columns:
    """Return the first `count` results of each query as columns query, item, rank (from 1) and score."""
    ids, scores = top.ids[:, :count], top.scores[:, :count]
    query, column = np.nonzero(ids >= 0)
    files = np.asarray(part.embeddings.files, dtype=object)
    return {
        "query": files[rows[query]],
        "item": files[gallery[ids[query, column]]],
        "rank": column + 1,
        "score": scores[query, column],
    }


def _depth(depths: Depths, relevant: np.ndarray) -> int:
    """Return how many neighbours the metrics need: more than `map_k` only where MAP@R can use them."""
    wanted = max(depths.map_k, *depths.recall_ks, SHOWN, depths.lists)
    most_relevant = int(relevant.max(initial=0))
    return max(wanted, most_relevant) if most_relevant <= DEEPEST else wanted


def _joined(tiles: list, width: int) -> tuple[dict[str, np.ndarray], Ranking, np.ndarray]:
    """Return the values that all tiles have, the first `width` results and the ranks of the first hits."""
    names = set.intersection(*(set(values) for values, _, _ in tiles)) if tiles else set()
    ordered = [name for name in tiles[0][0] if name in names] if tiles else []
    values = {name: np.concatenate([tile[0][name] for tile in tiles]) for name in ordered}
    empty = np.empty((0, width), dtype=np.int32)
    top = joined([Ranking(empty, empty.astype(np.float32)), *(tile[1] for tile in tiles)])
    first_hit = np.concatenate([empty[:, 0], *(tile[2] for tile in tiles)])
    return values, top, first_hit
