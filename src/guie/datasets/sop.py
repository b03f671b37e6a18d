"""Stanford Online Products (Song et al., CVPR 2016): 120,053 pictures of 22,634 items sold on eBay."""

from __future__ import annotations

from pathlib import Path

from guie.datasets.known import Listing, csv_columns, known, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules

_COLUMNS = ("image_id", "class_id", "super_class_id", "path")


def sop(root: str = "Stanford_Online_Products", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return `Ebay_train.txt` as train (classes 1-11318) and `Ebay_test.txt` as test (11319-22634).

    The domain is `packaged`; `super_label` is the item's kind (bicycle, cabinet, ...).
    """
    return known("sop", root, data_root, listed, rules)


def listed(place: Path) -> Listing:
    """List the two space separated files."""
    columns: dict[str, list[str]] = {"file": [], "label": [], "super_label": [], "domain": [], "split": []}
    for split, path in zip(
        ("train", "test"), required(place, "Ebay_train.txt", "Ebay_test.txt"), strict=True
    ):
        rows = csv_columns(path, *_COLUMNS, separator=" ")
        columns["file"] += rows["path"]
        columns["label"] += rows["class_id"]
        columns["super_label"] += [file.split("_final/")[0] for file in rows["path"]]
        columns["domain"] += ["packaged"] * len(rows["path"])
        columns["split"] += [split] * len(rows["path"])
    return Listing(columns)
