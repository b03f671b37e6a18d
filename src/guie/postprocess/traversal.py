"""Re-ranking by a walk over the graph of neighbours: explore-exploit graph traversal (EGT)."""

from __future__ import annotations

import heapq
from typing import ClassVar

import numpy as np

from guie.postprocess.graph import Edges, neighbour_graph
from guie.postprocess.step import SOME, Ranges, Stage, Step
from guie.types import Index, Ranking, Side


class EGT(Step):
    """Results are collected from the query outwards (Chang et al., CVPR 2019, algorithm 1).

    Explore: the `neighbours` of what was taken last are offered with their similarity to it. Exploit: the
    best of all offers is taken, and further ones as long as they are above `threshold`; then it explores
    again. The score of a result is the weakest similarity on the way to it. Equal similarities: what was
    offered first. What the walk does not reach follows as it was. Defaults are those of the authors' program.
    """

    kind = "rerank"
    ranges: ClassVar[Ranges] = {"neighbours": SOME}

    def __init__(self, neighbours: int = 250, threshold: float = 0.42) -> None:
        self.neighbours = neighbours
        self.threshold = threshold

    @property
    def depth(self) -> int:
        """Return how many neighbours of the query are offered at first."""
        return self.neighbours

    def prepare(self, gallery: Side, index: Index) -> Edges:
        """Return the neighbours of each gallery vector, itself left out."""
        return neighbour_graph(gallery, index, self.neighbours)

    def rerank(self, ranking: Ranking, queries: Side, stage: Stage, self_ids: np.ndarray | None) -> Ranking:
        """Return as many results as `ranking` has."""
        ids, scores = ranking.ids.copy(), ranking.scores.copy()
        for row in range(len(ids)):
            own = -1 if self_ids is None else int(self_ids[row])
            old = ids[row][ids[row] >= 0]
            taken = self._walk(Edges(old, scores[row, : len(old)]), stage.kept, own, len(old))
            left = ~np.isin(old, list(taken))
            behind = np.concatenate([list(taken.values()), scores[row, : len(old)][left]])
            ids[row, : len(old)] = np.concatenate([list(taken), old[left]])[: len(old)]
            scores[row, : len(old)] = np.minimum.accumulate(behind)[: len(old)]
        return Ranking(ids, scores)

    def _walk(self, first: Edges, edges: Edges, own: int, wanted: int) -> dict[int, float]:
        """Return the nodes taken with the similarity at which each was, in the order of the walk."""
        offers = _Offers(len(edges.ids), own)
        offers.add(first.ids[: self.neighbours], first.weights[: self.neighbours])
        taken: dict[int, float] = {}
        while offers.heap and len(taken) < wanted:
            latest: list[int] = []
            while offers.heap and len(taken) < wanted and (not latest or offers.best > self.threshold):
                node, weight = offers.pop()
                if node not in taken:  # an older, lower offer
                    taken[node] = weight
                    latest.append(node)
            for node in latest:
                offers.add(edges.ids[node], edges.weights[node])
        return taken


class _Offers:
    """Nodes by the best weight offered; `own` is never taken in."""

    def __init__(self, nodes: int, own: int) -> None:
        self.heap: list[tuple[float, int, int]] = []
        self._weights = np.full(nodes, -np.inf, dtype=np.float32)
        self._weights[own : own + 1] = np.inf  # nothing where own is -1
        self._count = 0

    @property
    def best(self) -> float:
        return -self.heap[0][0]

    def add(self, nodes: np.ndarray, weights: np.ndarray) -> None:
        better = weights > self._weights[nodes]  # never where there is no node: its weight is -inf
        self._weights[nodes[better]] = weights[better]
        for node, weight in zip(nodes[better].tolist(), weights[better].tolist(), strict=True):
            self._count += 1
            heapq.heappush(self.heap, (-weight, self._count, node))

    def pop(self) -> tuple[int, float]:
        weight, _, node = heapq.heappop(self.heap)
        return node, -weight
