"""How sure a mean over queries is: bootstrap intervals of one system, and of the difference of two."""

from __future__ import annotations

import numpy as np

# Different values whose counts are drawn at once, and values from which on drawing each one takes seconds.
FEW = 1000
MANY = 10_000


def bootstrap_interval(
    values: np.ndarray, *, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of (Q,) per-query values."""
    means = _resampled_means(np.asarray(values, dtype=np.float64), samples, np.random.default_rng(seed))
    return percentile_interval(means, level)


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return what the middle share `level` of the draws (samples,) lies between."""
    # Linear interpolation as in np.quantile, which (like np.unique) imports numpy.ma, a tenth of a second.
    places = np.array([(1 - level) / 2, (1 + level) / 2]) * (len(draws) - 1)
    low, high = np.interp(places, np.arange(len(draws)), np.sort(draws))
    return float(low), float(high)


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, *, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Return (mean(a - b), low, high): is system a better than b on the same queries?

    `a`, `b` (Q,) values of the same queries in the same order; queries are drawn with replacement, both
    systems see the same draw. The gain is real at `level` when the interval excludes 0. Raises ValueError
    where the lengths differ.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(
            f"a, b: {a.shape} and {b.shape} values; the same queries in the same order are needed"
        )
    low, high = bootstrap_interval(a - b, samples=samples, seed=seed, level=level)
    return float(np.mean(a - b)), low, high


def _resampled_means(values: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return (samples,) means of `values` drawn with replacement.

    Per-query metrics take few distinct values, and how often each is drawn is multinomial: the same
    distribution as drawing queries, at a cost that does not grow with their number.
    """
    ordered = np.sort(values)
    starts = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
    if len(starts) <= min(len(values) // 8, FEW):
        shares = np.diff(starts, append=len(ordered)) / len(values)
        return rng.multinomial(len(values), shares, size=samples) @ ordered[starts] / len(values)
    if len(values) > MANY:
        return _grouped_means(ordered, samples, rng)
    rows = max(1, 4_000_000 // len(values))
    chunks = [min(rows, samples - start) for start in range(0, samples, rows)]
    return np.concatenate(
        [values[rng.integers(len(values), size=(n, len(values)))].mean(axis=1) for n in chunks]
    )


def _grouped_means(ordered: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return what `_resampled_means` does for very many different values, in ascending order.

    How often each of 128 groups of neighbours is drawn is multinomial; which ones of a group, a normal
    deviate with its variance, a small share of the whole. Seconds instead of minutes.
    """
    starts = np.linspace(0, len(ordered), 128, endpoint=False).astype(np.int64)
    sizes = np.diff(starts, append=len(ordered))
    centres = np.add.reduceat(ordered, starts) / sizes
    spread = np.add.reduceat((ordered - np.repeat(centres, sizes)) ** 2, starts) / sizes
    drawn = rng.multinomial(len(ordered), sizes / len(ordered), size=samples)
    deviates = rng.standard_normal(samples) * np.sqrt(drawn @ spread)
    return (drawn @ centres + deviates) / len(ordered)
