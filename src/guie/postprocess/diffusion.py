"""Re-ranking by similarity along the graph of neighbours: diffusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from guie.postprocess.graph import Edges, neighbour_graph
from guie.postprocess.step import ANY, SOME, Ranges, Stage, Step, followed_by
from guie.types import Index, Ranking, Side

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class Diffusion(Step):
    """f = (1 - alpha) (I - alpha S)^-1 y, by conjugate gradients (Iscen et al., CVPR 2017).

    S is the graph of mutual `neighbours` in the gallery, similarity^gamma, normalised by the degrees of its
    nodes; y holds similarity^gamma of the query's first `query_neighbours` results. It is solved within the
    query's first `truncate` results, degrees being those of the whole graph (late truncation, Yang et al.,
    AAAI 2019). Defaults are those of system E0 (Yokoo et al. 2020). Equal values keep their order.
    """

    kind = "rerank"
    ranges: ClassVar[Ranges] = {
        **dict.fromkeys(("neighbours", "query_neighbours", "truncate", "iterations"), SOME),
        **{"gamma": ANY, "alpha": (0, 0.9999), "tolerance": ANY},
    }

    def __init__(
        self,
        neighbours: int = 50,
        query_neighbours: int = 10,
        gamma: float = 3.0,
        alpha: float = 0.99,
        truncate: int = 1000,
        iterations: int = 20,
        tolerance: float = 1e-6,
    ) -> None:
        self.neighbours = neighbours
        self.query_neighbours = query_neighbours
        self.gamma = gamma
        self.alpha = alpha
        self.truncate = truncate
        self.iterations = iterations
        self.tolerance = tolerance

    @property
    def depth(self) -> int:
        """Return how many results it is solved for."""
        return self.truncate

    def prepare(self, gallery: Side, index: Index) -> csr_matrix:
        """Return I - alpha S of the gallery, (N,N) sparse."""
        edges = neighbour_graph(gallery, index, self.neighbours)
        return _laplacian(mutual(edges, self.gamma), self.alpha)

    def rerank(self, ranking: Ranking, queries: Side, stage: Stage, self_ids: np.ndarray | None) -> Ranking:
        """Return the first `truncate` results by f, then the rest as it was."""
        ids = ranking.ids[:, : self.truncate].copy()
        scores = ranking.scores[:, : self.truncate].copy()
        for row in range(len(ids)):
            found = ids[row][ids[row] >= 0]
            if len(found):
                start = np.zeros(len(found))
                near = scores[row, : min(self.query_neighbours, len(found))]
                start[: len(near)] = np.maximum(near, 0) ** self.gamma
                reached = self._solve(stage.kept, found, start)
                order = np.argsort(-reached, kind="stable")
                ids[row, : len(found)], scores[row, : len(found)] = found[order], reached[order]
        return followed_by(Ranking(ids, scores), ranking)

    def _solve(self, laplacian: csr_matrix, rows: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return (1 - alpha) f (M,) on the part `rows` (M,) of the graph."""
        from scipy.sparse.linalg import cg

        part = laplacian[rows][:, rows].astype(np.float64)
        found, _ = cg(part, start, rtol=self.tolerance, maxiter=self.iterations)
        return (1 - self.alpha) * found


def mutual(edges: Edges, gamma: float) -> csr_matrix:
    """Return (N,N) sparse float32: weight^gamma of the edges that both ends have, the smaller of the two."""
    from scipy.sparse import csr_matrix

    rows, count = edges.ids.shape
    starts = np.repeat(np.arange(rows, dtype=np.int32), count)
    kept = (edges.ids.ravel() >= 0) & (edges.weights.ravel() > 0)
    weights = edges.weights.ravel()[kept] ** np.float32(gamma)
    directed = csr_matrix((weights, (starts[kept], edges.ids.ravel()[kept])), shape=(rows, rows))
    return directed.minimum(directed.T).tocsr()


def _laplacian(affinity: csr_matrix, alpha: float) -> csr_matrix:
    """Return I - alpha D^-1/2 A D^-1/2, float32."""
    from scipy.sparse import csr_matrix, diags, identity

    degrees = np.asarray(affinity.sum(axis=1), dtype=np.float64).ravel()
    scale = diags(1 / np.sqrt(np.maximum(degrees, 1e-12)))
    return csr_matrix(identity(len(degrees)) - alpha * (scale @ affinity @ scale), dtype=np.float32)
