"""Two evaluations read from their folders, query beside query."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guie.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

WHO = ("dataset", "file", "label", "domain")
# Settings of a protocol that add numbers under names of their own and change none.
ADDING = {"metric", "recall_ks", "map_k", "lists", "group_by"}


@dataclass(frozen=True)
class Result:
    """What an evaluation left in `folder`: `numbers` is metrics.json, `queries` queries.parquet (Q rows)."""

    folder: Path
    numbers: dict[str, Any]
    queries: pa.Table

    @property
    def metrics(self) -> list[str]:
        """Return the columns that hold a metric: those of floating point, but for `value` and scores."""
        import pyarrow.types as kinds

        names = [field.name for field in self.queries.schema if kinds.is_floating(field.type)]
        return [name for name in names if name != "value" and not name.endswith("_score")]

    def column(self, name: str) -> np.ndarray:
        """Return a column as numpy: strings as objects, numbers as they are."""
        import pyarrow.types as kinds

        column = self.queries[name]
        numbers = kinds.is_floating(column.type) or kinds.is_integer(column.type)
        # Neither to_numpy nor, below, read_table: both import pandas, a second of CPU.
        return np.array(column.to_pylist(), dtype=column.type.to_pandas_dtype() if numbers else object)

    def main_metric(self, dataset: str) -> str:
        """Return the metric that stands for a data set: its protocol's, where queries have it, else mP@5."""
        protocol = self.numbers.get("protocols", {}).get(dataset, {})
        wanted = [protocol.get("metric"), "mP@5", *self.metrics]
        return next(name for name in wanted if name in self.metrics)


def read(key: str, place: str) -> Result:
    """Return the evaluation in a folder, or a run's only one; UserError naming `key` where there is none."""
    import pyarrow.parquet as pq

    folder = _evaluated(key, Path(place).expanduser())
    try:
        numbers = dict(json.loads((folder / "metrics.json").read_text()))
        queries = pq.ParquetFile(folder / "queries.parquet").read()
    except (OSError, ValueError, TypeError) as error:  # pyarrow's errors are ValueErrors
        said = " ".join(str(error).split())
        raise UserError(f"{key}: {folder}: {said}; accepted: metrics.json and queries.parquet") from None
    result = Result(folder, numbers, queries)
    lacking = [name for name in WHO if name not in queries.column_names]
    if lacking or not result.metrics:
        raise UserError(
            f"{key}: {folder / 'queries.parquet'}: no {', '.join(lacking) or 'metrics'}; "
            "accepted: what guie-eval wrote"
        )
    return result


def _evaluated(key: str, place: Path) -> Path:
    """Return the folder with queries.parquet: `place`, or the one below its eval/."""
    if (place / "queries.parquet").exists():
        return place
    found = sorted(path.parent for path in place.glob("eval/*/queries.parquet"))
    if len(found) == 1:
        return found[0]
    several = f"several evaluations: {', '.join(str(path) for path in found)}" if found else "no evaluation"
    raise UserError(f"{key}: {place}: {several}; accepted: one folder with queries.parquet and metrics.json")


def paired(baseline: Result, candidate: Result, *, common: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows of the baseline, rows of the candidate), the same query at the same place.

    A query is its data set and file. UserError where one has queries that the other lacks, unless `common`;
    and where a query's label, its number of relevant images or the protocol differ: then something else was
    asked.
    """
    ours, theirs = _places(baseline), _places(candidate)
    shared = [key for key in ours if key in theirs]
    if not shared or (not common and not len(shared) == len(ours) == len(theirs)):
        raise UserError(_differing(baseline, candidate, ours, theirs, len(shared)))
    rows = np.array([ours[key] for key in shared]), np.array([theirs[key] for key in shared])
    _check_same_protocol(baseline, candidate, {key[0] for key in shared})
    _check_same_question(baseline, candidate, rows, shared)
    return rows


Query = tuple[str, str, int]


def _places(result: Result) -> dict[Query, int]:
    """Return {(data set, file, how many times it was asked before): row}."""
    places: dict[Query, int] = {}
    asked: dict[tuple[str, str], int] = {}
    columns = (result.column(name).tolist() for name in ("dataset", "file"))
    for row, pair in enumerate(zip(*columns, strict=True)):
        asked[pair] = asked.get(pair, 0) + 1
        places[*pair, asked[pair]] = row
    return places


def _differing(baseline: Result, candidate: Result, ours: Any, theirs: Any, num_shared: int) -> str:
    sets = [sorted({key[0] for key in places}) for places in (ours, theirs)]
    folders = (baseline.folder, candidate.folder)
    if sets[0] != sets[1]:
        said = " and ".join(
            f"{', '.join(names)} in {where}" for names, where in zip(sets, folders, strict=True)
        )
        said = f"data sets: {said}"
    else:
        lacking = len(ours) - num_shared, len(theirs) - num_shared
        said = f"queries: {lacking[0]:,} of {len(ours):,} in {folders[0]} are not in {folders[1]}"
        said += f", {lacking[1]:,} of {len(theirs):,} the other way round"
    cure = f", or common=true for the {num_shared:,} in both" if num_shared else ""
    return f"{said}; accepted: the same queries{cure}"


def _check_same_protocol(baseline: Result, candidate: Result, datasets: set[str]) -> None:
    """Raise UserError naming the setting that differs, where both evaluations say what their protocol was."""
    sides = [result.numbers.get("protocols", {}) for result in (baseline, candidate)]
    for dataset in sorted(datasets):
        ours, theirs = (side.get(dataset) for side in sides)
        for key in sorted(ours.keys() | theirs.keys()) if ours and theirs else ():
            if key not in ADDING and ours.get(key) != theirs.get(key):
                raise UserError(
                    f"protocols.{dataset}.{key}: {ours.get(key)} in {baseline.folder}, {theirs.get(key)} in "
                    f"{candidate.folder}; accepted: one protocol"
                )


def _check_same_question(
    baseline: Result, candidate: Result, rows: tuple[np.ndarray, np.ndarray], shared: Sequence[Query]
) -> None:
    for name in ("label", "domain", "relevant"):
        if not all(name in result.queries.column_names for result in (baseline, candidate)):
            continue
        ours, theirs = baseline.column(name)[rows[0]], candidate.column(name)[rows[1]]
        wrong = np.flatnonzero(ours != theirs)
        if len(wrong):
            first = wrong[0]
            raise UserError(
                f"{name}: differs for {len(wrong):,} of {len(ours):,} queries, as {shared[first][1]}: "
                f"{ours[first]} in {baseline.folder}, {theirs[first]} in {candidate.folder}; "
                "accepted: the same queries against the same index"
            )
