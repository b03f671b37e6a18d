"""Approximate nearest neighbours by faiss, with the recall measured against the exact search.

What is found is scored and ordered as `search.exact` does it, so that an approximate ranking is the exact one
with rows missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from guie.errors import UserError
from guie.search.exact import SPARE, Exact, ExactIndex, in_order, ranked, rescored
from guie.types import Index, Ranking, Side

# faiss learns a list from at least this many rows, or complains.
ROWS_OF_A_LIST = 39


class Recall:
    """How much of the exact result was found, on one query in `every`, over all indexes that count here."""

    def __init__(self, every: int):
        _at_least("check_every", every)
        self._every, self._seen = every, 0
        self._counts: dict[int, np.ndarray] = {}

    def add(
        self, found: Ranking, queries: np.ndarray, self_ids: np.ndarray | None, exact: ExactIndex
    ) -> None:
        """Search every so many of `queries` exactly and count what was `found`; equal scores are no miss."""
        rows = np.arange(-self._seen % self._every, len(queries), self._every)
        self._seen += len(queries)
        if not len(rows):
            return
        k = found.ids.shape[1]
        own = None if self_ids is None else self_ids[rows]
        wanted = exact.search(Side(queries[rows]), k, self_ids=own).scores
        there = np.isfinite(wanted)
        last = np.where(there, wanted, np.inf).min(axis=1, keepdims=True)
        hits = (found.scores[rows] >= last) & there
        self._counts[k] = self._counts.get(k, 0) + np.array([hits.sum(), there.sum(), len(rows)])

    def facts(self) -> dict[str, float | int]:
        """Return, for each k asked so far, `recall@k` and how many queries it comes from."""
        facts: dict[str, float | int] = {}
        for k, (hits, there, queries) in sorted(self._counts.items()):
            facts |= {f"recall@{k}": float(hits / max(there, 1)), f"recall@{k}_queries": int(queries)}
        return facts


class IVF:
    """Inverted lists (Jegou et al. 2011; faiss's IVF Flat): a query meets the rows of its `probes` nearest.

    `lists` None: 4 sqrt(N); fewer where faiss could not learn so many from N rows. One query in
    `check_every` is searched exactly, too: the recall that is reported. `memory_mib` bounds the search, not
    the index, which is a copy of the gallery. `device` cuda: faiss's GPU build. Config group `search`.
    """

    def __init__(
        self,
        probes: int = 64,
        lists: int | None = None,
        check_every: int = 50,
        memory_mib: float = 16,
        device: Literal["cpu", "cuda"] = "cpu",
    ):
        _at_least("probes", probes)
        _at_least("lists", 1 if lists is None else lists)
        self.probes, self.lists, self.device = probes, lists, device
        self.recall, self._exact = Recall(check_every), Exact(memory_mib)
        if device not in ("cpu", "cuda"):
            raise UserError(f"search.device: '{device}'; accepted: cpu, cuda")
        _faiss("IVF")
        if device == "cuda":
            _check_gpu()

    def index(self, gallery: Side) -> Index:
        """Return the trained and filled index; a gallery too small for lists is searched exactly."""
        faiss = _faiss("IVF")
        exact = self._exact.index(gallery)
        num, dim = exact.vectors.shape
        lists = min(self.lists or round(4 * num**0.5), num // ROWS_OF_A_LIST)
        if lists < 1:
            return exact
        made = faiss.index_factory(dim, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        made = made if self.device == "cpu" else _on_gpu(made)
        made.train(exact.vectors)
        made.add(exact.vectors)
        made.nprobe = min(self.probes, lists)
        return ApproximateIndex(lambda tile, k: made.search(tile, k)[1], exact, self.recall)

    def facts(self) -> dict[str, Any]:
        """Return what a report says of this search."""
        return {"search": "IVF", "lists": self.lists, "probes": self.probes, **self.recall.facts()}


class HNSW:
    """A navigable small-world graph (Malkov, Yashunin 2018; faiss's HNSW Flat) of `links` for each row.

    `build_depth` and `depth` are how many rows are kept in view while it is built and searched (never fewer
    than are asked for). One query in `check_every` is searched exactly, too: the recall that is reported.
    `memory_mib` bounds the search, not the index, which is a copy of the gallery and its links. Built by
    several threads, the graph differs from time to time. Config group `search`.
    """

    def __init__(
        self,
        links: int = 32,
        build_depth: int = 80,
        depth: int = 128,
        check_every: int = 50,
        memory_mib: float = 16,
    ):
        _at_least("links", links, 2)
        _at_least("build_depth", build_depth)
        _at_least("depth", depth)
        _faiss("HNSW")
        self.links, self.build_depth, self.depth = links, build_depth, depth
        self.recall, self._exact = Recall(check_every), Exact(memory_mib)

    def index(self, gallery: Side) -> Index:
        """Return the built graph."""
        faiss = _faiss("HNSW")
        exact = self._exact.index(gallery)
        made = faiss.IndexHNSWFlat(exact.vectors.shape[1], self.links, faiss.METRIC_INNER_PRODUCT)
        made.hnsw.efConstruction = self.build_depth
        made.add(exact.vectors)

        def ask(tile: np.ndarray, k: int) -> np.ndarray:
            params = faiss.SearchParametersHNSW(efSearch=max(self.depth, k))
            return made.search(tile, k, params=params)[1]

        return ApproximateIndex(ask, exact, self.recall)

    def facts(self) -> dict[str, Any]:
        """Return what a report says of this search."""
        settings = {"links": self.links, "build_depth": self.build_depth, "depth": self.depth}
        return {"search": "HNSW", **settings, **self.recall.facts()}


class ApproximateIndex:
    """What a faiss index finds, `ask`(tile (T,D), k) to ids (T,k), and the `exact` one of the same rows."""

    def __init__(self, ask: Callable[[np.ndarray, int], np.ndarray], exact: ExactIndex, recall: Recall):
        self._ask, self._exact, self._recall = ask, exact, recall

    @property
    def tile(self) -> int:
        """Return how many queries fit the memory at once."""
        return self._exact.tile

    def search(self, queries: Side, k: int, *, self_ids: np.ndarray | None = None) -> Ranking:
        """Return what `ranked` states, of the rows that the index finds."""
        ranking = ranked(queries, self._exact.vectors, k, self_ids, self._exact.memory_mib, self._best)
        self._recall.add(ranking, queries.vectors, self_ids, self._exact)
        return ranking

    def _best(self, tile: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        ids = self._ask(tile, min(len(self._exact.vectors), wanted + SPARE))
        return in_order(ids, rescored(tile, self._exact.vectors, ids), wanted)


def _at_least(name: str, value: int, least: int = 1) -> None:
    """Raise UserError for what faiss would end the process for."""
    if value < least:
        raise UserError(f"search.{name}: {value}; accepted: {least} or more")


def _faiss(name: str) -> Any:
    try:
        import faiss
    except ImportError as error:
        cure = "pip install 'guie[cpu]', or search=exact"
        raise UserError(f"search: {name} needs faiss: {cure}") from error
    return faiss


def _check_gpu() -> None:
    """Raise UserError where this process has no GPU, or faiss does not know how to use it."""
    import faiss
    import torch

    if not hasattr(faiss, "StandardGpuResources") or not torch.cuda.is_available():
        raise UserError("search.device: 'cuda' needs a GPU and faiss built for it; accepted here: cpu")


def _on_gpu(index: Any) -> Any:
    """Return `index` on this process's GPU."""
    import faiss
    import torch

    resources = faiss.StandardGpuResources()
    made: Any = faiss.index_cpu_to_gpu(resources, torch.cuda.current_device(), index)
    made.resources = resources  # lives as long as the index that uses it
    return made
