"""GPR1200 (Schall et al., MMM 2022): 12,000 pictures, ten of each of 1,200 categories, for testing alone."""

from __future__ import annotations

from pathlib import Path

from guie.datasets.flat import number_in, picture_names
from guie.datasets.known import Listing, known
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError

# Six parts of 200 categories each, in the order of the category numbers: Google Landmarks v2, iNaturalist,
# ImageNet-Sketch, INSTRE, Stanford Online Products and IMDB faces.
_PARTS = ("landmark", "nature", "sketch", "instance", "packaged", "face")
_PART_CATEGORIES = 200


def gpr1200(root: str = "GPR1200", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return `images/<category>_<name>.jpg`, categories 0-1199, all split test, in the authors' order.

    The domain is the part that a category's number falls in.
    """
    return known("gpr1200", root, data_root, listed, rules)


def listed(place: Path) -> Listing:
    """List the flat folder `images`."""
    folder = place / "images"
    rows = [
        (number_in(folder, name, r"(\d+)_.+", "0_1306.jpg"), f"images/{name}")
        for name in picture_names(folder)
    ]
    rows.sort()
    last = len(_PARTS) * _PART_CATEGORIES - 1
    if rows[-1][0] > last:
        raise UserError(f"{place / rows[-1][1]}: category {rows[-1][0]}; accepted: categories 0 to {last}")
    return Listing(
        {
            "file": [file for _, file in rows],
            "label": [str(category) for category, _ in rows],
            "domain": [_PARTS[category // _PART_CATEGORIES] for category, _ in rows],
            "split": ["test"] * len(rows),
        }
    )
