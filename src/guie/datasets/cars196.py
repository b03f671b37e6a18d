"""Cars196, or Stanford Cars (Krause et al., 3dRR 2013): 16,185 pictures of 196 models of cars."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from guie.datasets.known import Listing, known, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError

_LAST_TRAIN_CLASS = 98
_BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
_SINGLE = "cars_annos.mat"
_TRAIN, _NAMES = "devkit/cars_train_annos.mat", "devkit/cars_meta.mat"
_TEST = ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")


def cars196(root: str = "cars196", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return classes 1-98 as train and 99-196 as test, the split of metric learning.

    Two layouts are read: `cars_annos.mat` with `car_ims/`; or `cars_train/`, `cars_test/`, `devkit/` and
    `cars_test_annos_withlabels.mat`, in `root` or in `devkit`. The domain is `cars`, `label_name` the
    model (AM General Hummer SUV 2000), `box` the car as x,y,w,h in pixels from 0.
    """
    return known("cars196", root, data_root, listed, rules)


def listed(place: Path) -> Listing:
    """List the one annotation file, or the two of the older layout."""
    if (place / _SINGLE).exists():
        return _listing(*_single(place))
    return _listing(*_devkit(place))


def _single(place: Path) -> tuple[list[str], np.ndarray, list[str]]:
    (path,) = required(place, _SINGLE)
    rows, names = _variable(path, "annotations", "relative_im_path"), _names(path)
    return [str(file) for file in rows["relative_im_path"]], rows, names


def _devkit(place: Path) -> tuple[list[str], np.ndarray, list[str]]:
    train, meta = required(place, _TRAIN, _NAMES)
    test = next((place / name for name in _TEST if (place / name).exists()), None)
    if test is None:
        raise UserError(
            f"{place / _TEST[0]}: missing; accepted: this file, as devkit/cars_test_annos.mat has no classes"
        )
    parts = {"cars_train": _variable(train, "annotations", "fname")}
    parts["cars_test"] = _variable(test, "annotations", "fname")
    files = [f"{folder}/{file}" for folder, rows in parts.items() for file in rows["fname"]]
    fields = [*_BOX, "class"]
    return files, np.concatenate([rows[fields] for rows in parts.values()]), _names(meta)


def _listing(files: list[str], rows: np.ndarray, names: list[str]) -> Listing:
    classes = rows["class"].astype(np.int64)
    if classes.min() < 1 or classes.max() > len(names):
        raise UserError(
            f"dataset cars196: class {classes.min()}..{classes.max()}; accepted: 1..{len(names)}, as named"
        )
    left, top, right, bottom = (rows[side].astype(np.int64) for side in _BOX)
    # MATLAB counts pixels from 1, and the second corner belongs to the box
    boxes = np.stack([left - 1, top - 1, right - left + 1, bottom - top + 1], axis=1)
    return Listing(
        {
            "file": files,
            "label": [str(number) for number in classes],
            "label_name": [names[number - 1] for number in classes],
            "box": [",".join(map(str, box)) for box in boxes.tolist()],
            "domain": ["cars"] * len(files),
            "split": ["train" if number <= _LAST_TRAIN_CLASS else "test" for number in classes],
        }
    )


def _names(path: Path) -> list[str]:
    return [str(name) for name in np.atleast_1d(_variable(path, "class_names"))]


def _variable(path: Path, name: str, file_field: str | None = None) -> Any:
    """Return one variable of a .mat file; with `file_field`, a struct array (N,) that has the fields."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, squeeze_me=True, variable_names=[name])
    except (MatReadError, ValueError, TypeError, OSError, NotImplementedError, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: cannot be read ({reason}); accepted: the original .mat file (download it again)"
        ) from None
    if name not in content:
        raise UserError(f"{path}: no variable {name!r}; accepted: the original .mat file")
    value = np.atleast_1d(content[name])
    wanted = {*_BOX, "class", file_field} if file_field else set()
    missing = sorted(wanted - set(value.dtype.names or ()))
    if missing:
        raise UserError(f"{path}: {name} has no {missing[0]!r}; accepted: the original .mat file")
    return value
