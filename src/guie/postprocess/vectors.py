"""Rows of unit length, and sums of neighbours in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Rows that are gathered with their neighbours at a time hold about so many bytes.
CHUNK_BYTES = 16 * 2**20


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return (N,D) rows divided by their length, float32; a zero row stays zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return (vectors / np.maximum(lengths, 1e-12)[:, None]).astype(np.float32)


def chunks(rows: int, bytes_per_row: int) -> Iterator[slice]:
    """Yield slices that cover `rows`, each of about `CHUNK_BYTES`."""
    step = max(1, CHUNK_BYTES // max(bytes_per_row, 1))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def neighbour_sum(vectors: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (Q,D) float32: for each query the rows `ids` (Q,k) of `vectors` (N,D) times `weights` (Q,k).

    Id -1 stands for no neighbour and adds nothing.
    """
    total = np.zeros((len(ids), vectors.shape[1]), dtype=np.float32)
    if not len(vectors):
        return total
    weights = np.where(ids >= 0, weights, 0).astype(np.float32)
    for rows in chunks(len(ids), 4 * ids.shape[1] * vectors.shape[1]):
        np.einsum("qk,qkd->qd", weights[rows], vectors[ids[rows]], out=total[rows])
    return total


def similarity_weights(scores: np.ndarray, alpha: float) -> np.ndarray:
    """Return scores (Q,k) to the power of `alpha`; a negative similarity, or none, weighs nothing."""
    return np.maximum(np.where(np.isfinite(scores), scores, 0), 0) ** np.float32(alpha)
