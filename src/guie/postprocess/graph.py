"""The nearest neighbours of a gallery within itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from guie.types import Index, Side


class Edges(NamedTuple):
    """Neighbours of nodes: `ids` (N,k) int32, -1 where there is none, and `weights` (N,k) float32."""

    ids: np.ndarray
    weights: np.ndarray


def neighbour_graph(gallery: Side, index: Index, neighbours: int) -> Edges:
    """Return the `neighbours` nearest of each gallery vector, itself left out, and their similarities."""
    rows = len(gallery.vectors)
    ids = np.full((rows, neighbours), -1, dtype=np.int32)
    weights = np.full((rows, neighbours), -np.inf, dtype=np.float32)
    step = index.tile or rows or 1
    for start in range(0, rows, step):
        part = slice(start, min(rows, start + step))
        own = np.arange(part.start, part.stop)
        found = index.search(Side(gallery.vectors[part]), neighbours, self_ids=own)
        ids[part], weights[part] = found.ids, found.scores
    return Edges(ids, weights)
