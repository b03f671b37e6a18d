"""Submission files of rows: written in one step, read back with the number of each row; plain or .gz."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from guie.durable import replace_file
from guie.errors import UserError


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a csv, compressed where the name ends in .gz; the same rows give the same bytes."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(header)
    lines.writerows(rows)
    data = text.getvalue().encode()
    replace_file(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def read_rows(path: Path, header: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line in the file, cells); UserError where it is no csv, or has other columns."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            first = next(lines, [])
            if first != list(header):
                raise UserError(f"{path}: columns {','.join(first)!r}; accepted: {','.join(header)}")
            for cells in lines:
                if len(cells) != len(header):
                    raise wrong(path, lines.line_num, f"{len(cells)} values", f"{len(header)}")
                yield lines.line_num, cells
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); accepted: a csv, or csv.gz") from error


def wrong(path: Path, line: int, value: str, accepted: str) -> UserError:
    """Return the error that names line and value."""
    return UserError(f"{path}, line {line}: {value}; accepted: {accepted}")


def number(path: Path, line: int, text: str, what: str) -> float:
    """Return a finite number; UserError for another value."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise wrong(path, line, f"{what} {text!r}", "a finite number")
    return value


def once(path: Path, line: int, seen: dict[str, int], key: str, what: str) -> None:
    """Remember the line of `key`; UserError where it was there before, or is empty."""
    if not key:
        raise wrong(path, line, f"{what} ''", "a name")
    if key in seen:
        raise wrong(path, line, f"{what} {key!r} again, after line {seen[key]}", "each once")
    seen[key] = line


def wanted_ids(sample: str | Path | None) -> list[str] | None:
    """Return the first column of a sample submission, the ids that are wanted; None without one."""
    if sample is None:
        return None
    path = Path(sample).expanduser()
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            rows = [cells[0] for cells in csv.reader(file) if cells]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise UserError(f"sample: {path} cannot be read ({error}); accepted: a csv, or csv.gz") from error
    return rows[1:]


def check_ids(path: Path, found: dict[str, int], wanted: Sequence[str] | None) -> None:
    """Raise UserError unless the ids `found` (with their lines) are those `wanted`, in any order."""
    if wanted is None:
        return
    known = set(wanted)
    for key, line in found.items():
        if key not in known:
            raise wrong(path, line, f"id {key!r}", "ids of the sample submission")
    if missing := [key for key in wanted if key not in found]:
        raise UserError(
            f"{path}: {len(missing)} ids missing, such as {missing[0]!r}; accepted: one row for each"
        )


def stem(file: str) -> str:
    """Return the id of a picture: its name, without folder, archive and ending."""
    return PurePosixPath(file.partition("#")[2] or file).stem


def stems(files: Iterable[str], what: str) -> list[str]:
    """Return the id of each picture; UserError where two have one."""
    ids = [stem(str(file)) for file in files]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        accepted = "names that differ without their folder"
        raise UserError(f"{what}: two pictures are named {twice[0]!r}; accepted: {accepted}")
    return ids
