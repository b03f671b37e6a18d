"""Retrieval metrics as pure functions of where the hits are: arrays in, one float64 per query out.

Everything is computed from hit positions only (how many of the K results are relevant, at which rank), so
the cost follows the number of hits and not Q x K. Definitions that differ have different names; the exact
wording of each is in its docstring. Shapes: Q queries, K results per query, H hits, N gallery images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from guie.types import Truth


@dataclass(frozen=True)
class Hits:
    """Relevant results of every query, best first within a query.

    `query` (H,) int64 ascending; `rank` (H,) int64, 1 is the best; `order` (H,) int64: 1 for the first hit of
    its query, 2 for the second ...; `relevant` (Q,) int64: how many gallery images are relevant; `depth`: K.
    """

    query: np.ndarray
    rank: np.ndarray
    order: np.ndarray
    relevant: np.ndarray
    depth: int

    def __len__(self) -> int:
        """Return Q, the number of queries."""
        return len(self.relevant)


def count_relevant(truth: Truth) -> np.ndarray:
    """Return (Q,) int64: gallery images with the query's label, the query itself not counted."""
    size = 1 + max(truth.query_labels.max(initial=-1), truth.gallery_labels.max(initial=-1))
    counts = np.bincount(truth.gallery_labels, minlength=size)
    return counts[truth.query_labels] - (truth.self_ids >= 0)


def hits_from_mask(mask: np.ndarray, relevant: np.ndarray) -> Hits:
    """Turn a (Q,K) bool mask "result is relevant" into `Hits`; `relevant` (Q,) as in `Hits`."""
    query, column = np.nonzero(mask)
    first_of_query = np.searchsorted(query, np.arange(len(mask)))
    order = np.arange(len(query)) - first_of_query[query] + 1
    return Hits(query, column + 1, order, np.asarray(relevant, dtype=np.int64), mask.shape[1])


def find_hits(ids: np.ndarray, truth: Truth, *, distinct: bool = False) -> Hits:
    """Return the hits of (Q,K) gallery positions; -1 is "no result" and never a hit.

    An id that a query names twice counts once and uses up its rank both times (GUIE, GLDv2);
    `distinct=True` promises that there is none and saves the check.
    """
    mask = ids >= 0
    if len(truth.gallery_labels):
        mask &= truth.gallery_labels[ids] == truth.query_labels[:, None]
    if not distinct:
        mask &= _first_mention(ids)
    return hits_from_mask(mask, count_relevant(truth))


def stated(
    asked_query: np.ndarray, asked_item: np.ndarray, query: np.ndarray, item: np.ndarray
) -> np.ndarray:
    """Return which of the asked pairs are among the stated pairs `query` (T,), `item` (T,), as bool.

    `asked_query` and `asked_item` fit each other as numpy broadcasts; an item -1 ("none") is never stated.
    """
    if not len(query) or not asked_item.size:
        return np.zeros(np.broadcast_shapes(np.shape(asked_query), asked_item.shape), dtype=bool)
    width = 1 + max(int(np.max(item)), int(asked_item.max()))
    keys = np.sort(np.asarray(query, dtype=np.int64) * width + item)
    asked = np.asarray(asked_query, dtype=np.int64) * width + asked_item
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return (keys[place] == asked) & (asked_item >= 0)


def stated_mask(ids: np.ndarray, query: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Return (Q,K) bool: is the result, a gallery position of `ids` (Q,K), stated for its query?

    The pairs are `query` (T,), rows of `ids`, and `item` (T,), gallery positions. Some rows at a time are
    looked up, so that memory beyond the result stays at some MB.
    """
    mask = np.zeros(ids.shape, dtype=bool)
    rows = max(1, 1_000_000 // max(1, ids.shape[1]))
    for start in range(0, len(ids), rows):
        block = ids[start : start + rows]
        mask[start : start + rows] = stated(np.arange(start, start + len(block))[:, None], block, query, item)
    return mask


def find_stated_hits(ids: np.ndarray, query: np.ndarray, item: np.ndarray, *, distinct: bool = False) -> Hits:
    """Return the hits of (Q,K) gallery positions where pairs, not labels, say what is relevant.

    The pairs are `query` (T,), rows of `ids`, and `item` (T,), gallery positions; one stated twice counts
    once. `ids` and `distinct` as in `find_hits`.
    """
    mask = stated_mask(ids, query, item)
    if not distinct:
        mask &= _first_mention(ids)
    return hits_from_mask(mask, count_stated(query, item, len(ids)))


def count_stated(query: np.ndarray, item: np.ndarray, num_queries: int) -> np.ndarray:
    """Return (Q,) int64: how many different items the stated pairs `query`, `item` (T,) give each query."""
    order = np.lexsort((item, query))
    query, item = np.asarray(query, dtype=np.int64)[order], np.asarray(item)[order]
    first = np.ones(len(query), dtype=bool)
    first[1:] = (query[1:] != query[:-1]) | (item[1:] != item[:-1])
    return np.bincount(query[first], minlength=num_queries)


def without_junk(hits: Hits, junk: np.ndarray) -> Hits:
    """Return the hits as they stand once the results of `junk` (Q,K) bool are deleted from the rankings."""
    query, column = np.nonzero(junk)
    width = hits.depth + 1
    places = query * width + column + 1  # ascending
    before = np.searchsorted(places, hits.query * width + hits.rank)
    before -= np.searchsorted(places, hits.query * width)
    return replace(hits, rank=hits.rank - before)


def _first_mention(ids: np.ndarray) -> np.ndarray:
    """Return (Q,K) bool: False where the same id stands earlier in the row."""
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, axis=1)
    first = np.ones_like(ordered, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    mentioned = np.empty_like(first)
    np.put_along_axis(mentioned, order, first, axis=1)
    return mentioned


def guie_precision(hits: Hits, k: int = 5) -> np.ndarray:
    """Return mP@k of the Google Universal Image Embedding challenge, (Q,).

    Hits among the first min(n, k) results, divided by min(n, k), n = relevant gallery images.
    Raises ValueError where a query has none.
    """
    depth = np.minimum(_relevant_or_error(hits), k)
    return _hits_within(hits, depth) / depth


def precision_at(hits: Hits, k: int) -> np.ndarray:
    """Return P@k, (Q,): hits in the top k divided by k, however few are relevant. Not mP@k."""
    return _hits_within(hits, k) / k


def recall_at(hits: Hits, k: int) -> np.ndarray:
    """Return R@k as metric learning means it ("CMC"), (Q,): 1 where the top k hold at least one hit."""
    return (_hits_within(hits, k) > 0).astype(np.float64)


def average_precision_at(hits: Hits, k: int) -> np.ndarray:
    """Return AP@k of landmark retrieval (GLDv2), (Q,): sum over ranks j <= k of P(j) rel(j), over min(n, k).

    Raises ValueError where a query has no relevant gallery image.
    """
    return _summed_precision(hits, k) / np.minimum(_relevant_or_error(hits), k)


def average_precision(hits: Hits) -> np.ndarray:
    """Return AP over the whole ranking, (Q,): sum over ranks j of P(j) rel(j), over n, however deep it is.

    GPR1200's (Schall et al. 2021) with the query left in the gallery: `Truth.self_ids` -1. Relevant images
    that are not among the results count as never found. Raises ValueError where a query has none.
    """
    return _summed_precision(hits, hits.depth) / _relevant_or_error(hits)


def trapezoidal_average_precision(hits: Hits) -> np.ndarray:
    """Return AP as the area under straight lines, (Q,): Oxford, Paris, Holidays (Philbin et al. 2007).

    At each hit the mean of the precision before and after it; before the first result that is 1.
    Raises ValueError where a query has no relevant gallery image.
    """
    before = np.where(hits.rank == 1, 1.0, (hits.order - 1) / np.maximum(hits.rank - 1, 1))
    area = (before + hits.order / hits.rank) / 2
    return np.bincount(hits.query, weights=area, minlength=len(hits)) / _relevant_or_error(hits)


def average_precision_at_r(hits: Hits) -> np.ndarray:
    """Return MAP@R (Musgrave et al. 2020), (Q,): sum over ranks j <= R of P(j) rel(j), over R = relevant.

    Ranks beyond `hits.depth` are unknown and count as misses. Raises ValueError where R is 0.
    """
    relevant = _relevant_or_error(hits)
    return _summed_precision(hits, relevant) / relevant


def r_precision(hits: Hits) -> np.ndarray:
    """Return R-Precision, (Q,): hits in the top R, over R = relevant. Raises ValueError where R is 0."""
    relevant = _relevant_or_error(hits)
    return _hits_within(hits, relevant) / relevant


def reciprocal_rank(hits: Hits) -> np.ndarray:
    """Return 1 / rank of the first hit, (Q,); 0 where the K results hold none. Its mean is the MRR."""
    return reciprocal_rank_at(hits, hits.depth)


def reciprocal_rank_at(hits: Hits, k: int = 5) -> np.ndarray:
    """Return 1 / rank of the first hit within the top k, else 0, (Q,).

    With one relevant image per query it is the "MAP@5" that GUIE's solutions chose their models by.
    """
    first = (hits.order == 1) & (hits.rank <= k)
    value = np.zeros(len(hits))
    value[hits.query[first]] = 1.0 / hits.rank[first]
    return value


def per_query(
    hits: Hits, *, recall_ks: tuple[int, ...] = (1, 5, 10), map_k: int = 100
) -> dict[str, np.ndarray]:
    """Return every metric a report shows as {name: (Q,) float64}, with the names of the reports.

    A metric that needs more than `hits.depth` results is left out rather than approximated. MRR counts
    a first hit beyond the depth as 0.
    """
    values = {"mP@5": guie_precision(hits)}
    values |= {f"R@{k}": recall_at(hits, k) for k in recall_ks if k <= hits.depth}
    if hits.depth >= map_k:
        values[f"mAP@{map_k}"] = average_precision_at(hits, map_k)
    if hits.depth >= hits.relevant.max(initial=0):
        values |= {"MAP@R": average_precision_at_r(hits), "R-Prec": r_precision(hits)}
    return values | {"MRR": reciprocal_rank(hits)}


def _relevant_or_error(hits: Hits) -> np.ndarray:
    lone = np.flatnonzero(hits.relevant <= 0)
    if len(lone):
        raise ValueError(
            f"relevant: {len(lone)} queries without a relevant gallery image (first: query {lone[0]}); "
            "drop lone queries first"
        )
    return hits.relevant


def _hits_within(hits: Hits, depth: int | np.ndarray) -> np.ndarray:
    """Return (Q,) number of hits at ranks <= depth, one depth for all or one per query."""
    limit = np.broadcast_to(depth, (len(hits),))
    return np.bincount(hits.query[hits.rank <= limit[hits.query]], minlength=len(hits))


def _summed_precision(hits: Hits, depth: int | np.ndarray) -> np.ndarray:
    """Return (Q,) sum of P(j) over hits at ranks j <= depth; P(j) of a hit is order / rank."""
    limit = np.broadcast_to(depth, (len(hits),))
    within = hits.rank <= limit[hits.query]
    precision = hits.order[within] / hits.rank[within]
    return np.bincount(hits.query[within], weights=precision, minlength=len(hits))
