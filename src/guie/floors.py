"""Descriptors that need no training: what a trained embedding has to beat.

A colour histogram is a hard floor on altered copies, raw pixels on drawings of one style.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from guie.embeddings import from_manifest
from guie.errors import UserError
from guie.types import Embeddings


def colour_histogram(image: np.ndarray, bins: int = 4) -> np.ndarray:
    """Return the joint RGB histogram of (H,W,3) uint8 as (bins**3,) float32 of unit length.

    The square root of the shares makes the inner product of two histograms the Bhattacharyya coefficient
    (Hellinger kernel), far stronger than the cosine of the counts.
    """
    level = image.astype(np.int32) * bins >> 8
    cell = (level[..., 0] * bins + level[..., 1]) * bins + level[..., 2]
    counts = np.bincount(cell.ravel(), minlength=bins**3)
    return np.sqrt(counts / counts.sum()).astype(np.float32)


def raw_pixels(image: np.ndarray, size_px: int = 32) -> np.ndarray:
    """Return (H,W,3) uint8 shrunk by area to size_px x size_px, centred, as a unit vector (3 size_px^2,).

    A picture of one colour has nothing left when centred; it becomes the first unit vector.
    """
    from PIL import Image

    small = Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BOX)
    vector = np.asarray(small, dtype=np.float32).ravel()
    vector = vector - vector.mean()
    length = np.linalg.norm(vector)
    if length < 1e-3:
        return np.eye(1, vector.size, dtype=np.float32)[0]
    return vector / length


FLOORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "colour_histogram": colour_histogram,
    "raw_pixels": raw_pixels,
}


def floor_embeddings(
    manifest: Any, kind: str, *, background: tuple[int, int, int] = (255, 255, 255), threads: int = 2
) -> Embeddings:
    """Describe every picture of a manifest by `kind`, a key of `FLOORS`.

    Pictures that do not decode are left out; `background` shows through transparent ones. Raises UserError
    for another kind, or when none decodes.
    """
    if kind not in FLOORS:
        raise UserError(f"floor: {kind}; accepted: {', '.join(FLOORS)}")
    describe = FLOORS[kind]

    def vector(row: int) -> np.ndarray | None:
        from guie.images import BadImage, decode

        try:
            return describe(decode(manifest.read(row), background=background, box=manifest.crop(row)))
        except (BadImage, OSError):
            return None

    with ThreadPoolExecutor(threads) as pool:
        described = enumerate(pool.map(vector, range(len(manifest))))
        vectors = {row: found for row, found in described if found is not None}
    if not vectors:
        raise UserError(
            f"floor {kind}: none of {len(manifest)} pictures decodes; accepted: JPEG, PNG and their like"
        )
    rows = np.fromiter(vectors, dtype=np.int64)
    return from_manifest(np.stack(list(vectors.values())), manifest, rows=rows, space_id=f"floor-{kind}")
