"""Data sets by their protocols: numbers of each, and of those that go by label in one index; no torch.

Who asks and who answers is told by splits: `query` rows search `index` rows; `test` rows search each other
and the index, each without itself. A merged index holds all domains (of one data set, or of several); a
domain's own index holds only its rows. Labels of different data sets never match.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from guie.durable import replace_file
from guie.embeddings import concatenate, one_space, sound, to_arrow
from guie.protocols.part import Columns, Numbers, Part, Protocol, settings
from guie.protocols.retrieval import Retrieval
from guie.search.exact import Exact
from guie.types import Embeddings, Search

# (data set, file) -> the picture's bytes.
Picture = Callable[[str, str], bytes]


@dataclass(frozen=True)
class Evaluation:
    """`metrics`: {dataset: {..., "domains": {...}}, "merged": {...}}; `queries`: columns with one value per
    query, in the order of the datasets; `protocols`: by data set what was evaluated, its `metric` first;
    `lists`: by data set the results that its protocol keeps."""

    metrics: dict
    queries: dict[str, np.ndarray | list]
    protocols: dict[str, dict] = field(default_factory=dict)
    lists: dict[str, Columns] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, str]:
        """Return the metric that stands for each data set."""
        return {name: protocol["metric"] for name, protocol in self.protocols.items()}

    def with_further(self, other: Evaluation) -> Evaluation:
        """Return this evaluation with the data sets of another beside its own."""
        return Evaluation(
            {**self.metrics, **other.metrics},
            _stacked([self.queries, other.queries]),
            {**self.protocols, **other.protocols},
            {**self.lists, **other.lists},
        )

    def write_queries(self, path: str | Path) -> None:
        """Write the per-query results as parquet, for comparing runs and for the report."""
        write_columns(self.queries, path)


def write_columns(columns: Mapping[str, np.ndarray | list], path: str | Path) -> None:
    """Write columns of one length as parquet, in one step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, made = [to_arrow(column) for column in columns.values()], pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, names=list(columns)), made)
    replace_file(Path(path), made.getvalue())


def evaluate(
    embeddings: Embeddings | Mapping[str, Embeddings],
    protocol: Protocol | Mapping[str, Protocol] | None = None,
    *,
    search: Search | None = None,
    picture: Picture | None = None,
    merged: bool = True,
) -> Evaluation:
    """Evaluate one data set, or several by name, each by its protocol (by default `Retrieval`).

    "merged" is one index of all data sets whose protocol goes by label; of one alone it repeats its numbers;
    unless that is not wanted.
    `picture` serves searches that look at pictures. Raises UserError where there is nothing to search, a file
    is listed twice, a vector is not finite or zero, or the data sets are of several spaces.
    """
    parts = {"data": embeddings} if isinstance(embeddings, Embeddings) else dict(embeddings)
    chosen = _by_name(protocol, parts)
    one_space(parts)
    for name, part in parts.items():
        sound(part, name)
    search = search or Exact(memory_mib=8)
    found = {
        name: chosen[name].evaluate(Part(name, part, search, _of(picture, name)))
        for name, part in parts.items()
    }
    numbers: Numbers = {name: outcome.numbers for name, outcome in found.items()}
    joined = _merged(parts, chosen, numbers, search, picture) if merged else None
    return Evaluation(
        numbers | ({"merged": joined} if joined else {}),
        _stacked([_valued(outcome.queries, chosen[name].metric) for name, outcome in found.items()]),
        {name: settings(one) | {"metric": _metric(one, numbers[name])} for name, one in chosen.items()},
        {name: outcome.lists for name, outcome in found.items() if outcome.lists},
    )


def _metric(protocol: Protocol, numbers: Numbers) -> str:
    """Return the protocol's metric, or the first there is: its own may be at a k that was not asked for."""
    found = [name for name, value in numbers.items() if isinstance(value, float)]
    return protocol.metric if protocol.metric in found else found[0]


def by_step(
    embeddings: Mapping[str, Embeddings],
    protocols: Mapping[str, Protocol],
    steps: Iterable[tuple[str, Search]],
    *,
    picture: Picture | None = None,
) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Return the evaluation by the last of `steps`, named searches of which each does one thing more.

    And of each step: its name, `metrics` and `values` by data set, and the seconds that all of it took.
    """
    told = []
    for name, search in steps:
        began = time.monotonic()
        found = evaluate(embeddings, protocols, search=search, picture=picture)
        values = {one: found.metrics[one][metric] for one, metric in found.named.items()}
        seconds = time.monotonic() - began
        told.append({"step": name, "metrics": found.named, "values": values, "seconds": seconds})
    return found, told


def _by_name(
    protocol: Protocol | Mapping[str, Protocol] | None, parts: Mapping[str, Embeddings]
) -> dict[str, Protocol]:
    if isinstance(protocol, Mapping):
        return {name: protocol[name] for name in parts}
    return dict.fromkeys(parts, protocol or Retrieval())


def _merged(
    parts: Mapping[str, Embeddings],
    chosen: Mapping[str, Protocol],
    numbers: Numbers,
    search: Search,
    picture: Picture | None,
) -> Numbers | None:
    """Return the numbers on one index of all that go by label; of a single data set, its own."""
    if len(parts) == 1:
        return numbers[next(iter(parts))]
    by_label = [name for name in parts if chosen[name].by_label]
    if len(by_label) < 2:
        return numbers[by_label[0]] if by_label else None
    joined = concatenate({name: parts[name] for name in by_label})
    part = Part("merged", joined, search, _of_any(picture), merged=True)
    return _in_common([chosen[name] for name in by_label]).evaluate(part).numbers


def _in_common(protocols: list[Protocol]) -> Retrieval:
    """Return how a merged index is evaluated: as its data sets where they agree, else by the defaults.

    Who asks or answers in any of them does so there.
    """
    first = protocols[0]
    if isinstance(first, Retrieval) and all(other == first for other in protocols):
        return replace(first, lists=0, group_by=None)
    asks, answers = zip(*(one.roles[0] for one in protocols), strict=True)
    return Retrieval(asks=sorted({*chain(*asks)}), answers=sorted({*chain(*answers)}))


def _of(picture: Picture | None, name: str) -> Callable[[str], bytes] | None:
    return None if picture is None else lambda file: picture(name, file)


def _of_any(picture: Picture | None) -> Callable[[str], bytes] | None:
    """Return how to read a file of a merged index, which begins with its data set's name."""
    return None if picture is None else lambda file: picture(*file.split("/", 1))


def _valued(queries: Columns, metric: str) -> Columns:
    """Return the columns with `value`: what each query gives to the metric, or how well it itself went."""
    shown = next(name for name in (metric, "mP@5", "ACC", *queries) if _is_metric(queries, name))
    return {**queries, "value": queries[shown]}


def _is_metric(queries: Columns, name: str) -> bool:
    return isinstance(queries.get(name), np.ndarray) and queries[name].dtype.kind == "f"


def _stacked(tables: list[Columns]) -> Columns:
    """Join tables of several data sets; where a data set lacks a metric, its queries have NaN."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    return {name: _column([(table.get(name), len(table["file"])) for table in tables]) for name in names}


def _column(parts: list[tuple[Any, int]]) -> np.ndarray | list:
    if any(isinstance(column, list) for column, _ in parts):
        return [row for column, count in parts for row in (column if column is not None else [[]] * count)]
    kind = next(column.dtype.kind for column, _ in parts if column is not None)
    lacking: Any = {"f": np.nan, "O": ""}.get(kind, 0)
    return np.concatenate([np.full(count, lacking) if column is None else column for column, count in parts])
