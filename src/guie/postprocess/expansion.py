"""A vector averaged with its neighbours: alpha query expansion, and the same for the gallery (DBA)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from guie.postprocess.step import ANY, SOME, Ranges, Stage, Step
from guie.postprocess.vectors import neighbour_sum, similarity_weights, unit
from guie.types import Index, Side


class AlphaQE(Step):
    """A query becomes the sum of itself and its `neighbours` best results, each times similarity^alpha.

    Radenovic et al., TPAMI 2019, section 3.4 (alpha 0: average query expansion, Chum et al. 2007). The query
    weighs 1, its similarity to itself; a query in the gallery is not its own neighbour.
    """

    kind = "query"
    ranges: ClassVar[Ranges] = {"neighbours": SOME, "alpha": ANY}

    def __init__(self, neighbours: int = 10, alpha: float = 3.0) -> None:
        self.neighbours = neighbours
        self.alpha = alpha

    def of_queries(self, queries: Side, stage: Stage, self_ids: np.ndarray | None) -> Side:
        """Return queries of unit length, moved towards their neighbours."""
        found = stage.index.search(queries, self.neighbours, self_ids=self_ids)
        weights = similarity_weights(found.scores, self.alpha)
        moved = queries.vectors + neighbour_sum(stage.gallery.vectors, found.ids, weights)
        return replace(queries, vectors=unit(moved))


class DBA(Step):
    """Each gallery vector becomes the sum of its `neighbours` best results, itself among them.

    Database-side augmentation (Turcot and Lowe 2009; Arandjelovic and Zisserman 2012) with the weights of
    alpha query expansion, similarity^alpha.
    """

    kind = "gallery"
    ranges: ClassVar[Ranges] = {"neighbours": SOME, "alpha": ANY}

    def __init__(self, neighbours: int = 10, alpha: float = 3.0) -> None:
        self.neighbours = neighbours
        self.alpha = alpha

    def of_gallery(self, stage: Stage) -> Side:
        """Return the gallery with vectors of unit length, moved towards their neighbours."""
        moved = smoothed(stage.gallery, stage.index, self.neighbours, self.alpha)
        return replace(stage.gallery, vectors=moved)


def smoothed(side: Side, index: Index, neighbours: int, alpha: float) -> np.ndarray:
    """Return (N,D) unit rows: the sums of each one's `neighbours` best rows in `index`, times sim^alpha."""
    moved = np.empty(side.vectors.shape, dtype=np.float32)
    step = index.tile or len(moved) or 1
    for start in range(0, len(moved), step):
        part = slice(start, start + step)
        found = index.search(Side(side.vectors[part]), neighbours)
        weights = similarity_weights(found.scores, alpha)
        moved[part] = unit(neighbour_sum(side.vectors, found.ids, weights))
    return moved
