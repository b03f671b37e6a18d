"""Revisited Oxford and Paris (Radenovic et al., CVPR 2018): 70 landmark queries each, graded by hand."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from guie.datasets.folder import pictures_below
from guie.datasets.known import Listing, known, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.datasets.unpickled import unpickled
from guie.errors import UserError

_GRADES = ("easy", "hard", "junk")


def roxford5k(root: str = "roxford5k", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return 70 queries and 4,993 pictures of the index, by `gnd_roxford5k.pkl`; see `listed`."""
    return known("roxford5k", root, data_root, partial(listed, ground_truth="gnd_roxford5k.pkl"), rules)


def rparis6k(root: str = "rparis6k", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return 70 queries and 6,322 pictures of the index, by `gnd_rparis6k.pkl`; see `listed`."""
    return known("rparis6k", root, data_root, partial(listed, ground_truth="gnd_rparis6k.pkl"), rules)


def r1m(root: str = "revisitop1m", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return the protocol's million distractors, every picture in the folders of `root`, all as index.

    They are searched with another set: `distractors=r1m`.
    """
    return known("r1m", root, data_root, listed_distractors, rules)


def listed_distractors(place: Path) -> Listing:
    """List the pictures below `place`, at least one folder deep; the label is `distractor`."""
    files = list(pictures_below(place))
    if not files:
        raise UserError(f"{place}: no pictures in its folders; accepted: revisitop1m, unpacked")
    constants = {"label": "distractor", "domain": "landmark", "split": "index"}
    return Listing({"file": files} | {name: [value] * len(files) for name, value in constants.items()})


def listed(place: Path, ground_truth: str) -> Listing:
    """List `jpg/<name>.jpg` by the pickle: keys imlist, qimlist and gnd (bbx, easy, hard, junk per query).

    The protocol is `truth`: relations easy, hard and junk for each query. The label only approximates it:
    the first query that shares an easy picture; `distractor` for what no query names as easy or hard.
    `box` is what the protocol crops from a query, x,y,w,h in pixels; empty for the index.
    """
    path, _ = required(place, ground_truth, "jpg")
    queries, index, graded = _content(path)
    truth: dict[str, list[str]] = {"query": [], "item": [], "relation": [], "usage": []}
    for query, grades in zip(queries, graded, strict=True):
        for grade in _GRADES:
            truth["query"] += [_file(query)] * len(grades[grade])
            truth["item"] += [_file(index[position]) for position in grades[grade]]
            truth["relation"] += [grade] * len(grades[grade])
            truth["usage"] += ["public"] * len(grades[grade])
    asked, answered = _labels(queries, graded)
    columns: dict[str, list[Any]] = {
        "file": [_file(name) for name in [*queries, *index]],
        "label": asked + [answered.get(position, "distractor") for position in range(len(index))],
        "domain": ["landmark"] * (len(queries) + len(index)),
        "split": ["query"] * len(queries) + ["index"] * len(index),
        "box": [_box(grades["bbx"]) for grades in graded] + [None] * len(index),
    }
    return Listing(columns, truth)


def _labels(queries: Sequence[str], graded: Sequence[Mapping]) -> tuple[list[str], dict[int, str]]:
    """Return the queries' labels and those of the positions that they name as easy or hard."""
    asked: list[str] = []
    answered: dict[int, str] = {}
    for query, grades in zip(queries, graded, strict=True):
        label = next((answered[i] for i in grades["easy"] if i in answered), query)
        asked.append(label)
        for position in [*grades["easy"], *grades["hard"]]:
            answered.setdefault(position, label)
    return asked, answered


def _content(path: Path) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    content = unpickled(path)
    if not isinstance(content, dict) or not {"imlist", "qimlist", "gnd"} <= content.keys():
        raise UserError(f"{path}: no imlist, qimlist and gnd; accepted: the file of the revisited protocol")
    queries, index = ([str(name) for name in content[key]] for key in ("qimlist", "imlist"))
    if len(queries) != len(content["gnd"]):
        raise UserError(
            f"{path}: {len(queries)} queries, but {len(content['gnd'])} in gnd; accepted: one per query"
        )
    graded = [
        _grades(path, query, given, len(index)) for query, given in zip(queries, content["gnd"], strict=True)
    ]
    return queries, index, graded


def _grades(path: Path, query: str, given: Any, num_index: int) -> dict[str, Any]:
    """Return box (4 floats) and positions in the index (int) of one query, checked."""
    try:
        made: dict[str, Any] = {grade: [operator.index(i) for i in given[grade]] for grade in _GRADES}
        made["bbx"] = [float(side) for side in given["bbx"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{path}: gnd of query {query}: {type(error).__name__} {error}; "
            "accepted: bbx, easy, hard and junk (the revisited protocol, not the older one)"
        ) from None
    outside = [i for grade in _GRADES for i in made[grade] if not 0 <= i < num_index]
    if outside or len(made["bbx"]) != 4:
        wrong = f"position {outside[0]}" if outside else f"{len(made['bbx'])} sides of a box"
        raise UserError(
            f"{path}: gnd of query {query}: {wrong}; accepted: positions 0..{num_index - 1}, 4 sides"
        )
    return made


def _file(name: str) -> str:
    return f"jpg/{name}.jpg"


def _box(corners: Sequence[float]) -> str:
    left, top, right, bottom = corners
    return ",".join(f"{side:g}" for side in (left, top, right - left, bottom - top))
