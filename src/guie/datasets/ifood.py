"""iFood 2019 (Kaur et al., FGVC6 at CVPR 2019): 251 dishes; only the training labels are unverified."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from guie.datasets.known import Listing, csv_columns, known, numbered_lines, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError


def ifood(root: str = "ifood", verified: bool = False, rules: Rules = None, *, data_root: str) -> Manifest:
    """Return `train_labels.csv` as train and `val_labels.csv` as val; domain `food`.

    With `verified` only the validation pictures, whose labels people checked, as train. Labels are the class
    numbers 0..250, `name` is the dish after `class_list.txt`. The test set has no published labels.
    """
    return known("ifood", root, data_root, partial(listed, verified=verified), rules)


def listed(place: Path, verified: bool = False) -> Listing:
    """List the csv files, whose pictures are in `train_set/` and `val_set/`."""
    names = _names(required(place, "class_list.txt")[0])
    parts = [("val", "train")] if verified else [("train", "train"), ("val", "val")]
    columns: dict[str, list[str]] = {"file": [], "label": [], "domain": [], "split": [], "name": []}
    for part, split in parts:
        (path,) = required(place, f"{part}_labels.csv")
        rows = csv_columns(path, "img_name", "label")
        for row, label in enumerate(rows["label"]):
            if label not in names:
                raise UserError(
                    f"{path}: line {row + 2}: label {label!r}; accepted: a class of class_list.txt"
                )
        columns["file"] += [f"{part}_set/{name}" for name in rows["img_name"]]
        columns["label"] += rows["label"]
        columns["domain"] += ["food"] * len(rows["label"])
        columns["split"] += [split] * len(rows["label"])
        columns["name"] += [names[label] for label in rows["label"]]
    return Listing(columns)


def _names(path: Path) -> dict[str, str]:
    """Return class names by number from lines like `0 macaron`."""
    names: dict[str, str] = {}
    for number, line in numbered_lines(path):
        label, _, name = line.strip().partition(" ")
        if not label.isdecimal() or label in names:
            raise UserError(f"{path}: line {number}: {line!r}; accepted: a new class number and its name")
        names[label] = name.strip()
    return names
