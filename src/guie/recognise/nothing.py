"""Scores of queries that may show nothing known. Pure numpy; Q queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from guie.errors import UserError


@dataclass(frozen=True)
class Penalty:
    """What likeness to pictures that show nothing known takes off a score.

    `weight` times the mean of the `nearest` similarities to such pictures, where that is `threshold` or more
    (system C's "score - 1.5 * top 3 where top 3 >= 0.3"); 0 stands for each picture that is missing. Config
    group `recognise`.
    """

    nearest: int = 3
    weight: float = 1.5
    threshold: float = 0.3

    def __post_init__(self) -> None:
        if self.nearest < 1:
            raise UserError(f"recognise.penalty.nearest: {self.nearest}; accepted: 1 or more")

    def apply(self, scores: np.ndarray, similarities: np.ndarray) -> np.ndarray:
        """Return (Q,) scores less the penalty; `similarities` (Q,n) to those pictures, best first."""
        alike = np.where(np.isfinite(similarities), similarities, 0)[:, : self.nearest].mean(axis=1)
        return (scores - np.where(alike >= self.threshold, self.weight * alike, 0)).astype(np.float32)


def ban_frequent(labels: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
    """Return scores (Q,) with -count for each label (Q,) that is predicted more than `limit` times.

    What is seen too often among the queries is no landmark (Yokoo et al. 2020; limit 30). Label -1, no
    prediction, is left alone.
    """
    counts = np.bincount(labels[labels >= 0], minlength=1)[np.maximum(labels, 0)]
    return np.where((labels >= 0) & (counts > limit), -counts, scores).astype(np.float32)
