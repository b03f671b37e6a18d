"""What changed against another evaluation of the same queries."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guie.errors import UserError
from guie.report.album import Album
from guie.report.galleries import Judge, picture, short
from guie.report.numbers import share

if TYPE_CHECKING:
    from guie.comparing.pairing import Result

log = logging.getLogger("guie")

SHOWN = 6
DRAWS = 2000


def changes(folder: Path, against: str | Path | None, album: Album, judge: Judge) -> dict[str, Any] | None:
    """Return what the template shows of the run `against`, None without one.

    Where the two cannot be compared, only why: the rest of the report is worth having.
    """
    if against is None:
        return None
    from guie.comparing.gains import Bootstrap
    from guie.comparing.pairing import read
    from guie.comparing.story import compare

    name = Path(against).resolve().name
    try:
        ours, theirs = read("out", str(folder)), read("against", str(against))
        found = compare(theirs, ours, bootstrap=Bootstrap(DRAWS, 0, 0.95), show=SHOWN, common=True)
    except UserError as error:
        log.warning("against: not compared: %s", error)
        return {"name": name, "place": str(against), "wrong": str(error)}
    rows, others = _rows(found, ours)
    galleries = [
        {
            "title": f"Queries that {which} most",
            "note": f"Value of {found['metric']} before and now; the first results are the other run's.",
            "cases": [_case(query, album, judge) for query in queries],
        }
        for which, queries in found["changed"].items()
        if queries
    ]
    apart = sum(found["left_out"])
    note = f"{found['queries']:,} queries in both" + (f", {apart:,} in only one left out" if apart else "")
    return {
        "name": name,
        "place": str(against),
        "wrong": "",
        "note": note,
        "rows": rows,
        "others": others,
        "wholes": [_whole(row) for row in found["wholes"]],
        "galleries": galleries,
    }


def _rows(found: Mapping[str, Any], ours: Result) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the metrics that stand for the data sets, and those of every other metric."""
    names = {row["dataset"] for row in found["gains"]}
    main = {name: ours.main_metric(name) for name in names if name}
    # All data sets together are told by a metric only where it stands for each of them.
    main[""] = found["metric"] if len(set(main.values())) == 1 else ""
    apart: tuple[list[Any], list[Any]] = ([], [])
    for row in found["gains"]:
        stands = row["metric"] == main[row["dataset"]]
        if stands or row["domain"] is None:
            apart[not stands].append(row)
    first, second = (
        [_drawn(row, rows) | {"name": _name(row, len(names) > 1)} for row in rows] for rows in apart
    )
    return first, second


def _name(row: Mapping[str, Any], several: bool) -> str:
    if not several:
        return row["domain"] or "all"
    return " / ".join(filter(None, (row["dataset"] or "all data sets", row["domain"])))


def _drawn(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row in words, with `x`, `x1`, `x2`: gain and interval between 0 and 100, no gain at 50."""
    reach = max(max(abs(one["low"]), abs(one["high"])) for one in rows) or 1.0
    places = {
        name: round(50 + 48 * row[key] / reach, 1)
        for name, key in (("x", "gain"), ("x1", "low"), ("x2", "high"))
    }
    return {
        "total": row["domain"] is None,
        "metric": row["metric"],
        "queries": f"{row['queries']:,}",
        "baseline": share(row["baseline"]),
        "candidate": share(row["candidate"]),
        "gain": signed(row["gain"]),
        "interval": f"{signed(row['low'])} to {signed(row['high'])}",
        "verdict": row["verdict"],
    } | places


def _whole(row: Mapping[str, Any]) -> dict[str, str]:
    words = {key: share(row[key]) for key in ("baseline", "candidate")}
    return {"dataset": row["dataset"], "metric": row["metric"], "change": signed(row["change"])} | words


def signed(value: float) -> str:
    """Return a change as +.012 or −.012, none as .000."""
    shown = share(abs(value))
    return shown if shown == ".000" else ("−" if value < 0 else "+") + shown


def _case(query: Mapping[str, Any], album: Album, judge: Judge) -> dict[str, Any]:
    dataset, label = query["dataset"], query["label"]
    strips = []
    for side, words in (("baseline", "before"), ("candidate", "now")):
        pictures = [picture(album, dataset, query["file"], label, "query", words)]
        for file, other in zip(
            *(query[side].get(name, []) for name in ("top_files", "top_labels")), strict=True
        ):
            right = judge.right_item(dataset, (query["file"], label), (file, other))
            kind, mark = ("hit", "✓") if right else ("unknown" if right is None else "miss", short(other))
            pictures.append(picture(album, dataset, file, other, kind, mark))
        strips.append(pictures)
    moved = " → ".join(share(query[side]["value"]) for side in ("baseline", "candidate"))
    return {
        "label": label,
        "file": query["file"],
        "domain": query["domain"] or dataset,
        "value": moved,
        "pictures": strips[0] + strips[1],
        "pictured": any(one["source"] for pictures in strips for one in pictures),
    }
