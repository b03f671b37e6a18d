"""What an evaluation leaves behind: metrics.json, queries.parquet, embeddings, report.html, a table.

No torch: saved embeddings are evaluated in a second.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guie import embeddings, safety
from guie.durable import replace_file
from guie.evaluate import Evaluation, write_columns
from guie.report.page import write_report
from guie.report.terminal import print_table
from guie.types import Embeddings

if TYPE_CHECKING:
    from guie.datasets.manifest import Manifest


# Further numbers that belong to a metric.
_BESIDE = {"GAP": ("ACC",), "uAP": ("RP90", "R@")}


def write_results(
    folder: Path,
    evaluation: Evaluation,
    facts: Mapping[str, Any],
    *,
    found: Mapping[str, Embeddings] | None = None,
    sets: Mapping[str, Manifest] | None = None,
    kept: Mapping[str, Embeddings] | None = None,
    against: str | None = None,
) -> None:
    """Write queries.parquet, metrics.json (with `facts`) and report.html, then print the table.

    metrics.json says by which protocol each data set was evaluated and, where `facts` have the floors, what
    is below the frozen baseline; a number that is not defined (mAP H where nothing is hard) is left out.
    Results that a protocol keeps are in lists_<set>.parquet. `facts["steps"]` are printed as a table.

    `found` are embeddings to keep in embeddings/<set>, `kept` those that are kept elsewhere; `sets` give the
    report's galleries their pictures; `against` is the evaluation that it is compared with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, vectors in (found or {}).items():
        embeddings.save(vectors, folder / "embeddings" / name)
    evaluation.write_queries(folder / "queries.parquet")
    for name, columns in evaluation.lists.items():
        write_columns(columns, folder / f"lists_{name}.parquet")
    short = safety.shortfalls(evaluation.metrics, facts.get("floors", {}), evaluation.named)
    numbers: dict[str, Any] = {"trained": evaluation.metrics, "protocols": evaluation.protocols, **facts}
    numbers["below_frozen"] = [one._asdict() for one in short]
    text = json.dumps(_defined(numbers), indent=1, allow_nan=False)
    replace_file(folder / "metrics.json", f"{text}\n".encode())
    pictures = _picture_reader(sets) if sets else None
    write_report(folder, read_picture=pictures, found={**(found or {}), **(kept or {})}, against=against)
    print_table(numbers)
    print_protocols(evaluation)
    print_steps(facts.get("steps", []))
    for name, values in evaluation.metrics.items():
        if "one_shot_error" in values and name != "merged":
            error, num_runs = values["one_shot_error"], len(values["domains"])
            print(f"{name}: one-shot error {error:.2%}, mean over {num_runs} runs")


def _defined(value: Any) -> Any:
    """Return a value without entries that are NaN, which JSON has no word for, or lists that hold one."""
    if not isinstance(value, Mapping):
        return [_defined(item) for item in value] if isinstance(value, list | tuple) else value
    return {key: _defined(item) for key, item in value.items() if not _lacks(item)}


def _lacks(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_lacks, value))
    return isinstance(value, float) and math.isnan(value)


def print_protocols(evaluation: Evaluation) -> None:
    """Print what a protocol reports under names of its own: its metric, and those that belong to it."""
    for name, metric in evaluation.named.items():
        if metric != safety.METRIC:
            numbers, wanted = evaluation.metrics[name], (metric[:3], *_BESIDE.get(metric, ()))
            found = {
                key: value for key, value in numbers.items() if key.startswith(wanted) and "_" not in key
            }
            shown = ", ".join(
                f"{key} {value:.4f}" for key, value in {metric: numbers[metric], **found}.items()
            )
            print(f"{name} ({evaluation.protocols[name]['kind']}): {shown}")


def print_steps(steps: Sequence[Mapping[str, Any]]) -> None:
    """Print what each step of post-processing gave and cost: by data set its metric, gain and seconds."""
    if len(steps) < 2:
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title="step by step", title_justify="left")
    table.add_column("step", min_width=12)
    for name, metric in steps[0]["metrics"].items():
        table.add_column(f"{name}: {metric}", justify="right")
    table.add_column("seconds", justify="right")
    before, seconds = steps[0]["values"], 0.0
    for step in steps:
        gains = {name: value - before[name] for name, value in step["values"].items()}
        first = step is steps[0]
        cells = [
            f"{value:.4f}" if first else f"{value:.4f} ({gains[name]:+.4f})"
            for name, value in step["values"].items()
        ]
        cost = "" if first else f" ({step['seconds'] - seconds:+.1f})"
        table.add_row(step["step"] or "search", *cells, f"{step['seconds']:.1f}{cost}")
        before, seconds = step["values"], step["seconds"]
    Console().print(table)


def _picture_reader(sets: Mapping[str, Manifest]) -> Callable[[str, str], bytes | None]:
    from guie.datasets.evaluated import reader
    from guie.images import BadImage

    readers = {name: reader(rows) for name, rows in sets.items()}

    def read(name: str, file: str) -> bytes | None:
        try:
            return readers[name.partition("+")[0]](file)
        except (BadImage, OSError, KeyError):
            return None

    return read
