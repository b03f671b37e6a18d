"""Local features of one picture: SIFT by OpenCV, no weights, no torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Keypoints(NamedTuple):
    """Places `xy` (N,2) float32 in pixels of the picture; `descriptors` (N,128) float32, unit length."""

    xy: np.ndarray
    descriptors: np.ndarray


def sift(image: np.ndarray, max_px: int = 800, max_keypoints: int = 1000) -> Keypoints:
    """Return the strongest SIFT keypoints (Lowe 2004) of (H,W,3) uint8, as RootSIFT (Arandjelovic 2012).

    Pictures are brought to a long side of `max_px` first, larger ones only.
    """
    import cv2

    high, wide = image.shape[:2]
    scale = min(1.0, max_px / max(high, wide))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if scale < 1:
        size = (max(1, round(wide * scale)), max(1, round(high * scale)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    detector: Any = cv2.SIFT_create(nfeatures=max_keypoints)  # type: ignore[attr-defined]
    points, descriptors = detector.detectAndCompute(grey, None)
    if descriptors is None:
        return Keypoints(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    # SIFT_create keeps ties beyond the wanted number
    order = np.argsort([-point.response for point in points], kind="stable")[:max_keypoints]
    enlarged = np.array([wide / grey.shape[1], high / grey.shape[0]])
    xy = np.array([points[i].pt for i in order]) * enlarged
    shares = descriptors[order] / np.maximum(descriptors[order].sum(axis=1, keepdims=True), 1e-7)
    return Keypoints(xy.astype(np.float32), np.sqrt(shares, dtype=np.float32))
