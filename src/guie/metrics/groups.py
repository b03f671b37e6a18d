"""Means over queries, and over groups of them: domains, blocks of GPR1200, public and private splits.

A value NaN means that its query does not count in this metric.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

USAGES = ("public", "private")
IGNORED = "ignored"


def mean(values: np.ndarray) -> float:
    """Return the mean of the values (Q,) that count; NaN where none does."""
    values = np.asarray(values, dtype=np.float64)
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else float("nan")


def group_means(values: np.ndarray, groups: np.ndarray | Sequence[str]) -> dict[str, float]:
    """Return {group: mean of its values}, names sorted; `groups` (Q,) names the group of each query."""
    groups = np.asarray(groups, dtype=object)
    return {name: mean(np.asarray(values)[groups == name]) for name in sorted(set(groups.tolist()))}


def mean_of_groups(values: np.ndarray, groups: np.ndarray | Sequence[str]) -> float:
    """Return the plain mean of the groups' means, each group counting the same: UnED's mMP@5 over domains."""
    return mean(np.array(list(group_means(values, groups).values())))


def usage_means(values: np.ndarray, usage: np.ndarray | Sequence[str]) -> dict[str, float]:
    """Return {"public": mean, "private": mean} of a competition's split, without the parts it lacks.

    `usage` (Q,) is public, private or ignored; a query that is ignored counts nowhere. Raises ValueError
    where it is anything else.
    """
    means = group_means(values, usage)
    strange = sorted(means.keys() - {*USAGES, IGNORED})
    if strange:
        raise ValueError(f"usage: {strange[0]!r}; expected public, private or ignored")
    return {name: means[name] for name in USAGES if name in means}
