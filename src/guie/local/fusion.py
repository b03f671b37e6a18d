"""Inliers and global scores as one score. Pure numpy; Q queries, K results."""

from __future__ import annotations

import numpy as np

from guie.types import Ranking


def inlier_score(inliers: np.ndarray, cap: int = 70) -> np.ndarray:
    """Return min(n, cap) / cap of (Q,K) inliers, float32; what was not compared (-1) counts 0."""
    return np.clip(inliers, 0, cap).astype(np.float32) / np.float32(cap)


def fused(ranking: Ranking, inliers: np.ndarray, *, cap: int = 70, weight: float = 1.0) -> Ranking:
    """Return (Q,K) ordered by score + `weight` * min(n, cap) / cap; ties to the lower gallery position."""
    scores = ranking.scores + np.float32(weight) * inlier_score(inliers, cap)
    return ordered(ranking.ids, scores)


def ordered(ids: np.ndarray, scores: np.ndarray) -> Ranking:
    """Return ids (Q,K) by falling scores (Q,K); ties to the lower id, places without a result last."""
    scores = np.where(ids < 0, -np.inf, scores).astype(np.float32)
    order = np.lexsort((ids, -scores), axis=1)
    return Ranking(np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1))
