"""What guie-compare does: read two evaluations, compare them query by query, say and write what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guie.comparing import shown
from guie.comparing.gains import Bootstrap, groups, most_changed, table, wholes
from guie.comparing.pairing import Result, paired, read
from guie.durable import replace_file
from guie.errors import UserError

SEEN = ("first_hit", "top_files", "top_labels")


def compare_configured(cfg: Mapping[str, Any]) -> Path:
    """Compare as `cfg` says, print the tables, write compare.json and compare.html; return their folder."""
    _check(cfg)
    baseline, candidate = read("baseline", cfg["baseline"]), read("candidate", cfg["candidate"])
    found = compare(
        baseline,
        candidate,
        bootstrap=Bootstrap(cfg["samples"], cfg["seed"], cfg["level"]),
        show=cfg["show"],
        metric=cfg["metric"],
        common=cfg["common"],
    )
    out = Path(cfg["out"] or candidate.folder / "compare" / _name(baseline.folder.resolve())).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "compare.json", (json.dumps(_finite(found), indent=1) + "\n").encode())
    shown.write_page(found, out / "compare.html")
    shown.print_tables(found)
    print(f"page        {out / 'compare.html'}")
    return out


def _name(folder: Path) -> str:
    """Return the name of a run; of one of its evaluations, which are named alike in every run, run-name."""
    of_run = folder.parent.name == "eval"
    return f"{folder.parent.parent.name}-{folder.name}" if of_run else folder.name


def _check(cfg: Mapping[str, Any]) -> None:
    two = "two folders of evaluations: guie-compare BASELINE CANDIDATE"
    accepted = {
        "baseline": (cfg["baseline"], two),
        "candidate": (cfg["candidate"], two),
        "samples": (cfg["samples"] >= 1, "1 or more"),
        "level": (0 < cfg["level"] < 1, "above 0 and below 1"),
        "show": (cfg["show"] >= 0, "0 or more"),
        "seed": (cfg["seed"] >= 0, "0 or more"),
    }
    for key, (holds, what) in accepted.items():
        if not holds:
            raise UserError(f"{key}: {cfg[key]}; accepted: {what}")


def compare(
    baseline: Result,
    candidate: Result,
    *,
    bootstrap: Bootstrap,
    show: int,
    metric: str | None = None,
    common: bool = False,
) -> dict[str, Any]:
    """Return what compare.json holds: counts, `gains` per group and metric, `wholes`, `changed` queries.

    `metric` decides which queries changed most, by default the one that stands for the first data set. Raises
    UserError where it is none of both, or the queries differ (`paired`).
    """
    rows = paired(baseline, candidate, common=common)
    left_out = [len(baseline.queries) - len(rows[0]), len(candidate.queries) - len(rows[1])]
    metrics = [name for name in baseline.metrics if name in candidate.metrics]
    datasets, domains = (baseline.column(name)[rows[0]] for name in ("dataset", "domain"))
    metric = metric or baseline.main_metric(sorted(set(datasets.tolist()))[0])
    if metric not in metrics:
        raise UserError(
            f"metric: '{metric}'; accepted: {', '.join(metrics) or 'none is in both evaluations'}"
        )
    ours, theirs = (
        {name: result.column(name)[places] for name in metrics}
        for result, places in zip((baseline, candidate), rows, strict=True)
    )
    return {
        "baseline": str(baseline.folder),
        "candidate": str(candidate.folder),
        "queries": len(rows[0]),
        "left_out": left_out,
        **bootstrap._asdict(),
        "metric": metric,
        "gains": table(ours, theirs, list(groups(datasets, domains)), bootstrap),
        "wholes": [] if any(left_out) else wholes(baseline, candidate),
        "changed": _changed(baseline, candidate, rows, metric, show),
    }


def _changed(
    baseline: Result, candidate: Result, rows: tuple[np.ndarray, np.ndarray], metric: str, show: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the queries that gained and lost most, with what each system found first."""
    sides = list(zip((baseline, candidate), rows, strict=True))
    ours, theirs = (result.column(metric)[places] for result, places in sides)
    have = "first_hit" in baseline.queries.column_names and "first_hit" in candidate.queries.column_names
    hits = [result.column("first_hit")[places] if have else np.zeros(len(places)) for result, places in sides]
    gained, lost = most_changed(ours, theirs, (hits[0], hits[1]), show)
    return {
        name: [_query(baseline, candidate, int(rows[0][i]), int(rows[1][i]), metric) for i in chosen]
        for name, chosen in (("gained", gained), ("lost", lost))
    }


def _query(baseline: Result, candidate: Result, row: int, other: int, metric: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: baseline.queries[name][row].as_py() for name in ("dataset", "file", "label", "domain")
    }
    for side, result, place in (("baseline", baseline, row), ("candidate", candidate, other)):
        seen = [name for name in SEEN if name in result.queries.column_names]
        found[side] = {"value": result.queries[metric][place].as_py()}
        found[side] |= {name: result.queries[name][place].as_py() for name in seen}
    return found


def _finite(value: Any) -> Any:
    """Return the same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
