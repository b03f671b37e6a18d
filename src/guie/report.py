"""What an evaluation found, to look at: a table in the terminal and one self-contained html file.

The report is made from the files of a run folder (config.yaml, metrics.json, metrics.jsonl, queries.parquet);
each that is missing leaves its part out. Nothing in it is fetched from anywhere.
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guie.errors import UserError

TITLES = {
    "trained": "trained",
    "backbone": "backbone alone",
    "colour_histogram": "colour histogram",
    "raw_pixels": "raw pixels",
}
SHORT_TITLES = {"backbone": "backbone", "colour_histogram": "colours", "raw_pixels": "pixels"}
GALLERY_CASES = 12
THUMBNAIL_PX = 96
# Neither white nor black drawings on a transparent ground vanish on it.
BEHIND_TRANSPARENT = (150, 150, 150)
# Series of metrics.jsonl worth a chart, in this order, by the start of their names.
CHARTED = ("loss", "lr", "eval", "mP@5", "R@1", "grad")
MOST_POINTS = 300

# (dataset, file) -> the picture's encoded bytes, or None where there is none.
ReadPicture = Callable[[str, str], bytes | None]


def write_report(folder: str | Path, *, read_picture: ReadPicture | None = None) -> Path:
    """Write `report.html` into a run folder and return its path; UserError where metrics.json is missing.

    `read_picture` gives the pictures of the galleries; without it their places stay empty.
    """
    import jinja2

    folder = Path(folder)
    numbers = _read_numbers(folder / "metrics.json")
    history = _read_history(folder / "metrics.jsonl")
    config = _read_text(folder / "config.yaml")
    facts = _facts(folder, numbers)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    )
    html = template.render(
        title=f"guie · {folder.resolve().name}",
        subtitle=_subtitle(folder, config),
        tiles=_tiles(numbers),
        datasets=[_dataset_table(name, numbers) for name in _dataset_names(numbers)],
        charts=_charts(numbers, history),
        galleries=_galleries(folder / "queries.parquet", read_picture or (lambda dataset, file: None)),
        facts=facts,
        config=config,
    )
    path = folder / "report.html"
    partial = path.with_suffix(".html.partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def print_table(metrics: dict, console: Any = None) -> None:
    """Print the numbers of a metrics.json as a table: a row per domain, a column per system (mP@5).

    `console`: a rich.console.Console; by default standard output.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    for name in _dataset_names(metrics):
        table = Table(box=SIMPLE_HEAD, title=f"{name}: mP@5 (dim: on the merged index)", title_justify="left")
        table.add_column("domain", min_width=12)
        table.add_column("queries", justify="right")
        for key in _systems(metrics):
            style = "bold" if key == "trained" else ""
            table.add_column(SHORT_TITLES.get(key, _title(key)), justify="right", style=style)
        table.add_column("R@1", justify="right")
        for row in _dataset_table(name, metrics)["rows"]:
            cells = [f"{cell['value']} [dim]{cell['terminal']}[/]" for cell in row["cells"]]
            table.add_row(row["name"], str(row["queries"]), *cells, row["r1"])
        console.print(table)


def _systems(numbers: Mapping) -> dict[str, Mapping]:
    """Return {key: numbers in the shape of "trained"} of everything that was evaluated, trained first."""
    systems = {"trained": numbers["trained"]} if numbers.get("trained") else {}
    return systems | {key: floor for key, floor in numbers.get("floors", {}).items() if floor}


def _dataset_names(numbers: Mapping) -> list[str]:
    """Return the datasets, then "merged" where it says more than the only dataset does."""
    first = next(iter(_systems(numbers).values()), {})
    names = [name for name in first if name != "merged"]
    return names if len(names) == 1 or "merged" not in first else [*names, "merged"]


def _dataset_table(name: str, numbers: Mapping) -> dict:
    """Return what the template and the terminal show of one dataset."""
    systems = {key: system[name] for key, system in _systems(numbers).items() if name in system}
    first = next(iter(systems.values()))
    domains = list(first.get("domains", {}))
    rows = [_domain_row(domain, systems) for domain in domains] if len(domains) > 1 else []
    rows.append(_row("all, merged", systems, systems, systems, total=True))
    dropped = first.get("dropped_lone_queries", 0)
    note = f"{dropped} queries without another image of their class were left out." if dropped else ""
    columns = [{"key": key.replace("_", "-"), "title": _title(key)} for key in systems]
    return {"name": name, "systems": columns, "rows": rows, "note": note}


def _domain_row(domain: str, systems: Mapping[str, Mapping]) -> dict:
    entries = {key: system.get("domains", {}).get(domain, {}) for key, system in systems.items()}
    merged = {key: entry.get("merged", {}) for key, entry in entries.items()}
    # Several datasets in one index have no own index per domain; then the merged value is the only one.
    shown = {key: entry if "mP@5" in entry else merged[key] for key, entry in entries.items()}
    return _row(domain, shown, merged, systems, total=False)


def _row(name: str, shown: Mapping, merged: Mapping, systems: Mapping, *, total: bool) -> dict:
    first = next(iter(shown.values()))
    best_floor = max(
        (entry.get("mP@5", 0.0) for key, entry in shown.items() if key != "trained"), default=0.0
    )
    cells = []
    for key in systems:
        value = shown[key].get("mP@5")
        other = "" if total else _share(merged[key].get("mP@5"))
        low_high = shown[key].get("mP@5_interval")
        interval = f"{_share(low_high[0])}–{_share(low_high[1])}" if total and low_high else ""
        cells.append(
            {
                "key": key.replace("_", "-"),
                "value": _share(value),
                "percent": round(100 * (value or 0), 1),
                "behind": key == "trained" and value is not None and value <= best_floor,
                "note": interval or (f"{other} merged" if other else ""),
                "terminal": other,
            }
        )
    numbers = {"r1": _share(first.get("R@1")), "map_r": _share(first.get("MAP@R"))}
    counts = {"queries": first.get("queries", ""), "gallery": first.get("gallery", "")}
    return {"name": name, "cells": cells, "total": total} | numbers | counts


def _tiles(numbers: Mapping) -> list[dict]:
    systems = _systems(numbers)
    tiles = []
    if "mP@5" in systems.get("trained", {}).get("merged", {}):
        merged = systems["trained"]["merged"]
        low, high = merged.get("mP@5_interval", (math.nan, math.nan))
        note = f"95 % interval {_share(low)}–{_share(high)}"
        tiles.append({"name": "mP@5, merged index", "value": _share(merged["mP@5"]), "note": note})
        tiles.append(
            {"name": "R@1, merged index", "value": _share(merged.get("R@1")), "note": "first is right"}
        )
        size = f"against {merged.get('gallery', 0):,} images"
        tiles.append({"name": "queries", "value": f"{merged.get('queries', 0):,}", "note": size})
    merged = {key: floor.get("merged", {}).get("mP@5") for key, floor in systems.items() if key != "trained"}
    floors = {key: value for key, value in merged.items() if value is not None}
    if floors:
        best = max(floors, key=lambda key: floors[key])
        tiles.append({"name": "best floor, mP@5", "value": _share(floors[best]), "note": _title(best)})
    for name in _dataset_names(numbers):
        error = systems.get("trained", {}).get(name, {}).get("one_shot_error")
        if error is not None:
            tiles.append({"name": "one-shot error", "value": f"{100 * error:.1f} %", "note": name})
    if "bad_images" in numbers:
        tiles.append(
            {"name": "bad images", "value": str(numbers["bad_images"]), "note": "left out or replaced"}
        )
    return tiles


def _title(key: str) -> str:
    return TITLES.get(key, key.replace("_", " "))


def _share(value: float | None) -> str:
    """Return .612 for 0.612, 1.00 for 1 (the same width), and a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    shown = f"{value:.3f}"
    return shown.removeprefix("0") if shown.startswith("0") else shown[:4]


def _charts(numbers: Mapping, history: list[dict]) -> list[dict]:
    """Return the charts: one per charted training scalar, then recall@k of all systems."""
    charts = []
    for name in _charted_names(history):
        points = [(line["step"], line[name]) for line in history if _is_number(line.get(name))]
        if len(points) > 1:
            charts.append({"title": name, "svg": line_chart({"trained": points}), "legend": []})
    curves = {
        key: [(int(k), share) for k, share in system["merged"]["recall_curve"].items()]
        for key, system in _systems(numbers).items()
        if "recall_curve" in system.get("merged", {})
    }
    if curves:
        legend = [{"key": key.replace("_", "-"), "title": _title(key)} for key in curves]
        svg = line_chart(curves, log_x=True, y_range=(0.0, 1.0), dots=True)
        charts.append({"title": "recall@k, merged index", "svg": svg, "legend": legend})
    return charts


def _charted_names(history: list[dict]) -> list[str]:
    names = dict.fromkeys(name for line in history for name, value in line.items() if _is_number(value))
    known = [
        name for start in CHARTED for name in names if name.startswith(start) or name.endswith(f"/{start}")
    ]
    return list(dict.fromkeys(name for name in known if name != "step"))[:8]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    log_x: bool = False,
    y_range: tuple[float, float] | None = None,
    dots: bool = False,
) -> Any:
    """Return an inline svg (markupsafe) of {key: [(x, y)]}; colours are the page's `--key` variables."""
    from markupsafe import Markup, escape

    width, height, left, right, top, bottom = 340, 190, 44, 12, 10, 24
    thinned = {key: _thinned(list(points)) for key, points in series.items()}
    place_x = math.log if log_x else float
    xs = [place_x(x) for points in thinned.values() for x, _ in points]
    low, high = y_range or _padded([y for points in thinned.values() for _, y in points])
    x_span = (max(xs) - min(xs)) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + (place_x(x) - min(xs)) / x_span * (width - left - right)
        return round(across, 1), round(
            height - bottom - (y - low) / (high - low) * (height - top - bottom), 1
        )

    parts = []
    for y in np.linspace(low, high, 5):
        line = at(next(iter(thinned.values()))[0][0], y)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{line}" y2="{line}"/>')
        parts.append(f'<text x="{left - 6}" y="{line + 4}" text-anchor="end">{_tick(y)}</text>')
    for x, anchor in _x_ticks(thinned, log_x):
        parts.append(f'<text x="{at(x, low)[0]}" y="{height - 8}" text-anchor="{anchor}">{_tick(x)}</text>')
    for key, points in thinned.items():
        corners = " ".join(f"{px},{py}" for px, py in (at(x, y) for x, y in points))
        marks = "".join(_dot(*at(x, y), f"{_title(key)} {_tick(x)}: {_tick(y)}") for x, y in points if dots)
        style = f"--series: var(--{escape(key.replace('_', '-'))})"
        parts.append(f'<g style="{style}"><polyline points="{corners}"/>{marks}</g>')
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>')


def _dot(x: float, y: float, words: str) -> str:
    from markupsafe import escape

    return f'<circle cx="{x}" cy="{y}" r="3"><title>{escape(words)}</title></circle>'


def _x_ticks(series: Mapping[str, list], log_x: bool) -> Iterable[tuple[float, str]]:
    xs = sorted({x for points in series.values() for x, _ in points})
    if log_x:
        return [(x, "middle") for x in xs]
    middle = [(xs[len(xs) // 2], "middle")] if len(xs) > 2 else []
    return [(xs[0], "start"), *middle, (xs[-1], "end")]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours until at most MOST_POINTS are left, so that a long run stays a small file."""
    group = math.ceil(len(points) / MOST_POINTS)
    if group <= 1:
        return points
    chunks = [points[i : i + group] for i in range(0, len(points), group)]
    return [(chunk[-1][0], float(np.mean([y for _, y in chunk]))) for chunk in chunks]


def _padded(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.3 * high else low - pad), high + pad


def _tick(value: float) -> str:
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 0.01:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def _galleries(path: Path, read_picture: ReadPicture) -> list[dict]:
    """Return the worst and the best queries with their first five results."""
    if not path.exists():
        return []
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    value = np.array(table["value" if "value" in table.column_names else "mP@5"].to_pylist())
    value = np.nan_to_num(value, nan=0.5)  # a query that does not count is neither the worst nor the best
    first = np.array(table["first_hit"].to_pylist())
    late = np.where(first > 0, first, np.iinfo(np.int32).max)
    domains = np.asarray(table["domain"].to_pylist(), dtype=object)
    worst, best = np.lexsort((-late, value)), np.lexsort((-np.array(table["relevant"].to_pylist()), -value))
    orders = {"worst": worst, "best": best}
    hint = (
        "Green: same label; red: another; pale: another, where no more are relevant. The number is the "
        "similarity to the query, then the label."
    )
    notes = {
        "worst": f"Lowest mP@5 on the merged index, in turn from each domain. {hint}",
        "best": "Highest mP@5 with the most relevant images, in turn from each domain.",
    }
    return [
        {
            "title": f"{name.capitalize()} queries",
            "note": notes[name],
            "cases": [_case(table, row, read_picture) for row in _in_turn(order, domains)],
        }
        for name, order in orders.items()
    ]


def _in_turn(order: np.ndarray, domains: np.ndarray, count: int = GALLERY_CASES) -> list[int]:
    """Return `count` rows of `order`, one of each domain in turn, so that no domain fills the gallery."""
    waiting = {domain: iter(order[domains[order] == domain].tolist()) for domain in sorted(set(domains))}
    chosen: list[int] = []
    while waiting and len(chosen) < count:
        for domain, rows in list(waiting.items()):
            row = next(rows, None)
            if row is None:
                del waiting[domain]
            elif len(chosen) < count:
                chosen.append(row)
    return chosen


def _case(table: Any, row: int, read_picture: ReadPicture) -> dict:
    query = {name: column[0] for name, column in table.slice(row, 1).to_pydict().items()}
    dataset, label = query["dataset"], query["label"]
    results = zip(query["top_files"], query["top_labels"], query["top_scores"], strict=True)
    pictures = [_picture(read_picture, dataset, query["file"], label, "query", "query")]
    for rank, (file, its_label, score) in enumerate(results, start=1):
        # Beyond the number of relevant images no hit is expected, and mP@5 does not look.
        other = "miss" if rank <= query["relevant"] else "beyond"
        kind = "hit" if its_label == label else other
        caption = f"{score:.2f}" if kind == "hit" else f"{score:.2f} {_short(its_label)}"
        pictures.append(_picture(read_picture, dataset, file, its_label, kind, caption))
    name = "mP@5" if "mP@5" in query else "value"
    value = f"{name} {_share(query[name])} · {query['relevant']} relevant"
    shown = {"label": _short(label), "file": query["file"], "domain": query["domain"] or dataset}
    return shown | {"value": value, "pictures": pictures}


def _short(label: str) -> str:
    return label.rsplit(":", 1)[-1]


def _picture(read: ReadPicture, dataset: str, file: str, label: str, kind: str, caption: str) -> dict:
    source = _thumbnail(read(dataset, file))
    return {"source": source, "file": file, "label": label, "kind": kind, "caption": caption}


def _thumbnail(data: bytes | None) -> str | None:
    """Return a picture as a data: address of a small JPEG, None where it cannot be shown."""
    if data is None:
        return None
    from PIL import Image

    from guie.images import BadImage, decode

    try:
        picture = Image.fromarray(decode(data, background=BEHIND_TRANSPARENT))
    except (BadImage, OSError):
        return None
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _read_numbers(path: Path) -> dict:
    try:
        numbers = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; accepted: the metrics.json that an evaluation wrote") from error
    if not _systems(numbers):
        raise UserError(f"{path}: neither trained nor floors; accepted: the metrics.json of an evaluation")
    return numbers


def _read_history(path: Path) -> list[dict]:
    """Return the lines of metrics.jsonl that have a step; a line cut off by a kill is skipped."""
    lines = []
    for text in _read_text(path).splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _subtitle(folder: Path, config: str) -> str:
    """Return when the numbers were made and from which parts."""
    import yaml

    modified = datetime.datetime.fromtimestamp((folder / "metrics.json").stat().st_mtime).astimezone()
    words = [modified.strftime("%-d %B %Y, %H:%M %Z")]
    settings = yaml.safe_load(config) if config else None
    for group in ("dataset", "backbone", "neck", "head", "optim"):
        part = settings.get(group) if isinstance(settings, dict) else None
        if isinstance(part, dict):
            target = str(part.get("_target_", "")).rsplit(".", 1)[-1]
            name = part.get("name") or target or ", ".join(map(str, part))
            words.append(f"{group} {name}")
    return " · ".join(words)


def _facts(folder: Path, numbers: Mapping) -> list[tuple[str, str]]:
    """Return what else metrics.json holds that is one value, and where the run lies."""
    plain = [(name, str(v)) for name, v in numbers.items() if isinstance(v, str | int | float | bool)]
    return [("folder", str(folder)), *plain]
