"""What fewer bytes per vector cost: the same evaluation with vectors as an index would hold them.

float32; PCA and prefix (Matryoshka, Kusupati et al. 2022) to fewer dimensions; int8 (one scale, both sides,
so that integers are multiplied); binary (the sign about the mean, a bit each), where the query has bits, too
(Hamming), or stays as it is (asymmetric: Gordo et al., TPAMI 2014). What is fitted is fitted on stated rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guie.postprocess.maps import PCA, Prefix
from guie.postprocess.vectors import unit
from guie.protocols.part import Part, Protocol, splits_of
from guie.types import Embeddings, Index, Ranking, Search, Side

SMALLEST, FEWEST_BITS = 8, 32  # dimensions
FITTED = 50_000  # rows at most
METRICS = ("mP@5", "R@1")

Rows = list[dict[str, Any]]
Map = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Code:
    """A way to hold vectors: `name`, `dim`, `bits` per dimension; `item` and `query` (N,D) to (N,dim) give
    what the index compares, as float32. `whole`: products are whole numbers at least 2 apart, often equal."""

    name: str
    dim: int
    bits: int
    item: Map
    query: Map
    whole: bool = False

    @property
    def num_bytes(self) -> int:
        """Return the bytes of one vector."""
        return -(-self.dim * self.bits // 8)


@dataclass(frozen=True)
class Compressed:
    """A search by `code` instead of vectors."""

    search: Search
    code: Code

    def index(self, gallery: Side) -> CompressedIndex:
        """Return the index of the gallery's codes."""
        held = self.code.item(gallery.vectors)
        if self.code.whole:
            # Of equal products the lower position is first anyway; told apart, nothing is looked at twice.
            held = _beside(held, -np.arange(len(held), dtype=np.float32) / max(1, len(held)))
        side = Side(held, gallery.files, gallery.labels, gallery.picture)
        return CompressedIndex(self.search.index(side), self.code)


@dataclass(frozen=True)
class CompressedIndex:
    """An index of codes."""

    inner: Index
    code: Code

    @property
    def tile(self) -> int | None:
        """Return the inner index's."""
        return self.inner.tile

    def search(self, queries: Side, k: int, *, self_ids: np.ndarray | None = None) -> Ranking:
        """Return the k best gallery positions by inner product of the codes."""
        asked = self.code.query(queries.vectors)
        if self.code.whole:
            asked = _beside(asked, np.ones(len(asked), dtype=np.float32))
        side = Side(asked, queries.files, queries.labels, queries.picture)
        return self.inner.search(side, k, self_ids=self_ids)


def _beside(vectors: np.ndarray, column: np.ndarray) -> np.ndarray:
    return np.concatenate([vectors, column[:, None]], axis=1)


def sheet(
    found: Mapping[str, Embeddings],
    protocols: Mapping[str, Protocol],
    bank: Mapping[str, Embeddings],
    search: Search,
) -> Rows:
    """Return the rows `compression` of metrics.json: by data set and code its bytes and metrics.

    What is fitted is fitted on `bank` (training rows), else on the data set's own gallery: `fitted_on` says.
    Numbers are those of one index for all domains.
    """
    rows = []
    for name, part in found.items():
        vectors, told = _to_fit(name, part, protocols[name], bank)
        for code in codes(vectors):
            seen = Part(name, part, Compressed(search, code), merged=True)
            numbers = protocols[name].evaluate(seen).numbers
            metrics = dict.fromkeys([protocols[name].metric, *METRICS])
            kept = {key: numbers[key] for key in metrics if key in numbers}
            kept |= {
                f"{key}_interval": numbers[f"{key}_interval"] for key in kept if f"{key}_interval" in numbers
            }
            described = {"dataset": name, "name": code.name, "dim": code.dim, "bytes": code.num_bytes}
            rows.append({**described, "metrics": kept, "fitted_on": told})
    return rows


def _to_fit(
    name: str, part: Embeddings, protocol: Protocol, bank: Mapping[str, Embeddings]
) -> tuple[np.ndarray, str]:
    """Return the vectors (N,D) that codes are fitted on, and what they are."""
    if bank:
        each = FITTED // len(bank)
        drawn = [one.vectors[_some(np.arange(len(one.vectors)), each)] for one in bank.values()]
        vectors, told = np.concatenate(drawn), f"bank {'+'.join(bank)}"
    else:
        answers = np.isin(np.asarray(part.splits, dtype=str), splits_of(protocol)[1])
        vectors, told = part.vectors[_some(np.flatnonzero(answers), FITTED)], f"gallery of {name}"
    return unit(vectors), f"{told}, {len(vectors)} rows"


def _some(rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else np.sort(np.random.default_rng(0).permutation(rows)[:most])


def codes(vectors: np.ndarray) -> Iterator[Code]:
    """Yield the codes fitted on `vectors` (N,D), from the largest on."""
    width = vectors.shape[1]
    yield Code("float32", width, 32, _same, _same)
    yield from _quantised("", width, _same, vectors)
    for dim in _halves(width):
        maps: Sequence[tuple[str, Map]] = [(f"prefix{dim}", _mapped(Prefix(dim)))]
        if dim < len(vectors):
            pca = PCA(dim)
            pca.fit(Side(vectors))
            maps = [(f"pca{dim}", _mapped(pca)), *maps]
        for name, smaller in maps:
            yield Code(name, dim, 32, smaller, smaller)
            yield from _quantised(f"{name} ", dim, smaller, smaller(vectors))


def _halves(width: int) -> list[int]:
    """Return width / 2, / 4 and / 8, none below `SMALLEST`."""
    return [width // part for part in (2, 4, 8) if width // part >= SMALLEST]


def _quantised(prefix: str, dim: int, smaller: Map, fitted: np.ndarray) -> Iterator[Code]:
    """Yield int8 and binary codes of what `smaller` makes; `fitted` (N,dim) are its training vectors."""
    scale, mean = np.float32(np.abs(fitted).max() / 127), fitted.mean(axis=0)

    def integers(vectors: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(smaller(vectors) / scale), -127, 127).astype(np.float32)

    def signs(vectors: np.ndarray) -> np.ndarray:
        return np.where(smaller(vectors) >= mean, 1, -1).astype(np.float32)

    def centred(vectors: np.ndarray) -> np.ndarray:
        return smaller(vectors) - mean

    yield Code(f"{prefix}int8", dim, 8, integers, integers)
    if dim >= FEWEST_BITS:
        yield Code(f"{prefix}binary", dim, 1, signs, signs, whole=True)
        yield Code(f"{prefix}binary, asymmetric", dim, 1, signs, centred)


def _same(vectors: np.ndarray) -> np.ndarray:
    return unit(vectors)


def _mapped(step: Any) -> Map:
    return lambda vectors: step.apply(unit(vectors), "gallery")
