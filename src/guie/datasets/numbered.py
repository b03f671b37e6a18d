"""Retrieval sets of one form: the number in a picture's name, divided, is the group that it belongs to."""

from __future__ import annotations

import os
from pathlib import Path

from guie.datasets.flat import number_in, picture_names
from guie.datasets.folder import PICTURES
from guie.datasets.known import Listing, known
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError

_SIX_DIGITS = (r"(\d{6})\.\w+", "100001.jpg")


def holidays(root: str = "holidays", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return INRIA Holidays (Jegou et al., ECCV 2008): 500 queries, 991 pictures in the index.

    The group is the number // 100; its first picture (..00) is the query. Pictures are in `jpg/`, where
    both archives unpack, or in `root` itself. The domain is `nature`.
    """
    return known("holidays", root, data_root, _holidays, rules)


def ukbench(root: str = "ukbench", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return UKBench (Nister and Stewenius, CVPR 2006): 2,550 objects of four pictures, all split test.

    The group is the number // 4 of `ukbench00000.jpg`, in `full/` or in `root` itself. The domain is
    `object`. The authors' score counts hits among the first four, the query included.
    """
    return known("ukbench", root, data_root, _ukbench, rules)


def copydays(root: str = "copydays", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return INRIA Copydays (Douze et al., CIVR 2009): 157 originals, and copies of them as queries.

    The group is the number // 100 * 100. `original/` is the index; every other folder holds attacked
    copies: `strong/`, `jpegqual/<quality>/`, `crops/<percent>/`, any of which may be missing; a leading
    `copydays_` in a folder's name does not matter. The extra column `group` says which attack a row is
    (strong, jpegqual/3 ...). The domain is `copy detection`.
    """
    return known("copydays", root, data_root, _copydays, rules)


def _holidays(place: Path) -> Listing:
    above = "jpg/" if (place / "jpg").is_dir() else ""
    names = picture_names(place / above)
    numbers = [number_in(place / above, name, *_SIX_DIGITS) for name in names]
    return Listing(
        {
            "file": [above + name for name in names],
            "label": [str(number // 100) for number in numbers],
            "domain": ["nature"] * len(names),
            "split": ["index" if number % 100 else "query" for number in numbers],
        }
    )


def _ukbench(place: Path) -> Listing:
    above = "full/" if (place / "full").is_dir() else ""
    names = picture_names(place / above)
    numbers = [number_in(place / above, name, r"ukbench(\d{5})\.\w+", "ukbench00000.jpg") for name in names]
    return Listing(
        {
            "file": [above + name for name in names],
            "label": [str(number // 4) for number in numbers],
            "domain": ["object"] * len(names),
            "split": ["test"] * len(names),
        }
    )


def _copydays(place: Path) -> Listing:
    columns: dict[str, list[str]] = {"file": [], "label": [], "domain": [], "split": [], "group": []}
    for folder in _folders_with_pictures(place):
        attack = folder.relative_to(place).as_posix().removeprefix("copydays_")
        names = picture_names(folder)
        columns["file"] += [(folder.relative_to(place) / name).as_posix() for name in names]
        columns["label"] += [str(number_in(folder, name, *_SIX_DIGITS) // 100 * 100) for name in names]
        columns["domain"] += ["copy detection"] * len(names)
        columns["split"] += ["index" if attack == "original" else "query"] * len(names)
        columns["group"] += [attack] * len(names)
    for attack, wanted in (("original", "index"), ("an attack, such as strong", "query")):
        if wanted not in columns["split"]:
            raise UserError(
                f"{place}: no folder {attack}; accepted: original/ and one or more of strong/, "
                "jpegqual/<quality>/, crops/<percent>/"
            )
    return Listing(columns)


def _folders_with_pictures(place: Path) -> list[Path]:
    folders = []
    for parent, below, names in os.walk(place):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if Path(parent) != place and any(name.lower().endswith(PICTURES) for name in names):
            folders.append(Path(parent))
    return folders
