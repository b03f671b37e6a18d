"""The 130k pictures that rhtsingh gathered for the Google Universal Image Embedding challenge of 2022."""

from __future__ import annotations

from pathlib import Path

from guie.datasets.folder import pictures_below
from guie.datasets.known import Listing, csv_columns, known, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError

# Class to domain. The order is a contract: models that choose views by class know the classes by number.
CLASSES = {
    "apparel": "apparel",
    "artwork": "artwork",
    "cars": "cars",
    "dishes": "dishes",
    "furniture": "furniture",
    "illustrations": "illustration",
    "landmark": "landmark",
    "meme": "meme",
    "packaged": "packaged",
    "storefronts": "storefront",
    "toys": "toy",
}


def guie130k(root: str = "130k", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return `train.csv` (label, image_name), else the folders, by class, all as train.

    Class ids are 0..10 in the order of CLASSES, which is alphabetical; so each class must be there.
    """
    return known("guie130k", root, data_root, listed, rules)


def listed(place: Path) -> Listing:
    """List `train.csv`, or what the eleven folders hold."""
    path = place / "train.csv"
    files, labels = _from_csv(path) if path.exists() else _from_folders(place)
    absent = [name for name in CLASSES if name not in set(labels)]
    if absent:
        source = path if path.exists() else place / absent[0]
        raise UserError(f"{source}: no picture of {absent[0]}; accepted: pictures of all 11 classes")
    return Listing(
        {
            "file": files,
            "label": labels,
            "domain": [CLASSES[label] for label in labels],
            "split": ["train"] * len(files),
        }
    )


def _from_csv(path: Path) -> tuple[list[str], list[str]]:
    rows = csv_columns(path, "label", "image_name")
    for row, label in enumerate(rows["label"]):
        if label not in CLASSES:
            raise UserError(f"{path}: line {row + 2}: label {label!r}; accepted: {', '.join(CLASSES)}")
    pairs = zip(rows["label"], rows["image_name"], strict=True)
    files = [name if name.startswith(f"{label}/") else f"{label}/{name}" for label, name in pairs]
    return files, rows["label"]


def _from_folders(place: Path) -> tuple[list[str], list[str]]:
    required(place, *CLASSES)
    files = list(pictures_below(place))
    labels = [file.split("/", 1)[0] for file in files]
    unknown = sorted(set(labels) - set(CLASSES))
    if unknown:
        raise UserError(f"{place / unknown[0]}: unknown class; accepted: {', '.join(CLASSES)}")
    return files, labels
