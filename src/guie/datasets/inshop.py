"""In-Shop Clothes Retrieval of DeepFashion (Liu et al., CVPR 2016): 52,712 pictures of 7,982 clothes."""

from __future__ import annotations

from pathlib import Path

from guie.datasets.known import Listing, known, numbered_lines, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError

_HEADER = ["image_name", "item_id", "evaluation_status"]
_SPLITS = {"train": "train", "query": "query", "gallery": "index"}


def inshop(root: str = "inshop", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return the official partition: train (3,997 items), query and gallery (3,985 other items, as index).

    The domain is `apparel`; `super_label` is the garment's kind (WOMEN/Dresses). The pictures are found in
    `img/` or in `Img/img/`.
    """
    return known("inshop", root, data_root, listed, rules)


def listed(place: Path) -> Listing:
    """List `Eval/list_eval_partition.txt`: a count, a header, then columns padded with blanks."""
    (path,) = required(place, "Eval/list_eval_partition.txt")
    rows = _partition(path)
    above = "Img/" if (place / "Img" / "img").is_dir() else ""
    return Listing(
        {
            "file": [above + file for file, _, _ in rows],
            "label": [item for _, item, _ in rows],
            "super_label": ["/".join(file.split("/")[1:3]) for file, _, _ in rows],
            "domain": ["apparel"] * len(rows),
            "split": [_SPLITS[status] for _, _, status in rows],
        }
    )


def _partition(path: Path) -> list[tuple[str, str, str]]:
    lines = [(number, line.split()) for number, line in numbered_lines(path)]
    if len(lines) < 2 or not lines[0][1][0].isdecimal() or lines[1][1] != _HEADER:
        raise UserError(f"{path}: line 1-2; accepted: the number of pictures, then {' '.join(_HEADER)}")
    for number, cells in lines[2:]:
        if len(cells) != 3 or cells[2] not in _SPLITS:
            raise UserError(
                f"{path}: line {number}: {' '.join(cells)!r}; "
                f"accepted: picture, item and one of {', '.join(_SPLITS)}"
            )
    stated, found = int(lines[0][1][0]), len(lines) - 2
    if stated != found:
        raise UserError(
            f"{path}: line 1 says {stated} pictures, {found} are listed; accepted: the complete file "
            "(download it again)"
        )
    return [(cells[0], cells[1], cells[2]) for _, cells in lines[2:]]
