"""Whether two pictures show the same thing: matches of local features that agree on one geometry."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from guie.local.features import Keypoints

MIN_MATCHES = 5  # a homography explains any four

Model = Literal["homography", "affine"]


class Verified(NamedTuple):
    """`inliers`: how many matches agree; `matrix` (3,3) takes places of the first picture to the second."""

    inliers: int
    matrix: np.ndarray | None


NOTHING = Verified(0, None)


def match(first: Keypoints, second: Keypoints, ratio: float = 0.85) -> np.ndarray:
    """Return pairs (M,2) of mutual nearest descriptors, nearer than `ratio` times the second nearest."""
    import cv2

    if len(first.xy) < 2 or len(second.xy) < 2:
        return np.empty((0, 2), np.int64)
    # OpenCV's product: many threads that match side by side would wait for one another in numpy's
    cosines = cv2.gemm(first.descriptors, second.descriptors, 1, None, 0, flags=cv2.GEMM_2_T)  # type: ignore[call-overload]
    best = cosines.argmax(axis=1)
    rows = np.arange(len(best))
    mutual = cosines.argmax(axis=0)[best] == rows
    nearest = cosines[rows, best]
    cosines[rows, best] = -np.inf
    runner_up = cosines.max(axis=1)
    clear = np.maximum(2 - 2 * nearest, 0) < ratio**2 * np.maximum(2 - 2 * runner_up, 0)
    kept = np.flatnonzero(clear & mutual)
    return np.stack([kept, best[kept]], axis=1)


def verify(
    first: Keypoints,
    second: Keypoints,
    *,
    model: Model = "homography",
    tolerance_px: float = 4.0,
    trials: int = 1000,
    ratio: float = 0.85,
    seed: int = 0,
) -> Verified:
    """Return how many matches one transformation explains within `tolerance_px`, as `agreement`."""
    pairs = match(first, second, ratio)
    places = first.xy[pairs[:, 0]], second.xy[pairs[:, 1]]
    return agreement(*places, model=model, tolerance_px=tolerance_px, trials=trials, seed=seed)


def agreement(
    source: np.ndarray,
    target: np.ndarray,
    *,
    model: Model = "homography",
    tolerance_px: float = 4.0,
    trials: int = 1000,
    seed: int = 0,
) -> Verified:
    """Return how many places (M,2) of `source` one transformation takes to `target`, within `tolerance_px`.

    A homography by MAGSAC++ (Barath et al., CVPR 2020) or an affine map by RANSAC. Equal for equal `seed`.
    """
    import cv2

    if len(source) < MIN_MATCHES:
        return NOTHING
    cv2.setRNGSeed(seed)
    if model == "homography":
        matrix, mask = cv2.findHomography(
            source, target, cv2.USAC_MAGSAC, tolerance_px, maxIters=trials, confidence=0.999
        )
    else:
        found, mask = cv2.estimateAffine2D(
            source, target, method=cv2.RANSAC, ransacReprojThreshold=tolerance_px, maxIters=trials
        )
        matrix = None if found is None else np.vstack([found, [0.0, 0.0, 1.0]])
    if matrix is None or mask is None:
        return NOTHING
    inliers = int(mask.sum())
    return Verified(inliers, matrix) if inliers >= MIN_MATCHES else NOTHING


class Geometry(NamedTuple):
    """How `agreement` is asked: by which `model`, within `tolerance_px`, in at most `trials` draws."""

    model: Model = "homography"
    tolerance_px: float = 4.0
    trials: int = 1000
