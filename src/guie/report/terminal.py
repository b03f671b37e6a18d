"""The numbers of an evaluation as a table in the terminal."""

from __future__ import annotations

from typing import Any

from guie.report.numbers import dataset_names, systems, title
from guie.report.tables import dataset_table

SHORT_TITLES = {"backbone": "backbone", "colour_histogram": "colours", "raw_pixels": "pixels"}


def print_table(metrics: dict[str, Any], console: Any = None) -> None:
    """Print the numbers of a metrics.json as a table: a row per domain, a column per system.

    `console`: a rich.console.Console; by default standard output.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    for name in dataset_names(metrics):
        found = dataset_table(name, metrics)
        merged = " (dim: on the merged index)" if found["own"] else ""
        words = f"{name}: {found['metric']}{merged}"
        table = Table(box=SIMPLE_HEAD, title=words, title_justify="left")
        table.add_column("domain", min_width=12)
        table.add_column("queries", justify="right")
        for key in systems(metrics):
            style = "bold" if key == "trained" else ""
            table.add_column(SHORT_TITLES.get(key, title(key)), justify="right", style=style)
        table.add_column("R@1", justify="right")
        for row in found["rows"]:
            cells = [f"{cell['value']} [dim]{cell['merged']}[/]" for cell in row["cells"]]
            table.add_row(row["name"], str(row["queries"]), *cells, row["further"]["R@1"])
        console.print(table)
