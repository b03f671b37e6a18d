"""What a vector has in common with training pictures of other things: taken from it, or from its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from guie.errors import UserError
from guie.postprocess.expansion import smoothed
from guie.postprocess.layers import Subtracted
from guie.postprocess.step import ANY, SOME, Ranges, Role, Step
from guie.postprocess.vectors import chunks, neighbour_sum, unit
from guie.search.exact import Exact, knn
from guie.types import Side


class NegativeSubtraction(Step):
    """x <- L2(x - beta x mean of its `neighbours` nearest bank vectors), on queries and gallery, once.

    Yokoo 2021 (ISC21 descriptor track, first place). The bank is smoothed first: each vector becomes the sum
    of its `smoothing` nearest, itself among them, times similarity^alpha; `smoothing` 0 leaves it as it is.
    """

    needs_bank = True
    ranges: ClassVar[Ranges] = {"neighbours": SOME, "beta": ANY, "smoothing": ANY, "alpha": ANY}

    def __init__(
        self, neighbours: int = 10, beta: float = 0.35, smoothing: int = 10, alpha: float = 3.0
    ) -> None:
        self.neighbours = neighbours
        self.beta = beta
        self.smoothing = smoothing
        self.alpha = alpha
        self.bank: np.ndarray | None = None

    def fit(self, bank: Side) -> None:
        """Keep the training vectors (N,D), smoothed."""
        vectors = _bank_of(bank)
        if self.smoothing:
            vectors = smoothed(Side(vectors), Exact().index(Side(vectors)), self.smoothing, self.alpha)
        self.bank = vectors

    def state(self) -> dict[str, np.ndarray]:
        """Return the smoothed bank (N,D)."""
        return {} if self.bank is None else {"bank": self.bank}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over a smoothed bank."""
        self.bank = state["bank"]

    def apply(self, vectors: np.ndarray, role: Role) -> np.ndarray:
        """Return (N,D) unit vectors."""
        assert self.bank is not None, "the pipeline asks fitted steps alone"
        moved = np.empty(vectors.shape, dtype=np.float32)
        for rows in chunks(len(vectors), 64 * self.neighbours + 4 * vectors.shape[1]):
            part = np.ascontiguousarray(vectors[rows], dtype=np.float32)
            found = knn(part, self.bank, self.neighbours)
            count = np.maximum((found.ids >= 0).sum(axis=1, keepdims=True), 1)
            mean = neighbour_sum(self.bank, found.ids, np.ones_like(found.scores)) / count
            moved[rows] = unit(part - np.float32(self.beta) * mean)
        return moved

    def layer(self, width: int) -> Subtracted:
        """Return the smoothed bank (N,D), how many of it are subtracted, and their weight."""
        assert self.bank is not None, "the pipeline asks fitted steps alone"
        if self.bank.shape[1] != width:
            raise UserError(f"vectors: {width}-d received; accepted: {self.bank.shape[1]}-d, as fitted")
        return Subtracted(self.bank, min(self.neighbours, len(self.bank)), float(self.beta))


class ScoreNormalisation(Step):
    """score <- score - beta x mean of the query's `neighbours` best scores against training vectors.

    SSCD (Pizzi et al., CVPR 2022, section 4.6), whose program takes the first three. One dimension more does
    it, so that any index serves: 1 for the gallery, the correction for the query. Within one query nothing
    changes places; pairs of different queries do, which is what a threshold and uAP look at.
    """

    needs_bank = True
    ends_vectors = True
    ranges: ClassVar[Ranges] = {"neighbours": SOME, "beta": ANY}

    def __init__(self, neighbours: int = 3, beta: float = 1.0) -> None:
        self.neighbours = neighbours
        self.beta = beta
        self.bank: np.ndarray | None = None

    def fit(self, bank: Side) -> None:
        """Keep the training vectors (N,D)."""
        self.bank = _bank_of(bank)

    def state(self) -> dict[str, np.ndarray]:
        """Return the bank (N,D)."""
        return {} if self.bank is None else {"bank": self.bank}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over a bank."""
        self.bank = state["bank"]

    def apply(self, vectors: np.ndarray, role: Role) -> np.ndarray:
        """Return (N,D+1): the last is 1 in the gallery, -beta x mean of the best scores for a query."""
        last = np.ones(len(vectors), dtype=np.float32)
        if role == "query":
            assert self.bank is not None, "the pipeline asks fitted steps alone"
            found = knn(np.ascontiguousarray(vectors, dtype=np.float32), self.bank, self.neighbours)
            best = found.scores[:, : len(self.bank)]
            last = -np.float32(self.beta) * best.mean(axis=1, dtype=np.float32)
        return np.concatenate([vectors, last[:, None]], axis=1, dtype=np.float32)


def _bank_of(bank: Side) -> np.ndarray:
    if not len(bank.vectors):
        raise UserError("bank: 0 training vectors; accepted: 1 or more")
    return np.ascontiguousarray(bank.vectors, dtype=np.float32)
