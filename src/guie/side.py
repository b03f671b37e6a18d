"""Side inputs: what a neck may read beside the pooled feature, three numbers of a picture's original size.

System A of the reference systems: a picture's shape says what it shows, and resizing hides it.
"""

from __future__ import annotations

import numpy as np

SIDE_DIM = 3
_UNIT_PX = 224


def side_inputs(sizes: np.ndarray) -> np.ndarray:
    """Return H/W, H/224, W/224 of (height, width) in pixels: (N,2) -> (N,3) float32."""
    height, width = np.asarray(sizes, np.float64).T
    return np.stack([height / width, height / _UNIT_PX, width / _UNIT_PX], axis=1).astype(np.float32)
