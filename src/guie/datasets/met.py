"""The Met data set (Ypsilantis et al., NeurIPS 2021): 224,408 exhibits of the Metropolitan Museum of Art.

Its queries are photographs by visitors (Met), of other art and of no art at all.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from guie.datasets.known import Listing, json_content, known, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError

DISTRACTOR = "distractor"


def met(
    root: str = "met", mini: bool = False, gallery: bool = False, rules: Rules = None, *, data_root: str
) -> Manifest:
    """Return the exhibits as train, `valset.json` as val and `testset.json` as query; domain `artwork`.

    With `gallery` the exhibits are split index, to be searched by the queries. With `mini` they are those of
    `mini_MET_database.json`. Queries that show no exhibit are labelled `distractor`; `group` is the picture's
    folder (MET, test_met, test_other, test_noart).
    """
    return known("met", root, data_root, partial(listed, mini=mini, gallery=gallery), rules)


def listed(place: Path, mini: bool = False, gallery: bool = False) -> Listing:
    """List the three JSON files, which lie in the folder itself or in `ground_truth/`."""
    at = place / "ground_truth" if (place / "ground_truth").is_dir() else place
    database = "mini_MET_database.json" if mini else "MET_database.json"
    above = "images/" if (place / "images").is_dir() else ""
    columns: dict[str, list[str]] = {"file": [], "label": [], "domain": [], "split": [], "group": []}
    parts = (("index" if gallery else "train", "id"), ("val", "MET_id"), ("query", "MET_id"))
    for (split, key), path in zip(parts, required(at, database, "valset.json", "testset.json"), strict=True):
        rows = _rows(path, key, optional=key == "MET_id")
        columns["file"] += [above + file for file, _ in rows]
        columns["label"] += [label for _, label in rows]
        columns["domain"] += ["artwork"] * len(rows)
        columns["split"] += [split] * len(rows)
        columns["group"] += [file.split("/", 1)[0] for file, _ in rows]
    return Listing(columns)


def _rows(path: Path, key: str, optional: bool) -> list[tuple[str, str]]:
    """Return (path, label) of a list of objects; an absent label, or -1, is a distractor if `optional`."""
    content = json_content(path)
    if not isinstance(content, list):
        raise UserError(f"{path}: {type(content).__name__}; accepted: a list of objects with path and {key}")
    return [_row(path, number, entry, key, optional) for number, entry in enumerate(content, start=1)]


def _row(path: Path, number: int, entry: Any, key: str, optional: bool) -> tuple[str, str]:
    if not isinstance(entry, dict) or "path" not in entry or (key not in entry and not optional):
        raise UserError(f"{path}: entry {number} is {entry!r}; accepted: an object with path and {key}")
    label = str(entry.get(key, -1))
    return str(entry["path"]), DISTRACTOR if optional and label == "-1" else label
