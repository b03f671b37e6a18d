"""What fitted steps do to one vector by itself, as plain arrays: what a file to be deployed can hold."""

from __future__ import annotations

from collections.abc import Sequence
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


def width_behind(layers: Sequence[Layer], width: int) -> int:
    """Return how many numbers a vector of `width` has behind the layers."""
    mapped = [layer for layer in layers if isinstance(layer, Mapped)]
    return len(mapped[-1].bias) if mapped else width
