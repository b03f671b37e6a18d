"""The curves of the page: training, recall@k, precision and recall of pairs, scores of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guie.report.charts import Axes, histogram, legend, line_chart
from guie.report.numbers import Numbers, dataset_names, is_number, systems
from guie.report.pairs import PairScores

# Series of metrics.jsonl worth a chart, in this order, by the start of their names.
CHARTED = ("loss", "lr", "eval", "mP@5", "R@1", "grad")
_MOST_SETS = 6

Chart = dict[str, Any]


def training_charts(history: list[dict[str, Any]]) -> list[Chart]:
    """Return one chart per charted scalar of training."""
    charts = []
    for name in _charted_names(history):
        points = [(line["step"], line[name]) for line in history if is_number(line.get(name))]
        if len(points) > 1:
            svg = line_chart({"trained": points}, Axes(x_title="step"))
            charts.append({"title": name, "svg": svg, "legend": []})
    return charts


def recall_charts(numbers: Numbers) -> list[Chart]:
    """Return recall@k of all systems: of the merged index, else of each data set."""
    names = [name for name in dataset_names(numbers) if _recall(numbers, name)]
    shown = ["merged"] if "merged" in names else names[:_MOST_SETS]
    charts = []
    for name in shown:
        curves = _recall(numbers, name)
        axes = Axes(log_x=True, y_range=(0.0, 1.0), x_title="k results")
        svg = line_chart(curves, axes, dots=True)
        where = "merged index" if name == "merged" or len(names) == 1 else name
        charts.append({"title": f"recall@k, {where}", "svg": svg, "legend": legend(list(curves))})
    return charts


def _recall(numbers: Numbers, name: str) -> dict[str, list[tuple[int, float]]]:
    return {
        key: [(int(k), share) for k, share in system[name]["recall_curve"].items()]
        for key, system in systems(numbers).items()
        if "recall_curve" in system.get(name, {})
    }


def pair_charts(found: Mapping[str, PairScores]) -> list[Chart]:
    """Return precision by recall, and the histograms of scores, of each data set."""
    charts = []
    for name, pairs in list(found.items())[:_MOST_SETS]:
        axes = Axes(x_range=(0.0, 1.0), y_range=(0.0, 1.0), x_title="recall of genuine pairs")
        curve = list(zip(pairs.recall.tolist(), pairs.precision.tolist(), strict=True))
        note = f"{pairs.queries:,} queries, all of their {pairs.total:,} pairs in one list"
        apart = f", {name}" if len(found) > 1 else ""
        title = f"precision by recall{apart}"
        charts.append(
            {"title": title, "svg": line_chart({"trained": curve}, axes), "legend": [], "note": note}
        )
        shares = {"genuine": pairs.genuine, "impostor": pairs.impostor, "nearest_impostor": pairs.nearest}
        shares = {key: values for key, values in shares.items() if values.any()}
        charts.append(
            {
                "title": f"similarity of pairs{apart}",
                "svg": histogram(pairs.edges, shares, "cosine similarity"),
                "legend": legend(list(shares)),
                "note": "share of the pairs of each kind; nearest: the best impostor of each query",
            }
        )
    return charts


def _charted_names(history: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for line in history for name, value in line.items() if is_number(value))
    known = [
        name for start in CHARTED for name in names if name.startswith(start) or name.endswith(f"/{start}")
    ]
    return list(dict.fromkeys(name for name in known if name != "step"))[:8]
