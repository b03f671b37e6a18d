"""A folder per class, with or without a folder per split above."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from guie.datasets.manifest import SPLITS, Manifest, from_columns
from guie.datasets.rules import Rules, apply
from guie.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def folder(
    root: str,
    domain: str = "",
    split: Literal["auto", "train", "val", "test", "query", "index"] = "auto",
    test_classes: float = 0.2,
    seed: int = 0,
    rules: Rules = None,
    *,
    data_root: str,
) -> Manifest:
    """Return the pictures of `root/<class>/...`, the class being the first folder's name, by `rules`.

    `split=auto`: where every folder of `root` is named after a split (train, test ...), the class is one
    level below; else a share `test_classes` of the classes is split `test` and never trained on, chosen
    by `seed` and name alone. Another `split` is given to every row. A relative `root` is below `data_root`.

    Raises:
        UserError: no such folder, no picture in it, or a share outside 0..1.

    """
    place = Path(data_root).expanduser() / Path(root).expanduser()
    if not place.is_dir():
        raise UserError(
            f"dataset.folder.root: no folder {place}; accepted: a folder with one folder per class"
        )
    if not 0 <= test_classes < 1:
        raise UserError(f"dataset.folder.test_classes: {test_classes}; accepted: a share from 0 to below 1")
    files = list(pictures_below(place))
    if not files:
        raise UserError(
            f"dataset.folder.root: no picture in {place}/<class>/; accepted: {', '.join(PICTURES)}"
        )
    with_splits = split == "auto" and {file.split("/", 1)[0] for file in files} <= set(SPLITS)
    labels = [file.split("/", 2)[int(with_splits)] for file in files]
    if with_splits:
        splits = [file.split("/", 1)[0] for file in files]
    elif split == "auto":
        unseen = held_out(labels, test_classes, seed)
        splits = ["test" if label in unseen else "train" for label in labels]
    else:
        splits = [split] * len(files)
    columns = {"file": files, "label": labels, "domain": [domain] * len(files), "split": splits}
    return apply(rules, from_columns(place.name, place, columns))


def held_out(labels: Iterable[str], share: float, seed: int) -> set[str]:
    """Return the given share of the distinct labels, chosen by a hash of seed and label.

    A label's fate hardly changes when other labels come or go.
    """

    def rank(label: str) -> bytes:
        return hashlib.blake2b(f"{seed}/{label}".encode(), digest_size=8).digest()

    names = sorted(set(labels), key=rank)
    return set(names[: round(share * len(names))])


def pictures_below(place: Path) -> Iterable[str]:
    """Yield paths relative to `place`, at least one folder deep, in a stable order."""
    for parent, folders, names in os.walk(place, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if Path(parent) == place:
            continue
        below = Path(parent).relative_to(place).as_posix()
        yield from (f"{below}/{name}" for name in sorted(names) if name.lower().endswith(PICTURES))
