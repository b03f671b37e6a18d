"""Numbers of metrics.json by data set, domain and system, as the page and the terminal show them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TITLES = {
    "trained": "trained",
    "backbone": "backbone alone",
    "colour_histogram": "colour histogram",
    "raw_pixels": "raw pixels",
}
METRIC = "mP@5"
# What a domain is told by, where the data set's metric is a mean over domains.
OF_A_DOMAIN = {"one_shot_accuracy": "R@1", "mMP@5": "mP@5", "mR@1": "R@1"}

Numbers = Mapping[str, Any]


def title(key: str) -> str:
    """Return a system's name in words."""
    return TITLES.get(key, key.replace("_", " "))


def css(key: str) -> str:
    """Return a system's name as that of a colour of the page."""
    return key.replace("_", "-")


def systems(numbers: Numbers) -> dict[str, Numbers]:
    """Return {key: numbers in the shape of "trained"} of everything that was evaluated, trained first."""
    found = {"trained": numbers["trained"]} if numbers.get("trained") else {}
    return found | {key: floor for key, floor in numbers.get("floors", {}).items() if floor}


def dataset_names(numbers: Numbers) -> list[str]:
    """Return the datasets, then "merged" where it says more than the only dataset does."""
    first = next(iter(systems(numbers).values()), {})
    names = [name for name in first if name != "merged"]
    return names if len(names) == 1 or "merged" not in first else [*names, "merged"]


def main_metric(name: str, numbers: Numbers) -> str:
    """Return the metric that stands for a data set; of the merged index, mP@5 if they differ."""
    protocols = numbers.get("protocols", {})
    if name == "merged":
        named = {one.get("metric") for one in protocols.values()}
        values = next(iter(systems(numbers).values())).get("merged", {})
        metric = named.pop() if len(named) == 1 else METRIC
        return metric if metric in values else METRIC
    return str(protocols.get(name, {}).get("metric") or METRIC)


def domain_metric(metric: str, entry: Numbers) -> str:
    """Return what a domain's entry tells of a metric: itself, or what it is the mean of."""
    return metric if metric in entry or metric in entry.get("merged", {}) else OF_A_DOMAIN.get(metric, metric)


def best_index(numbers: Numbers) -> tuple[str, str] | None:
    """Return (data set, its metric) that stands for the run: merged, else the first; None without numbers."""
    trained = numbers.get("trained") or {}
    for name in ("merged", *trained):
        metric = main_metric(name, numbers)
        if metric in trained.get(name, {}):
            return name, metric
    return None


def scalars(entry: Numbers) -> dict[str, float]:
    """Return the shares and means among the numbers of a data set, in their order."""
    return {key: value for key, value in entry.items() if isinstance(value, float)}


def is_number(value: object) -> bool:
    """Return whether this is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def share(value: float | None) -> str:
    """Return .612 for 0.612, 1.00 for 1 (the same width), and a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    shown = f"{value:.3f}"
    return shown.removeprefix("0") if shown.startswith("0") else shown[:4]


def between(low_high: list[float] | None) -> str:
    """Return an interval as .471–.504, nothing for none."""
    return f"{share(low_high[0])}–{share(low_high[1])}" if low_high else ""
