"""What every known data set shares: its raw folder, its prepared folder, its rules.

A data set is one function of a raw folder: it reads lists, never pictures. `guie-prepare` writes what it
found, checked, into a prepared folder (`manifest.parquet`, `truth.parquet`, `prepared.json`); a `root` that
is one is opened instead of listed again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from guie.datasets.manifest import Manifest, from_columns, open_manifest
from guie.datasets.rules import Rules, apply
from guie.errors import UserError

log = logging.getLogger("guie")

MANIFEST, TRUTH, FACTS = "manifest.parquet", "truth.parquet", "prepared.json"

# What a protocol's pairs may say, and in which part of the truth they count.
RELATIONS = ("ok", "easy", "hard", "junk")
USAGES = ("public", "private", "ignored")


@dataclass
class Listing:
    """What a raw folder holds: `columns` of the manifest (file, label, optionally entry, domain, split ...).

    `truth`, where the protocol states pairs instead of labels: columns query and item (files as in the
    manifest), relation (one of RELATIONS) and usage (one of USAGES). `notes` are told when it is listed.
    """

    columns: Mapping[str, Any]
    truth: Mapping[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def known(
    name: str, root: str, data_root: str, listed: Callable[[Path], Listing], rules: Rules = None
) -> Manifest:
    """Return the manifest of `root` (below `data_root` unless absolute), by `rules` in their order.

    Raises:
        UserError: no such folder, what `listed` refuses, or rows that validation refuses.

    """
    place = Path(data_root).expanduser() / Path(root).expanduser()
    if not place.is_dir():
        raise UserError(f"dataset.{name}.root: no folder {place}; accepted: the raw or the prepared folder")
    found = opened(place, name) if (place / MANIFEST).exists() else _from_listing(name, place, listed(place))
    return apply(rules, found)


def opened(place: Path, name: str) -> Manifest:
    """Return the manifest of a prepared folder; its pictures are where they were prepared from."""
    facts = json.loads((place / FACTS).read_text())
    pictures = Path(facts["root"])
    if not pictures.is_dir():
        raise UserError(
            f"{place / FACTS}: root {pictures} is gone; accepted: the pictures' folder, or prepare again"
        )
    manifest = open_manifest(place / MANIFEST, pictures, name, cache_dir=place / ".guie")
    if (place / TRUTH).exists():
        from pyarrow import parquet

        manifest.truth = parquet.read_table(place / TRUTH)
    return manifest


def refuse_other(name: str, node: Mapping[str, Any], data_root: str) -> None:
    """Raise UserError where the config's `root` was prepared as another set or with other settings.

    So gldv2 prepared with subset=v2c is not taken for v2x. Rules are not among them: they act at opening.
    """
    path = Path(data_root).expanduser() / Path(str(node.get("root") or "")).expanduser() / FACTS
    if not node.get("root") or not path.exists():
        return
    prepared = json.loads(path.read_text()).get("settings", {})
    for key, value in prepared.items():
        if key not in ("root", "rules") and key in node and node[key] != value:
            raise UserError(f"{path}: prepared with {key}={value}; accepted by dataset.{name}: {node[key]}")


def _from_listing(name: str, place: Path, listing: Listing) -> Manifest:
    for note in listing.notes:
        log.info("dataset %s: %s", name, note)
    manifest = from_columns(name, place, listing.columns)
    if listing.truth is not None:
        manifest.truth = checked_truth(listing.truth, name)
    return manifest


def checked_truth(columns: Mapping[str, Any], name: str) -> pa.Table:
    """Return the pairs as a table query, item, relation, usage; UserError for values that do not exist."""
    table = pa.table(
        {key: pa.array(columns[key], pa.string()) for key in ("query", "item", "relation", "usage")}
    )
    for column, accepted in (("relation", RELATIONS), ("usage", USAGES)):
        unknown = set(table[column].unique().to_pylist()) - set(accepted)
        if unknown:
            raise UserError(
                f"dataset {name}: {column} {sorted(map(str, unknown))[0]!r}; accepted: {', '.join(accepted)}"
            )
    return table


def required(place: Path, *names: str) -> list[Path]:
    """Return the paths `names` below `place`; UserError naming the first that is missing or empty."""
    for name in names:
        path = place / name
        if not path.exists():
            raise UserError(f"{path}: missing; accepted: the complete download, unpacked, at {place}")
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{path}: 0 bytes; accepted: the complete file (download it again)")
    return [place / name for name in names]


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Return (line number from 1, text) of the lines that are not blank; UserError where it is not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8; accepted: the original text file"
        ) from None
    return [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def json_content(path: Path) -> Any:
    """Return what a JSON file holds; UserError naming the file and the line where it breaks off."""
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno}: {error.msg}; accepted: the complete JSON file (download it again)"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8; accepted: the original text file"
        ) from None


def csv_columns(path: Path, *names: str, separator: str = ",") -> dict[str, list[str]]:
    """Return the named columns of a delimited file with a header, as text.

    Raises:
        UserError: naming the file and the column that is missing or the line that does not fit.

    """
    import csv

    lines = numbered_lines(path)
    rows = list(csv.reader((line for _, line in lines), delimiter=separator))
    header = [cell.strip() for cell in rows[0]] if rows else []
    for name in names:
        if name not in header:
            raise UserError(
                f"{path}: no column {name!r} (found {', '.join(header)}); accepted: {', '.join(names)}"
            )
    for (number, _), row in zip(lines, rows, strict=False):
        if len(row) != len(header):
            raise UserError(
                f"{path}: line {number}: {len(row)} values; accepted: {len(header)}, as the header"
            )
    return {name: [row[header.index(name)].strip() for row in rows[1:]] for name in names}


def arrow_columns(path: Path, *names: str) -> pa.Table:
    """Return the named columns of a comma separated file with a header, as text; for lists of 10^7 rows.

    Raises:
        UserError: naming the file and the column that is missing or the line that does not fit.

    """
    from pyarrow import csv

    with path.open("rb") as file:
        head = _cells(file.readline(), path, 1)
    header = [cell.strip() for cell in head]
    for name in names:
        if name not in header:
            raise UserError(
                f"{path}: no column {name!r} (found {', '.join(header)}); accepted: {', '.join(names)}"
            )
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=header, skip_rows=1),
            convert_options=csv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _first_misfit(path, len(header), str(error)) from None
    return pa.table({name: pc.utf8_trim_whitespace(table[name]) for name in names})


def _first_misfit(path: Path, expected: int, reason: str) -> UserError:
    """Return what is wrong with the first line that is: Arrow counts its own blocks, people count lines."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            found = len(_cells(line, path, number))
            if line.strip() and found != expected:
                return UserError(
                    f"{path}: line {number}: {found} values; accepted: {expected}, as the header"
                )
    return UserError(f"{path}: cannot be read ({reason.splitlines()[0]}); accepted: the original file")


def _cells(line: bytes, path: Path, number: int) -> list[str]:
    import csv

    try:
        return next(csv.reader([line.decode("utf-8-sig")]), [])
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: line {number}, byte {error.start} is not UTF-8; accepted: the original text file"
        ) from None
