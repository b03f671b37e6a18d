"""Random numbers that are a function of (seed, step, slot): no state, so ranks and workers cannot differ.

A slot is a position in the global batch. Every number is one chain of the splitmix64 finaliser (Steele,
Lea and Flood 2014) over seed, step, slot and the number's place, computed for all at once.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(seed: int, step: int, slots: np.ndarray, n: int) -> np.ndarray:
    """Return (B,n) float64 in [0, 1): row b depends on seed, step and slots[b] only, column j not on n."""
    base = _chain(_chain(np.zeros(1, np.uint64), seed), step)
    rows = _mix(base + _GOLDEN * np.asarray(slots, np.int64).astype(np.uint64))
    places = np.arange(1, n + 1, dtype=np.uint64)
    bits = _mix(rows[:, None] + _GOLDEN * places[None, :])
    return (bits >> np.uint64(11)) * 2.0**-53


def integers(seed: int, step: int, slots: np.ndarray) -> np.ndarray:
    """Return (B,) seeds in 0..2**32-1 for generators that keep their own state."""
    return (uniforms(seed, step, slots, 1)[:, 0] * 2**32).astype(np.int64)


def permutation(seed: int, epoch: int, n: int, dtype: type[np.signedinteger] = np.int64) -> np.ndarray:
    """Return a permutation (n,) that is a function of seed and epoch, the same for every `dtype`."""
    order = np.arange(n, dtype=dtype)
    np.random.Generator(np.random.Philox(key=[seed % 2**64, epoch % 2**64])).shuffle(order)
    return order


def _chain(state: np.ndarray, value: int) -> np.ndarray:
    return _mix(_mix(state + _GOLDEN) ^ np.uint64(value % 2**64))


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))
