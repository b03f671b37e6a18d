"""The vectors of several models side by side: unit vectors times weight, brought to unit length. No torch.

Systems C and E0 of the reference systems put their networks together so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guie.errors import UserError

_BLOCK_ROWS = 8192


def check_weights(weights: Any, names: Sequence[str]) -> dict[str, float]:
    """Return the weight of each model, 1 where `weights` does not name it; UserError for others."""
    given = dict(weights or {})
    for name, value in given.items():
        if name not in names:
            accepted = ", ".join(filter(None, names)) or "with several models, ckpt={a:PATH,b:PATH}"
            raise UserError(f"weights.{name}: there is no such model; accepted: {accepted}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"weights.{name}: {value!r}; accepted: a number above 0")
    return {name: float(given.get(name, 1.0)) for name in names}


def good_rows(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the rows (M,) of which every part (N,D) holds a vector; NaN means none."""
    return np.flatnonzero(np.all([np.isfinite(part[:, 0]) for part in parts.values()], axis=0))


def write(
    path: Path, parts: Mapping[str, np.ndarray], weights: Mapping[str, float], rows: np.ndarray
) -> None:
    """Write `rows` (M,) of the parts (N,D), side by side, to `path`: (M, sum of D) float32."""
    shape = (len(rows), sum(part.shape[1] for part in parts.values()))
    target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, len(rows), _BLOCK_ROWS):
        chosen = {name: part[rows[start : start + _BLOCK_ROWS]] for name, part in parts.items()}
        block = joined(chosen, weights) if len(parts) > 1 else next(iter(chosen.values()))
        target[start : start + len(block)] = block
    target.flush()


def joined(parts: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Return (N, sum of D) float32 of parts (N,D)."""
    weighted = [weights[name] * _unit(part.astype(np.float64)) for name, part in parts.items()]
    return _unit(np.concatenate(weighted, axis=1)).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
