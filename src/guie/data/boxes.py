"""The part of a picture that a random resized crop takes."""

from __future__ import annotations

import math

import numpy as np

from guie.images import Box


def random_box(
    width: int, height: int, u: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Return (x, y, width, height) in whole pixels: area and log aspect uniform, cut to the picture."""
    area = width * height * (scale[0] + (scale[1] - scale[0]) * u[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = math.exp(low + (high - low) * u[1])
    wide = min(width, max(1, round(math.sqrt(area * aspect))))
    tall = min(height, max(1, round(math.sqrt(area / aspect))))
    return int(u[2] * (width - wide + 1)), int(u[3] * (height - tall + 1)), wide, tall
