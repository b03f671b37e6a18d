"""What two pictures have in common, by one kind of local feature: the choices of re-ranking."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from guie.errors import UserError
from guie.local.features import Keypoints, detected, grey, rooted, shrunk
from guie.local.verify import match

Features = dict[str, np.ndarray]  # what is kept of one picture, on disk too


class Matcher(Protocol):
    """A kind of local features. Threads share one: it changes nothing of itself while it works."""

    def describing(self) -> dict[str, Any]:
        """Return whatever changes the features of a picture, as JSON: part of the key they are cached by."""

    def matching(self) -> dict[str, Any]:
        """Return what else changes the places that correspond, as JSON."""

    def describe(self, image: np.ndarray) -> Features:
        """Return the features of (H,W,3) uint8 RGB."""

    def correspond(self, first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
        """Return the same places in both pictures, (M,2) and (M,2) float32 pixels of what was described."""


def check_positive(**values: float | None) -> None:
    """Raise UserError on a value that is not above 0; None stands for no value."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UserError(f"{name}: {value}; accepted: above 0")


class Sift:
    """RootSIFT keypoints (Lowe 2004; Arandjelovic 2012), mutually nearest and clearly so: no weights.

    Pictures are brought to a long side of `max_px` first, larger ones only, and their `max_keypoints`
    strongest count; `ratio` is that of the nearest to the second nearest. Config group `postprocess`.
    """

    def __init__(self, max_px: int = 800, max_keypoints: int = 1000, ratio: float = 0.85):
        numbers = {"max_px": max_px, "max_keypoints": max_keypoints, "ratio": ratio}
        check_positive(**{f"matcher.{name}": value for name, value in numbers.items()})
        self.max_px, self.max_keypoints, self.ratio = max_px, max_keypoints, ratio

    def describing(self) -> dict[str, Any]:
        """Return the sizes and OpenCV's version."""
        import cv2

        sizes = {"max_px": self.max_px, "max_keypoints": self.max_keypoints}
        return {"features": "sift", "opencv": cv2.__version__, **sizes}

    def matching(self) -> dict[str, Any]:
        """Return the ratio."""
        return {"ratio": self.ratio}

    def describe(self, image: np.ndarray) -> Features:
        """Return `xy` (N,2) float32 and `counts` (N,128) uint8, a quarter of the floats they stand for."""
        xy, counts = detected(shrunk(grey(image), self.max_px), self.max_keypoints)
        return {"xy": xy, "counts": counts}

    def correspond(self, first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of matching keypoints."""
        a, b = (Keypoints(one["xy"], rooted(one["counts"])) for one in (first, second))
        pairs = match(a, b, self.ratio)
        return a.xy[pairs[:, 0]], b.xy[pairs[:, 1]]
