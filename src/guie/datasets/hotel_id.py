"""Hotel-ID (Kamath et al., FGVC8 at CVPR 2021; FGVC9 in 2022): rooms of hotels, taken by travellers."""

from __future__ import annotations

from pathlib import Path

from guie.datasets.folder import pictures_below
from guie.datasets.known import Listing, csv_columns, known, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError


def hotel_id(root: str = "hotel_id", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return `train_images/` by hotel, all as train; domain `hotel`.

    In the edition of 2021 the folders are chains of hotels: where there is a `train.csv` (image, chain,
    hotel_id), it gives the hotel, and `super_label` is the chain. In 2022 the folders are the hotels.
    """
    return known("hotel_id", root, data_root, listed, rules)


def listed(place: Path) -> Listing:
    """List `train.csv`, else the folders of `train_images/`."""
    required(place, "train_images")
    columns = _from_csv(place / "train.csv") if (place / "train.csv").exists() else _from_folders(place)
    count = len(columns["file"])
    return Listing({**columns, "domain": ["hotel"] * count, "split": ["train"] * count})


def _from_csv(path: Path) -> dict[str, list[str]]:
    rows = csv_columns(path, "image", "chain", "hotel_id")
    files = [
        f"train_images/{chain}/{image}" for chain, image in zip(rows["chain"], rows["image"], strict=True)
    ]
    return {"file": files, "label": rows["hotel_id"], "super_label": rows["chain"]}


def _from_folders(place: Path) -> dict[str, list[str]]:
    below = list(pictures_below(place / "train_images"))
    if not below:
        raise UserError(f"{place / 'train_images'}: no pictures; accepted: a folder for each hotel")
    return {"file": [f"train_images/{file}" for file in below], "label": [f.split("/", 1)[0] for f in below]}
