"""What one system gains over another on the same queries, and how sure that is. Q queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from guie.comparing.pairing import Result
from guie.metrics.bootstrap import paired_bootstrap


class Group(NamedTuple):
    """Some of the queries: `chosen` (Q,) bool, all of a data set (`domain` None) or those of a domain."""

    dataset: str
    domain: str | None
    chosen: np.ndarray


class Gain(NamedTuple):
    """Means of one metric over `queries`; `gain` = candidate - baseline lies between `low` and `high`."""

    queries: int
    baseline: float
    candidate: float
    gain: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return better or worse where the interval excludes 0, same where no query differs, else open."""
        if self.low > 0 or self.high < 0:
            return "better" if self.low > 0 else "worse"
        return "same" if self.low == self.high else "open"


class Bootstrap(NamedTuple):
    """How intervals are drawn."""

    samples: int
    seed: int
    level: float


def groups(datasets: np.ndarray, domains: np.ndarray) -> Iterator[Group]:
    """Yield all queries (data set ""), where there are several data sets; each; the domains of each."""
    names = sorted(set(datasets.tolist()))
    if len(names) > 1:
        yield Group("", None, np.ones(len(datasets), dtype=bool))
    for name in names:
        chosen = datasets == name
        yield Group(name, None, chosen)
        parts = sorted(set(domains[chosen].tolist()))
        for domain in parts if len(parts) > 1 else ():
            yield Group(name, domain or "no domain", chosen & (domains == domain))


def gain(baseline: np.ndarray, candidate: np.ndarray, bootstrap: Bootstrap) -> Gain | None:
    """Return the gain in a metric (Q,), None where nothing is left; a query with a NaN does not count."""
    counted = ~(np.isnan(baseline) | np.isnan(candidate))
    ours, theirs = baseline[counted].astype(np.float64), candidate[counted].astype(np.float64)
    if not len(ours):
        return None
    difference, low, high = paired_bootstrap(theirs, ours, **bootstrap._asdict())
    return Gain(len(ours), float(ours.mean()), float(theirs.mean()), difference, low, high)


def table(
    baseline: Mapping[str, np.ndarray],
    candidate: Mapping[str, np.ndarray],
    parts: list[Group],
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """Return the rows dataset, domain, metric, `Gain`, verdict: one per group and metric, {metric: (Q,)}."""
    rows = []
    for part in parts:
        for metric in (name for name in baseline if name in candidate):
            found = gain(baseline[metric][part.chosen], candidate[metric][part.chosen], bootstrap)
            if found:
                who = {"dataset": part.dataset, "domain": part.domain, "metric": metric}
                rows.append(who | found._asdict() | {"verdict": found.verdict})
    return rows


def wholes(baseline: Result, candidate: Result) -> list[dict[str, Any]]:
    """Return the rows dataset, metric, both numbers, change of what is no mean over queries, as RP90."""
    ours, theirs = (result.numbers.get("trained", {}) for result in (baseline, candidate))
    rows = []
    for dataset in (name for name in ours if name in theirs and name != "merged"):
        settings = baseline.numbers.get("protocols", {}).get(dataset, {})
        for metric in (name for name in ours[dataset] if name not in (*baseline.metrics, *settings)):
            value, other = ours[dataset][metric], theirs[dataset].get(metric)
            if isinstance(value, float) and isinstance(other, float):
                row = {"dataset": dataset, "metric": metric, "baseline": value, "candidate": other}
                rows.append(row | {"change": other - value})
    return rows


def most_changed(
    baseline: np.ndarray, candidate: np.ndarray, first_hits: tuple[np.ndarray, np.ndarray], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (those that gained, those that lost) most in a metric (Q,), as places, `most` of each.

    Of equal changes the one whose first hit moved further comes first (`first_hits`, ranks, 0: none), then
    the earlier one. A query without a change is in neither.
    """
    change = np.nan_to_num(candidate.astype(np.float64) - baseline)
    ours, theirs = (np.where(hits > 0, 1.0 / np.maximum(hits, 1), 0.0) for hits in first_hits)
    order = np.lexsort((-np.abs(theirs - ours), -np.abs(change)))
    return order[change[order] > 0][:most], order[change[order] < 0][:most]
