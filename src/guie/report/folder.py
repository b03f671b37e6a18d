"""A run folder as the report reads it: numbers, history, config and queries (Q)."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guie.errors import UserError
from guie.report.numbers import main_metric, systems


@dataclass(frozen=True)
class Queries:
    """What queries.parquet holds, a value per query: strings as objects, numbers, the first results as lists.

    `value` (Q,) is what a query gives to its data set's metric, NaN where it does not count there.
    """

    columns: Mapping[str, Any]
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def results(self, row: int) -> list[tuple[str, str, float]]:
        """Return (file, label, score) of the first results of a query, best first."""
        columns = (self.columns[f"top_{name}"][row] for name in ("files", "labels", "scores"))
        return list(zip(*columns, strict=True))


def read_queries(path: Path, numbers: Mapping[str, Any]) -> Queries | None:
    """Return queries.parquet, None where there is none."""
    if not path.exists():
        return None
    import pyarrow.parquet as pq
    import pyarrow.types as kinds

    # Neither read_table nor to_numpy: both import pandas, a second of CPU.
    table = pq.ParquetFile(path).read()
    columns: dict[str, Any] = {}
    for field in table.schema:
        values = table[field.name].to_pylist()
        plain = kinds.is_floating(field.type) or kinds.is_integer(field.type)
        dtype = field.type.to_pandas_dtype() if plain else object
        columns[field.name] = values if kinds.is_list(field.type) else np.array(values, dtype=dtype)
    return Queries(columns, _values(columns, numbers))


def _values(columns: Mapping[str, Any], numbers: Mapping[str, Any]) -> np.ndarray:
    if "value" in columns:
        return np.asarray(columns["value"], dtype=np.float64)
    value = np.full(len(columns["file"]), np.nan)
    for name in sorted(set(columns["dataset"].tolist())):
        rows = columns["dataset"] == name
        metric = next(m for m in (main_metric(name, numbers), "mP@5", "ACC", *columns) if m in columns)
        value[rows] = columns[metric][rows]
    return value


def read_numbers(path: Path) -> dict[str, Any]:
    """Return metrics.json; UserError where it cannot be read, or holds no evaluation."""
    try:
        numbers: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; accepted: the metrics.json that an evaluation wrote") from error
    if not systems(numbers):
        raise UserError(f"{path}: neither trained nor floors; accepted: the metrics.json of an evaluation")
    return numbers


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that have a step; a line cut off by a kill is skipped."""
    lines = []
    for text in read_text(path).splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def read_text(path: Path) -> str:
    """Return a file's text, nothing where there is no file."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def subtitle(folder: Path, config: str) -> str:
    """Return when the numbers were made and from which parts."""
    modified = datetime.datetime.fromtimestamp((folder / "metrics.json").stat().st_mtime).astimezone()
    words = [modified.strftime("%-d %B %Y, %H:%M %Z")]
    settings = _parsed(config)
    for group in ("dataset", "backbone", "neck", "head", "optim"):
        part = settings.get(group) if isinstance(settings, dict) else None
        if isinstance(part, dict):
            target = str(part.get("_target_", "")).rsplit(".", 1)[-1]
            name = part.get("name") or target or ", ".join(map(str, part))
            words.append(f"{group} {name}")
    return " · ".join(words)


def _parsed(config: str) -> Any:
    if not config:
        return None
    import yaml

    return yaml.safe_load(config)


def facts(folder: Path, numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return where the run lies, and what else metrics.json holds that is one value or a list of words."""
    found = [("folder", str(folder))]
    for name, value in numbers.items():
        if isinstance(value, str | int | float | bool):
            found.append((name, str(value)))
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            found.append((name, ", ".join(value)))
    protocols = {key: one for key, one in numbers.get("protocols", {}).items() if isinstance(one, dict)}
    return found + [(f"protocol of {key}", _told(one)) for key, one in protocols.items()]


def _told(protocol: Mapping[str, Any]) -> str:
    settings = (
        f"{key}={value}" for key, value in protocol.items() if key != "kind" and value not in ([], None)
    )
    return f"{protocol.get('kind', '')} ({', '.join(settings)})"
