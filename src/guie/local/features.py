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
    small = shrunk(grey(image), max_px)
    xy, counts = detected(small, max_keypoints)
    scale = np.array([image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]])
    return Keypoints((xy * scale).astype(np.float32), rooted(counts))


def grey(image: np.ndarray) -> np.ndarray:
    """Return (H,W,3) uint8 RGB as (H,W)."""
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def shrunk(image: np.ndarray, max_px: int) -> np.ndarray:
    """Return (H,W) or (H,W,3) uint8 with a long side of `max_px` at most."""
    import cv2

    high, wide = image.shape[:2]
    scale = max_px / max(high, wide)
    if scale >= 1:
        return image
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def detected(small: np.ndarray, max_keypoints: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places (N,2) float32 of the strongest keypoints of (H,W) uint8, and counts (N,128) uint8."""
    import cv2

    detector: Any = cv2.SIFT_create(nfeatures=max_keypoints)  # type: ignore[attr-defined]
    points, counts = detector.detectAndCompute(small, None)
    if counts is None:
        return np.empty((0, 2), np.float32), np.empty((0, 128), np.uint8)
    # SIFT_create keeps ties beyond the wanted number
    order = np.argsort([-point.response for point in points], kind="stable")[:max_keypoints]
    xy = np.array([points[i].pt for i in order], np.float32)
    return xy, counts[order].astype(np.uint8)


def rooted(counts: np.ndarray) -> np.ndarray:
    """Return RootSIFT (N,128) float32, unit length, of SIFT's counts (N,128)."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True, dtype=np.float32), np.float32(1e-7))
    return np.sqrt(shares, dtype=np.float32)
