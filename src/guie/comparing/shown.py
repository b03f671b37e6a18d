"""A comparison to look at: tables in the terminal, one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guie.durable import replace_file

COLOURS = {"better": "green", "worse": "red", "open": "dim", "same": "dim"}
NUMBERS = ("baseline", "candidate", "gain", "interval")


def print_tables(found: Mapping[str, Any], console: Any = None) -> None:
    """Print every metric over all queries, the deciding one by domain, and the queries that changed most.

    `console`: a rich.console.Console; by default standard output.
    """
    from rich.console import Console

    console = console or Console()
    console.print(headline(found), markup=False, highlight=False)
    for title, rows in gain_tables(found).items():
        by = "domain" if rows[0]["domain"] else "metric"
        console.print(_table(title, (by, "queries", *NUMBERS, ""), [_gain_cells(row, by) for row in rows]))
    if found["wholes"]:
        title = "of the whole data set: no interval"
        columns = ("data set", "metric", "baseline", "candidate", "change")
        console.print(_table(title, columns, [_whole_cells(row) for row in found["wholes"]]))
    console.print(f"open: the {found['level']:.0%} interval holds 0", style="dim", highlight=False)
    for name, queries in found["changed"].items():
        if queries:
            title = f"queries that {name} most in {found['metric']}"
            cells = [
                [short(query["file"], 30), short(query["label"], 16), *moved(query)] for query in queries
            ]
            console.print(_table(title, ("query", "label", "value", "first hit"), cells))


def headline(found: Mapping[str, Any]) -> str:
    """Return the line that says what is compared, and on how many queries."""
    ours, theirs = found["left_out"]
    apart = f" in both ({ours:,} and {theirs:,} left out)" if ours or theirs else ""
    return f"{found['candidate']} against {found['baseline']}: {found['queries']:,} queries{apart}"


def gain_tables(found: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return rows by title: every metric over all queries of a data set; the deciding one by domain."""
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for row in found["gains"]:
        name = row["dataset"] or "all data sets"
        if row["domain"] is None:
            tables.setdefault(name, []).append(row)
        elif row["metric"] == found["metric"]:
            tables.setdefault(f"{name}: {row['metric']} by domain", []).append(row)
    return tables


def _table(title: str, columns: Sequence[str], rows: list[list[str]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=SIMPLE_HEAD, title=Text(title), title_justify="left", padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in columns:
        right = name in (*NUMBERS, "queries", "change", "value", "first hit")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    return table


def _gain_cells(row: Mapping[str, Any], by: str) -> list[str]:
    interval = f"{signed(row['low'])} to {signed(row['high'])}"
    numbers = [share(row["baseline"]), share(row["candidate"]), signed(row["gain"])]
    return [row[by], f"{row['queries']:,}", *numbers, interval, row["verdict"]]


def _whole_cells(row: Mapping[str, Any]) -> list[str]:
    numbers = [share(row["baseline"]), share(row["candidate"]), signed(row["change"])]
    return [row["dataset"], row["metric"], *numbers]


def share(value: float) -> str:
    """Return a number as .5000, 1.0000 or 12.2500."""
    return f"{value:.4f}".removeprefix("0")


def signed(value: float) -> str:
    """Return a change as +.0123, -.0123 or -10.2500."""
    return f"{value:+.4f}"[0] + share(abs(value))


def short(text: str, width: int) -> str:
    """Return the end of a text that is wider than `width`: file names differ there."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


def moved(query: Mapping[str, Any]) -> tuple[str, str]:
    """Return how a query's value and the rank of its first hit changed: .200 > 1.000, 7 > 1; - is none."""
    ours, theirs = query["baseline"], query["candidate"]
    ranks = [str(side.get("first_hit") or "-") for side in (ours, theirs)]
    values = [f"{side['value']:.3f}".removeprefix("0") for side in (ours, theirs)]
    return " > ".join(values), " > ".join(ranks)


def write_page(found: Mapping[str, Any], path: Path) -> None:
    """Write the comparison as one page that fetches nothing."""
    import jinja2

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    )
    datasets: dict[str, list[Mapping[str, Any]]] = {}
    for row in found["gains"]:
        datasets.setdefault(row["dataset"] or "all data sets", []).append(row)
    drawn = {name: _drawn(rows) for name, rows in datasets.items()}
    html = template.render(
        found=found,
        headline=headline(found),
        datasets=drawn,
        signed=signed,
        share=share,
        moved=moved,
    )
    replace_file(path, html.encode())


def _drawn(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with `x`, `x1`, `x2`: where the gain and its interval lie between 0 and 100, none at 50."""
    reach = max(max(abs(row["low"]), abs(row["high"])) for row in rows) or 1.0
    places = (("x", "gain"), ("x1", "low"), ("x2", "high"))
    return [dict(row) | {name: 50 + 48 * row[key] / reach for name, key in places} for row in rows]
