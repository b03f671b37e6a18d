"""Food-101 (Bossard et al., ECCV 2014): 101,000 pictures of 101 dishes, 750 and 250 of each."""

from __future__ import annotations

from pathlib import Path

from guie.datasets.known import Listing, known, numbered_lines, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError


def food101(root: str = "food-101", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return `meta/train.txt` as train and `meta/test.txt` as test: the same 101 dishes, domain `food`."""
    return known("food101", root, data_root, listed, rules)


def listed(place: Path) -> Listing:
    """List the two files, whose lines are `dish/number` without an extension."""
    columns: dict[str, list[str]] = {"file": [], "label": [], "domain": [], "split": []}
    for split, path in zip(
        ("train", "test"), required(place, "meta/train.txt", "meta/test.txt"), strict=True
    ):
        for number, line in numbered_lines(path):
            dish, slash, name = line.strip().partition("/")
            if not (dish and slash and name):
                raise UserError(f"{path}: line {number}: {line!r}; accepted: dish/number")
            columns["file"].append(f"images/{dish}/{name}.jpg")
            columns["label"].append(dish)
            columns["domain"].append("food")
            columns["split"].append(split)
    return Listing(columns)
