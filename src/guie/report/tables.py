"""The tables of the page: a row per domain, a column per system; every number; the tiles above them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from guie.metrics.bootstrap import bootstrap_interval
from guie.report.folder import Queries
from guie.report.numbers import (
    Numbers,
    best_index,
    between,
    css,
    dataset_names,
    domain_metric,
    main_metric,
    scalars,
    share,
    systems,
    title,
)

_DRAWS = 1000
_BESIDE = ("R@1", "MAP@R")
# Shown beside the metric in large print, the first that there is.
_SECOND = {
    "RP90": "recall at precision .9",
    "ACC": "right, of the known",
    "mAP H": "hard ones",
    "R@1": "first result is right",
}


def dataset_table(name: str, numbers: Numbers, queries: Queries | None = None) -> dict[str, Any]:
    """Return the rows of a data set: its domains, then all of it; each cell a system's `metric`.

    Intervals that metrics.json lacks are drawn from the `queries`.
    """
    of = {key: system[name] for key, system in systems(numbers).items() if name in system}
    first = next(iter(of.values()))
    metric = main_metric(name, numbers)
    domains = list(first.get("domains", {}))
    rows = [_domain_row(domain, of, metric) for domain in domains] if len(domains) > 1 else []
    rows += [_row(f"group: {group}", _of_group(group, of), metric) for group in first.get("groups", {})]
    rows.append(_row("all" if name != "merged" and not rows else "all, merged", of, metric, total=True))
    _complete(rows, name, metric, queries)
    dropped = first.get("dropped_lone_queries", 0)
    note = f"{dropped:,} queries without another image of their class were left out." if dropped else ""
    further = [key for key in _BESIDE if key in first and key != metric and not _of_pairs(first)]
    own = any(cell["merged"] for row in rows for cell in row["cells"])
    return {
        "name": name,
        "metric": metric,
        "keys": list(of),
        "systems": [title(key) for key in of],
        "rows": rows,
        "note": note,
        "own": own,
        "further": further,
    }


def _of_pairs(entry: Numbers) -> bool:
    """Return whether R@1 is that of pairs in one list."""
    return "true_pairs" in entry


def _of_group(group: str, of: Mapping[str, Numbers]) -> dict[str, Numbers]:
    return {key: system.get("groups", {}).get(group, {}) for key, system in of.items()}


def _domain_row(domain: str, of: Mapping[str, Numbers], metric: str) -> dict[str, Any]:
    entries = {key: system.get("domains", {}).get(domain, {}) for key, system in of.items()}
    metric = domain_metric(metric, next(iter(entries.values())))
    merged = {key: entry.get("merged", {}).get(metric) for key, entry in entries.items()}
    # Several datasets in one index have no own index per domain; then the merged value is the only one.
    shown = {key: entry if metric in entry else entry.get("merged", {}) for key, entry in entries.items()}
    apart = any(metric in entry for entry in entries.values())
    return _row(domain, shown, metric, merged=merged if apart else {})


def _row(
    name: str,
    shown: Mapping[str, Numbers],
    metric: str,
    *,
    merged: Numbers | None = None,
    total: bool = False,
) -> dict[str, Any]:
    first = next(iter(shown.values()))
    floor = max((entry.get(metric, -1.0) for key, entry in shown.items() if key != "trained"), default=-1.0)
    cells = []
    for key, entry in shown.items():
        value = entry.get(metric)
        cells.append(
            {
                "key": css(key),
                "title": title(key),
                "value": share(value),
                "percent": round(100 * min(max(value or 0.0, 0.0), 1.0), 1),
                "behind": key == "trained" and value is not None and value <= floor,
                "interval": entry.get(f"{metric}_interval"),
                "merged": share(merged[key]) if merged and merged.get(key) is not None else "",
            }
        )
    counts = {"queries": first.get("queries", ""), "gallery": first.get("gallery", "")}
    further = {name: share(first.get(name)) for name in _BESIDE}
    return {"name": name, "metric": metric, "cells": cells, "total": total, "further": further} | counts


def _complete(rows: list[dict[str, Any]], name: str, metric: str, queries: Queries | None) -> None:
    """Give the trained cells the intervals that metrics.json does not hold; write each interval in words."""
    for row in rows:
        first = row["cells"][0]
        if first["key"] == "trained" and not first["interval"] and queries is not None:
            first["interval"] = _drawn(row, name, metric, queries)
        for cell in row["cells"]:
            cell["words"] = between(cell["interval"])


def _drawn(row: Mapping[str, Any], name: str, metric: str, queries: Queries) -> list[float] | None:
    chosen = np.ones(len(queries), dtype=bool) if name == "merged" else queries["dataset"] == name
    column = row["metric"]
    if not row["total"]:
        chosen = chosen & (queries["domain"] == row["name"])
        column = f"own {column}" if f"own {column}" in queries.columns else column
    if column not in queries.columns or queries[column].dtype.kind != "f":
        return None
    values = queries[column][chosen]
    values = values[~np.isnan(values)]
    # What is no mean over the queries has no such interval.
    mean_is_shown = len(values) > 1 and share(float(values.mean())) == row["cells"][0]["value"]
    return list(bootstrap_interval(values, samples=_DRAWS)) if mean_is_shown else None


def all_numbers(name: str, numbers: Numbers) -> list[dict[str, Any]]:
    """Return rows metric, one value and interval per system: every number of a data set."""
    of = {key: system[name] for key, system in systems(numbers).items() if name in system}
    rows = []
    for metric in dict.fromkeys(metric for entry in of.values() for metric in scalars(entry)):
        cells = [(share(e.get(metric)), between(e.get(f"{metric}_interval"))) for e in of.values()]
        rows.append({"metric": metric, "cells": cells, "main": metric == main_metric(name, numbers)})
    return rows


def counts(name: str, numbers: Numbers) -> str:
    """Return the whole numbers of a data set in one line: queries, gallery, pairs ..."""
    first = next(system[name] for system in systems(numbers).values() if name in system)
    found = [
        f"{value:,} {key.replace('_', ' ')}"
        for key, value in first.items()
        if isinstance(value, int) and not isinstance(value, bool) and value and len(key) > 1
    ]
    limits = [] if first.get("within_limits", True) else ["outside the limits of the protocol"]
    return " · ".join(found + limits)


def tiles(numbers: Numbers) -> list[dict[str, str]]:
    """Return what stands for the run, in large print: its metric, the best floor, counts."""
    found = []
    best = best_index(numbers)
    if best:
        found += _tiles_of(*best, numbers)
    found += _tiles_of_sets(numbers, best[0] if best else "")
    for name in dataset_names(numbers):
        error = numbers.get("trained", {}).get(name, {}).get("one_shot_error")
        if error is not None:
            found.append({"name": "one-shot error", "value": f"{100 * error:.1f} %", "note": name})
    if "bad_images" in numbers:
        note = "left out or replaced"
        found.append({"name": "bad images", "value": str(numbers["bad_images"]), "note": note})
    return found


def _tiles_of_sets(numbers: Numbers, shown: str) -> list[dict[str, str]]:
    """Return the metric of each of several data sets but the one that is `shown` already."""
    found = []
    names = [name for name in numbers.get("trained") or {} if name != "merged"]
    for name in names if len(names) > 1 else ():
        entry, metric = numbers["trained"][name], main_metric(name, numbers)
        if metric in entry and name != shown:
            note = between(entry.get(f"{metric}_interval"))
            found.append({"name": f"{metric}, {name}", "value": share(entry[metric]), "note": note})
    return found


def _tiles_of(name: str, metric: str, numbers: Numbers) -> list[dict[str, str]]:
    entry = numbers["trained"][name]
    merged = len(entry.get("domains", ())) > 1 or len(numbers["trained"]) > 2
    where = name if name != "merged" else "merged index" if merged else "all queries"
    interval = between(entry.get(f"{metric}_interval"))
    note = f"95 % interval {interval}" if interval else where
    found = [{"name": f"{metric}, {where}", "value": share(entry[metric]), "note": note}]
    other = next((key for key in _SECOND if key in entry and key != metric), None)
    if other:
        found.append({"name": f"{other}, {where}", "value": share(entry[other]), "note": _SECOND[other]})
    if "queries" in entry:
        size = f"against {entry.get('gallery', 0):,} images"
        found.append({"name": "queries", "value": f"{entry['queries']:,}", "note": size})
    floors = {
        key: system[name][metric]
        for key, system in systems(numbers).items()
        if key != "trained" and metric in system.get(name, {})
    }
    if floors:
        top = max(floors, key=lambda key: floors[key])
        found.append({"name": f"best floor, {metric}", "value": share(floors[top]), "note": title(top)})
    return found
