"""What an evaluation leaves behind: metrics.json, queries.parquet, embeddings, report.html, a table.

No torch: saved embeddings are evaluated in a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guie import embeddings, report, safety
from guie.durable import replace_file
from guie.evaluate import Evaluation
from guie.types import Embeddings

if TYPE_CHECKING:
    from guie.datasets.manifest import Manifest


def write_results(
    folder: Path,
    evaluation: Evaluation,
    facts: Mapping[str, Any],
    *,
    found: Mapping[str, Embeddings] | None = None,
    sets: Mapping[str, Manifest] | None = None,
) -> None:
    """Write queries.parquet, metrics.json (with `facts`) and report.html, then print the table.

    Where `facts` have the floors, metrics.json says what is below the frozen baseline.

    `found` are embeddings to keep in embeddings/<set>; `sets` give the report's galleries their pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, vectors in (found or {}).items():
        embeddings.save(vectors, folder / "embeddings" / name)
    evaluation.write_queries(folder / "queries.parquet")
    short = safety.shortfalls(evaluation.metrics, facts.get("floors", {}))
    numbers = {"trained": evaluation.metrics, **facts, "below_frozen": [one._asdict() for one in short]}
    replace_file(folder / "metrics.json", (json.dumps(numbers, indent=1) + "\n").encode())
    report.write_report(folder, read_picture=_picture_reader(sets) if sets else None)
    report.print_table(numbers)
    for name, values in evaluation.metrics.items():
        if "one_shot_error" in values and name != "merged":
            error, num_runs = values["one_shot_error"], len(values["domains"])
            print(f"{name}: one-shot error {error:.2%}, mean over {num_runs} runs")


def _picture_reader(sets: Mapping[str, Manifest]) -> Callable[[str, str], bytes | None]:
    from guie.images import BadImage

    def read(name: str, file: str) -> bytes | None:
        path, _, entry = file.partition("#")
        try:
            return sets[name].picture(path, entry or None)
        except (BadImage, OSError, KeyError):
            return None

    return read
