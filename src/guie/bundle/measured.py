"""What guie-eval measured of the model that is bundled; of another one nothing is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from guie.calibrate import thresholds
from guie.calibrate.thresholds import Thresholds
from guie.errors import UserError

# Metrics that are told of a data set beside its own.
FURTHER = ("mP@5", "R@1")
FROZEN = "backbone"


class Number(NamedTuple):
    """A metric of a data set, or of one domain's queries among all; `frozen`: of the backbone as it began."""

    dataset: str
    domain: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    frozen: float | None
    queries: int | None
    gallery: int | None


@dataclass(frozen=True)
class Measured:
    """`numbers` by data set and domain; `doubts` are sentences; `beyond` are steps of the search that act on
    results, not on vectors, and so are in no file, with `steps` telling what each step gave."""

    numbers: list[Number]
    doubts: list[str]
    beyond: list[str]
    steps: list[tuple[str, str]]
    thresholds: Thresholds | None


NOTHING = Measured([], [], [], [], None)


def read(folder: Path, facts: Mapping[str, Any]) -> Measured:
    """Return what the evaluation in `folder` found, for a file whose `facts` name its space and steps.

    Raises UserError where there is none, or one of another space.
    """
    numbers = _metrics(folder)
    if numbers.get("space_id") != facts["space_id"]:
        accepted = f"{facts['space_id']}, of what is exported"
        raise UserError(f"evaluation: {folder} is of space {numbers.get('space_id')}; accepted: {accepted}")
    inside = facts.get("postprocess", {})
    return Measured(
        list(_numbers(numbers)),
        [_doubt(one) for one in numbers.get("below_frozen", [])],
        [name for name in numbers.get("postprocess", []) if name not in inside],
        [(one["step"] or "search", _values(one)) for one in numbers.get("steps", [])],
        _thresholds(folder, facts),
    )


def _metrics(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "metrics.json").read_bytes())
    except (OSError, ValueError) as error:
        accepted = "the folder of an evaluation (guie-eval out=FOLDER)"
        raise UserError(
            f"evaluation: {folder}: no metrics.json to read ({error}); accepted: {accepted}"
        ) from error


def _numbers(numbers: Mapping[str, Any]) -> Iterator[Number]:
    """Yield each data set's metrics, then that of each of its domains among all, then the merged index."""
    found, frozen = numbers["trained"], numbers.get("floors", {}).get(FROZEN, {})
    for name, of_set in found.items():
        if name == "merged" and len(found) == 2:
            continue  # of one data set it repeats its numbers
        protocol = numbers.get("protocols", {}).get(name, {})
        wanted = dict.fromkeys([protocol.get("metric"), *FURTHER])
        for metric in (one for one in wanted if isinstance(of_set.get(one), float)):
            yield _number((name, ""), metric, of_set, frozen.get(name, {}))
        for domain, own in of_set.get("domains", {}).items():
            among = own.get("merged", own)
            if isinstance(among.get("mP@5"), float):
                floor = frozen.get(name, {}).get("domains", {}).get(domain, {})
                yield _number((name, domain), "mP@5", among, floor.get("merged", floor))


def _number(
    where: tuple[str, str], metric: str, found: Mapping[str, Any], frozen: Mapping[str, Any]
) -> Number:
    low, high = found.get(f"{metric}_interval", (None, None))
    between = None if low is None else (low, high)
    counts = found.get("queries"), found.get("gallery")
    return Number(*where, metric, found[metric], between, frozen.get(metric), *counts)


def _doubt(one: Mapping[str, Any]) -> str:
    told = f"{one.get('metric', 'mP@5')} {one['trained']:.3f}, the frozen backbone {one['frozen']:.3f}"
    return f"{one['where']} is below the backbone that training began from: {told}."


def _values(step: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {step['metrics'][name]} {value:.4f}" for name, value in step["values"].items())


def _thresholds(folder: Path, facts: Mapping[str, Any]) -> Thresholds | None:
    """Return the thresholds of the file's own space, None where there are none of it."""
    if not (folder / thresholds.FILE).exists():
        return None
    found = thresholds.load(folder)
    return found if found.space_id == facts["space_id"] else None
