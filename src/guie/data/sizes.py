"""How large each picture is before any resize: as the manifest states, else as the pictures' headers do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from guie.datasets.manifest import Manifest
from guie.images import BadImage, read_header

_UNKNOWN_PX = 224  # of a picture that cannot be read: training and evaluation pass over it
_CHUNK = 1024


def stated_sizes(manifest: Manifest) -> np.ndarray | None:
    """Return (height, width) of each row, (N,2) float32, 0 where not stated; None without the columns."""
    import pyarrow as pa

    table = manifest.table
    if not {"width", "height"} <= set(table.column_names):
        return None
    try:
        columns = [table[side].cast(pa.float32()).to_numpy() for side in ("height", "width")]
    except pa.ArrowInvalid:
        return np.zeros((len(manifest), 2), np.float32)
    sizes = np.nan_to_num(np.stack(columns, axis=1))
    sizes[(sizes <= 0).any(axis=1)] = 0
    return sizes


def original_sizes(manifest: Manifest, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Return (height, width) of each picture as shown, (N,2) float32; what is not stated is read."""
    sizes = stated_sizes(manifest)
    sizes = np.zeros((len(manifest), 2), np.float32) if sizes is None else sizes
    unknown = np.flatnonzero(sizes[:, 0] == 0)
    with ThreadPoolExecutor(thread_name_prefix="guie-sizes") as pool:
        for start in range(0, len(unknown), _CHUNK):
            rows = unknown[start : start + _CHUNK]
            sizes[rows] = list(pool.map(lambda row: _read_size(manifest, row), rows.tolist()))
            if progress:
                progress(start + len(rows), len(unknown))
    return sizes


def _read_size(manifest: Manifest, row: int) -> tuple[int, int]:
    try:
        header = read_header(manifest.read(row))
    except BadImage:
        return _UNKNOWN_PX, _UNKNOWN_PX
    return header.height, header.width
