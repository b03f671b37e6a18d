"""k-reciprocal re-ranking (Zhong et al., CVPR 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from guie.postprocess.step import SOME, Ranges, Stage, Step
from guie.postprocess.vectors import chunks
from guie.search.exact import knn
from guie.types import Ranking, Side

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class KReciprocal(Step):
    """Jaccard distance of k-reciprocal neighbours, mixed with the distance itself (Zhong et al. 2017).

    `k1` neighbours in both directions, extended by those of `k1` / 2 that overlap by two thirds (eq. 4-5),
    weighted by exp(-distance) (eq. 7) and averaged over `k2` neighbours (eq. 11); `mix` is the paper's
    lambda, the share of the distance (eq. 12). Distances are those of unit vectors, squared and divided by
    the largest of their row, as the authors' program has it. Scores are distances, negated; equal ones: the
    nearer first, then the lower gallery position.

    Queries are neighbours of each other, so all must be asked at once. One that is in the gallery takes the
    place of its picture there.
    """

    kind = "rerank"
    all_queries = True
    ranges: ClassVar[Ranges] = {"k1": SOME, "k2": SOME, "mix": (0, 1)}

    def __init__(self, k1: int = 20, k2: int = 6, mix: float = 0.3) -> None:
        self.k1 = k1
        self.k2 = k2
        self.mix = mix

    def rerank(self, ranking: Ranking, queries: Side, stage: Stage, self_ids: np.ndarray | None) -> Ranking:
        """Return the best of `ranking` and of all that shares a reciprocal neighbour with the query."""
        if not len(queries.vectors):
            return ranking
        nodes, own = _nodes(queries.vectors, stage.gallery.vectors, self_ids)
        near = _nearest(nodes, self.k1, self.k2)
        encoded = _encoded(near, self.k1, self.k2)
        ids, scores = ranking.ids.copy(), ranking.scores.copy()
        shares = _Shared(encoded, len(stage.gallery.vectors))
        for row, node in enumerate(own.tolist()):
            candidates, jaccard = shares.distances(node, ids[row])
            far = near.distances(node, candidates)
            mixed = (1 - self.mix) * jaccard + self.mix * far
            order = np.lexsort((candidates, far, mixed))[: ids.shape[1]]
            ids[row, : len(order)], scores[row, : len(order)] = candidates[order], -mixed[order]
        return Ranking(ids, scores)


@dataclass(frozen=True)
class _Near:
    """`vectors` (n,D) of all nodes; `ids` (n,k) nearest, itself first; `largest` (n,) squared distances."""

    vectors: np.ndarray
    ids: np.ndarray
    largest: np.ndarray

    def distances(self, node: int, others: np.ndarray) -> np.ndarray:
        """Return (m,) squared distances from a node, in parts of the largest of its row."""
        return _distances(self.vectors[others] @ self.vectors[node], self.largest[node])


def _distances(similarity: np.ndarray, largest: np.ndarray | float) -> np.ndarray:
    return np.maximum(2 - 2 * similarity.astype(np.float64), 0) / largest


def _nodes(
    queries: np.ndarray, gallery: np.ndarray, self_ids: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,D) float32: the gallery, then the queries that are not in it; and each query's place (Q,)."""
    places = np.full(len(queries), -1) if self_ids is None else np.asarray(self_ids).astype(np.int64)
    outside = places < 0
    nodes = np.concatenate([gallery, queries[outside]], dtype=np.float32)
    places[outside] = len(gallery) + np.arange(outside.sum())
    nodes[places] = queries
    return nodes, places


def _nearest(nodes: np.ndarray, k1: int, k2: int) -> _Near:
    width = min(max(k1 + 1, k2), len(nodes))
    farthest = knn(-nodes, nodes, 1).scores[:, 0]
    return _Near(nodes, knn(nodes, nodes, width).ids, np.maximum(_distances(-farthest, 1.0), 1e-12))


def _encoded(near: _Near, k1: int, k2: int) -> csr_matrix:
    """Return (n,n) sparse: rows of weights that sum to 1 over a node's reciprocal neighbours."""
    from scipy.sparse import csr_matrix

    one_way = _reciprocal(near.ids[:, : k1 + 1])
    half = _reciprocal(near.ids[:, : round(k1 / 2) + 1])
    sizes = np.asarray(half.sum(axis=1)).ravel()
    parts = []
    for rows in chunks(len(near.ids), 64 * (k1 + 1) ** 2):
        own = one_way[rows]
        shared = own.multiply(own @ half.T).tocoo()
        enough = shared.data > 2 / 3 * sizes[shared.col]
        chosen = csr_matrix(
            (np.ones(enough.sum(), np.int32), (shared.row[enough], shared.col[enough])), shape=own.shape
        )
        parts.append(_weighted(near, rows, (own + chosen @ half).tocoo()))
    return _averaged(_stacked(parts, len(near.ids)), near.ids[:, :k2])


def _reciprocal(ids: np.ndarray) -> csr_matrix:
    """Return (n,n) sparse of ones where each is among the nearest `ids` (n,k) of the other."""
    matrix = _ones(ids)
    return matrix.multiply(matrix.T).tocsr()


def _ones(ids: np.ndarray) -> csr_matrix:
    from scipy.sparse import csr_matrix

    rows, width = ids.shape
    starts = np.arange(0, rows * width + 1, width)
    return csr_matrix((np.ones(rows * width, dtype=np.int32), ids.ravel(), starts), shape=(rows, rows))


def _weighted(near: _Near, rows: slice, pattern: csr_matrix) -> csr_matrix:
    """Return the rows of `pattern` with exp(-distance) in the place of its entries, rows summing to 1."""
    from scipy.sparse import csr_matrix

    first = pattern.row + rows.start
    similarity = np.empty(len(first), dtype=np.float32)
    for part in chunks(len(first), 8 * near.vectors.shape[1]):
        pairs = near.vectors[first[part]], near.vectors[pattern.col[part]]
        similarity[part] = np.einsum("pd,pd->p", *pairs)
    weights = np.exp(-_distances(similarity, near.largest[first]))
    weights /= np.bincount(pattern.row, weights, minlength=pattern.shape[0])[pattern.row]
    return csr_matrix((weights.astype(np.float32), (pattern.row, pattern.col)), shape=pattern.shape)


def _stacked(parts: list[csr_matrix], rows: int) -> csr_matrix:
    from scipy.sparse import csr_matrix, vstack

    return vstack(parts, format="csr") if parts else csr_matrix((rows, rows), dtype=np.float32)


def _averaged(encoded: csr_matrix, ids: np.ndarray) -> csr_matrix:
    """Return each row averaged over those of its nearest `ids` (n,k2)."""
    if ids.shape[1] <= 1:
        return encoded
    return (_ones(ids).astype(np.float32) @ encoded / np.float32(ids.shape[1])).tocsr()


class _Shared:
    """What rows of a sparse matrix (n,n) share with each other, over the first `gallery` rows."""

    def __init__(self, encoded: csr_matrix, gallery: int) -> None:
        self.rows = encoded
        self.columns = encoded[:gallery].T.tocsr()
        self.gallery = gallery

    def distances(self, node: int, ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return gallery positions (m,) and their Jaccard distances: those `ranked`, and all that share.

        The node itself is not among them.
        """
        own = self.rows[node]
        others = self.columns[own.indices]
        smaller = np.minimum(np.repeat(own.data, np.diff(others.indptr)), others.data)
        overlap = np.bincount(others.indices, smaller, minlength=self.gallery)
        wanted = overlap > 0
        wanted[ranked[ranked >= 0]] = True
        wanted[node : node + 1] = False
        candidates = np.flatnonzero(wanted)
        return candidates, 1 - overlap[candidates] / (2 - overlap[candidates])
