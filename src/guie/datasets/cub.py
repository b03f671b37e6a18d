"""CUB-200-2011 (Wah et al. 2011): 11,788 pictures of 200 kinds of birds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from guie.datasets.known import Listing, known, numbered_lines, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError

_LAST_TRAIN_CLASS = 100
_FILES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")


def cub(
    root: str = "CUB_200_2011",
    classes: Literal["unseen", "seen"] = "unseen",
    rules: Rules = None,
    *,
    data_root: str,
) -> Manifest:
    """Return the pictures of `images.txt`; `unseen`: classes 1-100 are train, 101-200 are test.

    `seen` takes `train_test_split.txt` instead, where both parts have all classes. The domain is `bird`,
    `label_name` the folder (001.Black_footed_Albatross), `box` the bird as x,y,w,h in pixels.
    """

    def chosen(place: Path) -> Listing:
        return listed(place, classes)

    return known("cub", root, data_root, chosen, rules)


def listed(place: Path, classes: str = "unseen") -> Listing:
    """List the four files, which are tied by the picture's id in front of each line."""
    images, labels, parts, boxes = required(place, *_FILES)
    files = _by_id(images, 1)
    label_of, part_of, box_of = (
        _same_ids(path, files, images, count) for path, count in ((labels, 1), (parts, 1), (boxes, 4))
    )
    train = {
        key: part_of[key][0] == "1" if classes == "seen" else int(label_of[key][0]) <= _LAST_TRAIN_CLASS
        for key in files
    }
    return Listing(
        {
            "file": [f"images/{name}" for (name,) in files.values()],
            "label": [label_of[key][0] for key in files],
            "label_name": [name.split("/")[0] for (name,) in files.values()],
            "box": [",".join(f"{float(side):g}" for side in box_of[key]) for key in files],
            "domain": ["bird"] * len(files),
            "split": ["train" if train[key] else "test" for key in files],
        }
    )


def _by_id(path: Path, count: int) -> dict[str, list[str]]:
    """Return the `count` values behind each id; numbers except in the list of files."""
    rows: dict[str, list[str]] = {}
    for number, line in numbered_lines(path):
        key, *values = line.split()
        if len(values) != count or not (path.name == _FILES[0] or all(map(_is_number, values))):
            raise UserError(
                f"{path}: line {number}: {line.strip()!r}; accepted: an id and {count} "
                f"{'file name' if path.name == _FILES[0] else 'number(s)'}"
            )
        if key in rows:
            raise UserError(f"{path}: line {number}: id {key} for the second time; accepted: each id once")
        rows[key] = values
    return rows


def _same_ids(path: Path, files: dict[str, list[str]], images: Path, count: int) -> dict[str, list[str]]:
    rows = _by_id(path, count)
    different = rows.keys() ^ files.keys()
    if different:
        raise UserError(
            f"{path}: {len(different)} ids are only here or only in {images.name} (such as "
            f"{min(different)}); accepted: the same ids in both (download it again)"
        )
    return rows


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
