"""Pictures that occur twice: the same bytes under two labels, training pictures among the evaluated ones.

Near copies are found by multi-index hashing (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with
Multi-Index Hashing", CVPR 2012): 64 bits in m parts; within r bits of each other, at least one part differs
by at most r // m bits, so only pictures that share a bucket of some part are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

import numpy as np

from guie.prepare.measure import BITS

_TRAINED, _EVALUATED = ("train",), ("query", "index", "test")
_AT_ONCE = 1 << 22  # pairs compared in one step: 100 MB


@dataclass(frozen=True)
class Leaks:
    """Evaluated pictures that are in training too: for `rows` (L,) the nearest training picture `sources`.

    `distance` (L,): -1 for identical bytes, else bits of the perceptual hash that differ.
    """

    rows: np.ndarray
    sources: np.ndarray
    distance: np.ndarray

    @property
    def exact(self) -> np.ndarray:
        """Return (L,) bool: identical bytes."""
        return self.distance < 0


def content_codes(sha256: np.ndarray) -> np.ndarray:
    """Return (N,) int64: equal where the hashes (N,32) uint8 are; half of a hash tells contents apart."""
    halves = np.ascontiguousarray(sha256[:, :16]).view(np.uint64)
    order = np.lexsort((halves[:, 0], halves[:, 1]))
    ordered = halves[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    codes = np.empty(len(order), np.int64)
    codes[order] = np.cumsum(fresh) - 1
    return codes


def under_two_labels(codes: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each content (codes (N,)) that has more than one label (N,), in order of rows."""
    if not len(codes):
        return []
    num_labels = int(labels.max()) + 1
    pairs = np.unique(codes * num_labels + labels)
    contents, counts = np.unique(pairs // num_labels, return_counts=True)
    torn = contents[counts > 1]
    rows = np.flatnonzero(np.isin(codes, torn))
    rows = rows[np.argsort(codes[rows], kind="stable")]
    groups = np.split(rows, np.flatnonzero(np.diff(codes[rows])) + 1) if len(rows) else []
    return sorted(groups, key=lambda group: int(group[0]))


def leaks(
    codes: np.ndarray, phash: np.ndarray, structured: np.ndarray, splits: np.ndarray, radius: int
) -> Leaks:
    """Return the evaluated pictures (query, index, test) that training (train) has, too.

    The nearest training picture counts, of equally near ones the first. Pictures without structure are
    compared by their bytes alone. `radius` in bits.
    """
    train = np.flatnonzero(np.isin(splits, _TRAINED))
    tested = np.flatnonzero(np.isin(splits, _EVALUATED))
    exact = _first_with(codes[tested], codes[train], train)
    near_train, open_rows = train[structured[train]], tested[(exact < 0) & structured[tested]]
    near, distance = _nearest_rows(phash, open_rows, near_train, radius)
    rows = np.concatenate([tested[exact >= 0], open_rows[near >= 0]])
    sources = np.concatenate([exact[exact >= 0], near[near >= 0]])
    distances = np.concatenate([np.full((exact >= 0).sum(), -1), distance[near >= 0]])
    order = np.lexsort((rows, distances))
    return Leaks(rows[order], sources[order], distances[order])


def _first_with(wanted: np.ndarray, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return for each of `wanted` the first of `rows` (ascending) whose key it is, -1 where there is none."""
    if not len(keys):
        return np.full(len(wanted), -1)
    known, first = np.unique(keys, return_index=True)
    at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[at] == wanted, rows[first[at]], -1)


def _nearest_rows(
    phash: np.ndarray, asked: np.ndarray, answers: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row of `asked` the nearest row of `answers` (-1: none is near), and the distance."""
    if not len(asked) or not len(answers):
        return np.full(len(asked), -1), np.zeros(len(asked), np.int64)
    queries, back = np.unique(phash[asked], return_inverse=True)  # plain pictures come in thousands
    known, first = np.unique(phash[answers], return_index=True)
    # By their first row, so that of equal distances the first row wins.
    order = np.argsort(first)
    position, distance = nearest(queries, known[order], radius)
    rows = np.where(position >= 0, answers[first[order][position]], -1)
    return rows[back], distance[back]


def nearest(queries: np.ndarray, known: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (Q,) in `known` of the nearest hash within `radius` bits, and distances (Q,) int64.

    -1 and 0 where none is that near; of equally near ones the first. Hashes are uint64.
    """
    count = len(known)
    none = (BITS + 1) * count
    best = np.full(len(queries), none, np.int64)
    for query, answer in _candidates(queries, known, radius):
        distance = popcount(queries[query] ^ known[answer]).astype(np.int64)
        close = distance <= radius
        np.minimum.at(best, query[close], distance[close] * count + answer[close])
    found = best < none
    return np.where(found, best % max(count, 1), -1), np.where(found, best // max(count, 1), 0)


def _candidates(
    queries: np.ndarray, known: np.ndarray, radius: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs (positions in queries, positions in known) that share a bucket, some of them repeatedly."""
    num_parts = _cheapest(len(known), radius)
    edges = np.linspace(0, BITS, num_parts + 1).astype(int).tolist()
    for low, high in pairwise(edges):
        width = high - low
        mask = np.uint64((1 << width) - 1)
        keys = ((known >> np.uint64(low)) & mask).astype(np.int64)
        asked = ((queries >> np.uint64(low)) & mask).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        starts = np.zeros((1 << width) + 1, np.int64)
        np.cumsum(np.bincount(keys, minlength=1 << width), out=starts[1:])
        for flips in _flips(width, radius // num_parts):
            yield from _joined(asked ^ flips, starts, order)


def _cheapest(count: int, radius: int) -> int:
    """Return the number of parts that leaves least to do: buckets looked into, and what stands in them.

    Three at least, for the table of a part's buckets has 2^(64 / parts) entries.
    """

    def cost(num_parts: int) -> float:
        width = BITS // num_parts
        lookups = sum(comb(width, flipped) for flipped in range(radius // num_parts + 1))
        return num_parts * lookups * (1 + count / 2**width)

    return min(range(3, 17), key=cost)


def _flips(width: int, most: int) -> Iterator[int]:
    for count in range(most + 1):
        yield from (sum(1 << bit for bit in bits) for bits in combinations(range(width), count))


def _joined(
    asked: np.ndarray, starts: np.ndarray, order: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield what stands in the bucket of each of `asked`, a bounded number of pairs at once."""
    begins = starts[asked]
    counts = starts[asked + 1] - begins
    queries = np.flatnonzero(counts)
    begins, counts = begins[queries], counts[queries]
    totals = np.cumsum(counts)
    at = 0
    while at < len(queries):
        before = totals[at - 1] if at else 0
        stop = max(int(np.searchsorted(totals, before + _AT_ONCE, side="right")), at + 1)
        part = counts[at:stop]
        inside = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
        yield np.repeat(queries[at:stop], part), order[np.repeat(begins[at:stop], part) + inside]
        at = stop


def popcount(values: np.ndarray) -> np.ndarray:
    """Return the number of ones of each uint64, as uint64 (numpy has its own from version 2 on only)."""
    one, two, four = (
        np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)
    )
    values = values - ((values >> np.uint64(1)) & one)
    values = (values & two) + ((values >> np.uint64(2)) & two)
    values = (values + (values >> np.uint64(4))) & four
    return (values * np.uint64(0x0101010101010101)) >> np.uint64(56)
