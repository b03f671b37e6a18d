"""ObjectNet (Barbu et al., NeurIPS 2019): 50,000 pictures of 313 household objects in odd positions.

Its licence forbids training on it. The published pictures have a red border, one pixel wide.
"""

from __future__ import annotations

from pathlib import Path

from guie.datasets.folder import pictures_below
from guie.datasets.known import Listing, json_content, known, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError


def objectnet(root: str = "objectnet-1.0", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return `images/<folder>/` by object, all as test; domain `object`.

    The label is the object's name after `mappings/folder_to_objectnet_label.json`.
    """
    return known("objectnet", root, data_root, listed, rules)


def listed(place: Path) -> Listing:
    """List the folders of `images/`."""
    images, path = required(place, "images", "mappings/folder_to_objectnet_label.json")
    names = json_content(path)
    if not isinstance(names, dict):
        raise UserError(f"{path}: {type(names).__name__}; accepted: an object, folder to label")
    below = list(pictures_below(images))
    if not below:
        raise UserError(f"{images}: no pictures; accepted: a folder for each object")
    folders = [file.split("/", 1)[0] for file in below]
    unknown = sorted(set(folders) - set(names))
    if unknown:
        raise UserError(
            f"{images / unknown[0]}: not in {path.name}; accepted: the {len(names)} folders named there"
        )
    return Listing(
        {
            "file": [f"images/{file}" for file in below],
            "label": [names[folder] for folder in folders],
            "domain": ["object"] * len(below),
            "split": ["test"] * len(below),
        }
    )
