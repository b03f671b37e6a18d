"""ILIAS (Kordopatis-Zilos et al., CVPR 2025): 1,000 objects to find among up to 100 million distractors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from guie.datasets.folder import PICTURES
from guie.datasets.known import Listing, known, numbered_lines
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError
from guie.records.tar import TarArchive

_SPLIT = {"query": "query", "pos": "index"}
_NAME = re.compile(r"([^/]+_\d{3})/(query|pos)/([QP]\d{3}_\d{2})\.jpg")


class _Picture(NamedTuple):
    file: str
    entry: str | None
    label: str
    split: str
    box: str | None


def ilias(root: str = "ilias", distractors: bool = True, rules: Rules = None, *, data_root: str) -> Manifest:
    """Return 1,232 picture queries (query), 4,715 positives and, unless refused, distractors (index).

    Two releases are read. The authors' portal: `ilias_core/<object>_000/query/Q000_00.jpg` and
    `pos/P000_00.jpg`, each with `_bbox.txt`, and `yfcc100m/*.tar`. Their shards on Hugging Face:
    `ilias-core-queries-img-*.tar` and `ilias-core-db-*.tar` with members of the same names and `.bbox.json`,
    and `mini_ilias_yfcc100m-*.tar` (5 million distractors). Archives are read in place, whatever part of
    them is there.

    The label is the object (bold_bimp_000), `box` what all its boxes span, x,y,w,h in pixels; the domain is
    `instance`. Text queries are left out.
    """
    return known("ilias", root, data_root, partial(listed, distractors=distractors), rules)


def listed(place: Path, distractors: bool = True) -> Listing:
    """List the core, from folders or archives, and the members of the archives of distractors."""
    unpacked = (place / "ilias_core").is_dir()
    rows = list(_of_folders(place) if unpacked else _of_archives(place))
    for split, name in (("query", "query/Q000_00.jpg"), ("index", "pos/P000_00.jpg")):
        if not any(row.split == split for row in rows):
            raise UserError(
                f"{place}: no {name} of any object; accepted: ilias_core/, or ilias-core-queries-img-*.tar "
                "and ilias-core-db-*.tar"
            )
    archives = sorted([*place.glob("yfcc100m/*.tar"), *place.glob("mini_ilias_yfcc100m-*.tar")])
    if distractors and not archives:
        raise UserError(
            f"{place}: no yfcc100m/*.tar and no mini_ilias_yfcc100m-*.tar; accepted: some of them, or "
            "distractors=false"
        )
    for path in archives if distractors else []:
        file = path.relative_to(place).as_posix()
        names = [member.name for member in TarArchive(path).members()]
        rows += [
            _Picture(file, name, "distractor", "index", None)
            for name in names
            if name.lower().endswith(PICTURES)
        ]
    columns: dict[str, list] = {
        name: [getattr(row, name) for row in rows] for name in ("file", "entry", "label", "split", "box")
    }
    columns["domain"] = ["instance"] * len(rows)
    return Listing(columns)


def _of_folders(place: Path) -> Iterator[_Picture]:
    for path in sorted((place / "ilias_core").glob("*/*/*.jpg")):
        found = _matched(path.relative_to(place / "ilias_core").as_posix(), place / "ilias_core")
        boxes = path.with_name(f"{path.stem}_bbox.txt")
        box = _spanned(_lines(boxes), boxes) if boxes.exists() else None
        yield _Picture(path.relative_to(place).as_posix(), None, found[1], _SPLIT[found[2]], box)


def _of_archives(place: Path) -> Iterator[_Picture]:
    for path in sorted([*place.glob("ilias-core-queries-img-*.tar"), *place.glob("ilias-core-db-*.tar")]):
        archive = TarArchive(path)
        for member in archive.members():
            if member.name.endswith(".jpg"):
                found = _matched(member.name, path)
                boxes = member.name.removesuffix(".jpg") + ".bbox.json"
                box = _spanned(_json(archive, boxes), path / boxes) if boxes in archive else None
                yield _Picture(path.name, member.name, found[1], _SPLIT[found[2]], box)


def _matched(name: str, above: Path) -> re.Match[str]:
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(
            f"{above}: {name!r}; accepted: names like bold_bimp_000/query/Q000_00.jpg or pos/P000_00.jpg"
        )
    return found


def _lines(path: Path) -> list[list[str]]:
    return [line.split() for _, line in numbered_lines(path)]


def _json(archive: TarArchive, name: str) -> object:
    try:
        return json.loads(archive.read(name))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{archive.path}: member {name!r}: {error}; accepted: a list of boxes") from None


def _spanned(boxes: object, where: Path) -> str:
    """Return the box around all boxes (x, y, width, height in pixels)."""
    try:
        sides = [tuple(map(int, box)) for box in boxes]  # type: ignore[attr-defined]
        left, top = min(x for x, _, _, _ in sides), min(y for _, y, _, _ in sides)
        right, bottom = max(x + w for x, _, w, _ in sides), max(y + h for _, y, _, h in sides)
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: {str(boxes)[:80]}; accepted: one or more boxes of x y width height"
        ) from None
    return f"{left},{top},{right - left},{bottom - top}"
