"""What fitted steps do to one vector by itself, as plain arrays: what a file to be deployed can hold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Mapped(NamedTuple):
    """z <- L2(weight z + bias), from `weight` (D',D) and `bias` (D',) float32."""

    weight: np.ndarray
    bias: np.ndarray


class Subtracted(NamedTuple):
    """z <- L2(z - beta x mean of the `neighbours` rows of `bank` (N,D) float32 of highest product with z)."""

    bank: np.ndarray
    neighbours: int
    beta: float


Layer = Mapped | Subtracted
