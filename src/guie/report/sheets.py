"""Sheets that an evaluation may add: thresholds, open set, compression, steps of post-processing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from guie.report.against import signed
from guie.report.charts import Axes, legend, line_chart
from guie.report.numbers import Numbers, between, share

_MOST_SERIES = 12
# A false-match rate below this is not drawn.
LEAST_RATE = 1e-6

Sheet = dict[str, Any]


def sheets(numbers: Numbers) -> list[Sheet]:
    """Return the sheets that metrics.json has the keys of: `columns`, `rows`, `charts` and a note."""
    makers = {
        "steps": _steps,
        "thresholds": _thresholds,
        "open_set": _open_set,
        "compression": _compression,
    }
    made = [make(numbers.get(key) or []) for key, make in makers.items()]
    return [sheet for sheet in made if sheet]


def _steps(steps: Sequence[Mapping[str, Any]]) -> Sheet | None:
    if len(steps) < 2:
        return None
    names = list(steps[0]["metrics"].items())
    rows, before = [], steps[0]["values"]
    for step in steps:
        cells = [step["step"] or "search alone"]
        for name, _ in names:
            value = step["values"][name]
            gain = "" if step is steps[0] else f" ({signed(value - before[name])})"
            cells.append(f"{share(value)}{gain}")
        rows.append([*cells, f"{step['seconds']:.1f}"])
        before = step["values"]
    columns = ["with", *(f"{metric}, {name}" for name, metric in names), "seconds"]
    note = (
        "Each row is the search with one step more, in brackets what that step gave. Seconds: the evaluation."
    )
    return {
        "title": "Post-processing, step by step",
        "note": note,
        "columns": columns,
        "rows": rows,
        "charts": [],
    }


def _thresholds(found: Sequence[Mapping[str, Any]]) -> Sheet | None:
    if not found:
        return None
    rows = []
    for row in found:
        for point in row["at"]:
            few = "" if point.get("enough", True) else " (few pairs)"
            rows.append(
                [
                    where(row, found),
                    f"{point['false_match_rate']:g}{few}",
                    with_interval(point, "threshold"),
                    with_interval(point, "true_match_rate"),
                ]
            )
    curves = {where(row, found): _roc(row["curve"]) for row in found[:_MOST_SERIES]}
    svg, keys = numbered({key: points for key, points in curves.items() if points}, _roc_axes(curves))
    chart = {"title": "true matches by false matches", "svg": svg, "legend": keys}
    note = (
        "Two pictures are called the same thing where their similarity reaches the threshold of the "
        "false-match rate that is accepted. Intervals draw queries with all of their pairs."
    )
    columns = ["where", "false-match rate", "threshold", "true-match rate"]
    return {"title": "Thresholds", "note": note, "columns": columns, "rows": rows, "charts": [chart]}


def _roc(curve: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    points = zip(curve["false_match_rate"], curve["true_match_rate"], strict=True)
    return sorted({(false, true) for false, true in points if false >= LEAST_RATE})


def _roc_axes(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Axes:
    least = min((points[0][0] for points in curves.values() if points), default=LEAST_RATE)
    return Axes(True, x_range=(least, 1.0), y_range=(0.0, 1.0), x_title="false-match rate")


def _open_set(found: Sequence[Mapping[str, Any]]) -> Sheet | None:
    if not found:
        return None
    rates = list(dict.fromkeys(point["FPIR"] for row in found for point in row["at"]))
    rows = []
    for row in found:
        at = {point["FPIR"]: point for point in row["at"]}
        cells = [with_interval(at[rate], "DIR") if rate in at else "–" for rate in rates]
        counted = f"{row['known']:,} / {row['unknown']:,}"
        rows.append([where(row, found), counted, with_interval(row, "AUROC"), *cells])
    left_out = any(row.get("unknown_are") == "left out" for row in found)
    note = (
        "Is the thing in the gallery at all, and which one is it? DIR: things that are there, whose first "
        "result is right and accepted, where that share (FPIR) of things that are not there is answered, too."
    )
    note += " The unknown are the known with their class left out of the gallery." if left_out else ""
    columns = ["where", "known / unknown", "AUROC", *(f"DIR at FPIR {rate:g}" for rate in rates)]
    return {"title": "Open set", "note": note, "columns": columns, "rows": rows, "charts": []}


def _compression(found: Sequence[Mapping[str, Any]]) -> Sheet | None:
    if not found:
        return None
    names = list(dict.fromkeys(row["dataset"] for row in found))
    metrics = list(
        dict.fromkeys(key for row in found for key in row["metrics"] if not key.endswith("_interval"))
    )
    rows = []
    for row in found:
        cells = [with_interval(row["metrics"], metric) for metric in metrics]
        prefix = f"{row['dataset']}: " if len(names) > 1 else ""
        rows.append([f"{prefix}{row['name']}", f"{row['dim']:,}", f"{row['bytes']:,}", *cells])
    charts = [_recall_by_bytes(name, [row for row in found if row["dataset"] == name]) for name in names]
    fitted = ", ".join(dict.fromkeys(row.get("fitted_on", "") for row in found))
    note = f"The same evaluation with vectors as an index would hold them; fitted on {fitted}."
    columns = ["code", "numbers", "bytes", *metrics]
    return {"title": "Compression", "note": note, "columns": columns, "rows": rows, "charts": charts}


def _recall_by_bytes(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    metric = next(iter(rows[0]["metrics"]))
    points = {row["name"]: (row["bytes"], row["metrics"][metric]) for row in rows}
    cut = dict.fromkeys(_family(code) for code in points if _family(code) != code)
    # A way to cut begins at the uncut vectors.
    families = {
        family: sorted(at for code, at in points.items() if code == family[1] or _family(code) == family)
        for family in cut
    }
    drawn = {" ".join(family): at for family, at in families.items()} or {"float32": sorted(points.values())}
    svg, keys = numbered(drawn, Axes(log_x=True, x_title="bytes per vector"), dots=True)
    return {"title": f"{metric} by bytes, {name}", "svg": svg, "legend": keys}


def _family(code: str) -> str | tuple[str, str]:
    """Return (how the vector is cut, the code of what is left), or the code of an uncut vector."""
    cut = re.match(r"(pca|prefix)\d+ ?(.*)", code)
    return (cut[1], cut[2] or "float32") if cut else code


def numbered(
    series: Mapping[str, Sequence[tuple[float, float]]], axes: Axes, *, dots: bool = False
) -> tuple[Any, list[dict[str, str]]]:
    """Return a chart of named series in the page's numbered colours, and its legend."""
    keys = [f"s{number % _MOST_SERIES + 1}" for number in range(len(series))]
    titles = dict(zip(keys, series, strict=True))
    svg = line_chart(dict(zip(keys, series.values(), strict=True)), axes, dots=dots, titles=titles)
    return svg, [item | {"title": titles[item["key"]]} for item in legend(keys)]


def where(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the domain of a row, and its data set where there are several."""
    several = len({one["dataset"] for one in rows}) > 1
    domain = row["domain"] or ("all" if not several else "")
    return " / ".join(filter(None, (row["dataset"] if several else "", domain)))


def with_interval(entry: Mapping[str, Any], key: str) -> str:
    """Return a number with its interval in brackets, a dash where it is lacking."""
    found = between(entry.get(f"{key}_interval"))
    return share(entry.get(key)) + (f" ({found})" if found else "")
