"""DISC21 (Douze et al. 2021), of the Image Similarity Challenge: which picture is a copy of which."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from guie.datasets.flat import picture_names
from guie.datasets.known import Listing, known, numbered_lines, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError

_TRAINING = ("training_images", "train_images")
_HEADER = "query_id,reference_id"


def disc21(
    root: str = "disc21",
    ground_truth: str = "public_ground_truth.csv",
    references: str | None = None,
    rules: Rules = None,
    *,
    data_root: str,
) -> Manifest:
    """Return training pictures (train), the queries of `ground_truth` (query) and the references (index).

    Folders: `query_images/Q00000.jpg`, `reference_images/R000000.jpg` and, unless missing,
    `training_images/T000000.jpg` (or `train_images/`). A query that the ground truth does not list is left
    out: nobody knows whether it is a copy. `references`: a file of reference ids, one a line, keeps those.

    The protocol is `truth`, one pair for each query with a reference; labels follow it: a pair shares the
    reference's id, a query without a reference and a training picture have their own, all other references
    are distractors. The domain is `copy detection`.
    """
    found = partial(listed, ground_truth=ground_truth, references=references)
    return known("disc21", root, data_root, found, rules)


def listed(
    place: Path, ground_truth: str = "public_ground_truth.csv", references: str | None = None
) -> Listing:
    """List the folders and the ground truth (query_id,reference_id; an empty reference means none)."""
    truth_path, _, _ = required(place, ground_truth, "query_images", "reference_images")
    answers = _answers(truth_path)
    training = next((name for name in _TRAINING if (place / name).is_dir()), None)
    trained = _ids(place / training) if training else {}
    asked, kept = _ids(place / "query_images"), _ids(place / "reference_images")
    if references:
        (list_path,) = required(place, references)
        wanted = [line.strip() for _, line in numbered_lines(list_path)]
        kept = {key: kept[key] for key in _present(wanted, kept, list_path)}
    _present(answers, asked, truth_path)
    matched = set(_present([item for item in answers.values() if item], kept, truth_path))
    places = (f"{training}/", "query_images/", "reference_images/")
    groups = [trained, {key: asked[key] for key in answers}, kept]
    labels = [*trained, *(answers[key] or key for key in answers)]
    labels += [key if key in matched else "distractor" for key in kept]
    columns = {
        "file": [
            above + name for above, names in zip(places, groups, strict=True) for name in names.values()
        ],
        "label": labels,
        "domain": ["copy detection"] * len(labels),
        "split": ["train"] * len(trained) + ["query"] * len(answers) + ["index"] * len(kept),
    }
    pairs = [(places[1] + asked[key], places[2] + kept[item]) for key, item in answers.items() if item]
    truth = {
        "query": [query for query, _ in pairs],
        "item": [item for _, item in pairs],
        "relation": ["ok"] * len(pairs),
        "usage": ["public"] * len(pairs),
    }
    unknown = len(asked) - len(answers)
    notes = [f"{unknown} pictures of query_images are not in {ground_truth}: left out"] if unknown else []
    return Listing(columns, truth, notes)


def _ids(folder: Path) -> dict[str, str]:
    """Return {id: file name} of a folder of pictures, in order."""
    return {name.rsplit(".", 1)[0]: name for name in picture_names(folder)}


def _present(keys, names: dict[str, str], path: Path) -> list[str]:
    """Return `keys` as a list; UserError where one has no picture."""
    missing = [key for key in keys if key not in names]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} ids without a picture (such as {missing[0]}); "
            "accepted: the complete download, all archives unpacked"
        )
    return list(keys)


def _answers(path: Path) -> dict[str, str]:
    """Return {query id: reference id or ''}; UserError naming the line that does not fit."""
    lines = [(number, line.strip()) for number, line in numbered_lines(path)]
    if not lines or lines[0][1] != _HEADER:
        raise UserError(f"{path}: line 1: {lines[0][1] if lines else ''!r}; accepted: {_HEADER}")
    answers: dict[str, str] = {}
    for number, line in lines[1:]:
        found = re.fullmatch(r"(Q\d+),(R\d+)?", line)
        if not found or found[1] in answers:
            accepted = "each query once" if found else "Q00000,R000000 or Q00000,"
            raise UserError(f"{path}: line {number}: {line!r}; accepted: {accepted}")
        answers[found[1]] = found[2] or ""
    return answers
