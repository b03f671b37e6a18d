"""Open-set identification: is a query's thing in the gallery at all, and which one is it?

A query searches the gallery; its first result is accepted above a threshold. Searches of things that are not
there and are answered all the same are the false-positive identification rate (FPIR); searches of things that
are there, whose first result is right and accepted, the detection and identification rate (DIR at rank 1;
Phillips, Grother, Micheals, Handbook of Face Recognition, 2011; Guenther et al., CVPR workshops 2017).
Where every query has a relevant picture, its class is left out of the gallery for the searches of unknown
things: what is then found first is the best impostor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from guie.metrics.bootstrap import percentile_interval

RATES = (0.1, 0.01)
_DRAWS = 200


def open_set(
    best_genuine: np.ndarray,
    best_impostor: np.ndarray,
    rates: tuple[float, ...] = RATES,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return counts, AUROC and DIR at each FPIR of queries (Q,), with intervals; {} where none is known.

    `best_genuine`, `best_impostor` (Q,): similarity of the best picture of the same and of another thing,
    -inf where there is none. `unknown` says whether such queries are "stated" or their class is "left out".
    """
    known = np.isfinite(best_genuine)
    stated = bool((~known & np.isfinite(best_impostor)).any())
    strangers = best_impostor[~known] if stated else best_impostor
    strangers = strangers[np.isfinite(strangers)]
    if not known.any() or not len(strangers):
        return {}
    found = np.maximum(best_genuine, best_impostor)[known]
    # A tie is lost: which of two equal results comes first is chance.
    right = np.where(best_genuine > best_impostor, best_genuine, -np.inf)[known]
    value = auroc(found, strangers)
    points = [identification(right, strangers, rate) for rate in rates]
    rng, draws = np.random.default_rng(seed), []
    for _ in range(_DRAWS):
        ours = rng.integers(len(found), size=len(found))
        theirs = strangers[rng.integers(len(strangers), size=len(strangers))]
        at = [identification(right[ours], theirs, rate)[0] for rate in rates]
        draws.append([auroc(found[ours], theirs), *at])
    intervals = [list(percentile_interval(column)) for column in np.array(draws).T]
    return {
        "known": int(known.sum()),
        "unknown": len(strangers),
        "unknown_are": "stated" if stated else "left out",
        "AUROC": value,
        "AUROC_interval": intervals[0],
        "at": [
            {"FPIR": rate, "DIR": share, "DIR_interval": interval, "threshold": threshold}
            for rate, (share, threshold), interval in zip(rates, points, intervals[1:], strict=True)
        ],
    }


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return how often a score of `known` (K,) is above one of `unknown` (U,); equal ones count half."""
    ordered = np.sort(unknown)
    below, not_above = (np.searchsorted(ordered, known, side=side) for side in ("left", "right"))
    return float((below + not_above).sum() / (2 * len(known) * len(unknown)))


def identification(right: np.ndarray, unknown: np.ndarray, rate: float) -> tuple[float, float]:
    """Return (DIR, threshold): scores above the threshold are accepted, at most `rate` of `unknown` (U,).

    `right` (K,) are the scores of known queries, -inf where the first result is wrong.
    """
    threshold = np.sort(unknown)[::-1][min(int(rate * len(unknown)), len(unknown) - 1)]
    return float((right > threshold).mean()), float(threshold)
