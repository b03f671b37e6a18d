"""From saved embeddings to predictions in a file: what guie-recognise does once it has read them.

Rows of split query ask, those of split index answer; where there is no index, those of split train.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guie.durable import replace_file
from guie.errors import UserError
from guie.metrics.groups import IGNORED
from guie.protocols.recognition import Recognition, judge, usage_of
from guie.recognise.pipeline import Predictions, Recogniser, View
from guie.types import Embeddings, Side

FILE = "predictions.csv"
COLUMNS = ("file", "label", "score")

Picture = Callable[[str], bytes]


def views_of(
    parts: Mapping[str, Embeddings],
    weights: Mapping[str, float] | None = None,
    nothing: Mapping[str, Embeddings] | None = None,
    picture: Picture | None = None,
) -> dict[str, View]:
    """Return what each model sees, by name; UserError where it asks nothing, or has no answers.

    `weights` of the models' lists, 1 where none is given; `nothing`: by model, pictures of nothing known.
    """
    weights, nothing = weights or {}, nothing or {}
    for key, given in (("weights", weights), ("nothing", nothing)):
        for name in given:
            if name not in parts:
                told = f"no such model among the embeddings; accepted: {', '.join(parts)}"
                raise UserError(f"{key}.{name}: {told}")
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise UserError(f"weights.{name}: {weight}; accepted: a number of 0 or more")
    for name, part in nothing.items():
        if part.space_id != parts[name].space_id:
            told = f"{name} is of space {part.space_id}; accepted: {parts[name].space_id}"
            raise UserError(f"nothing: {told} (embed again with one model)")
    return {
        name: View(
            _side(name, part, ("query",), picture),
            _side(name, part, ("index", "train"), picture, labels=True),
            Side(nothing[name].vectors, nothing[name].files) if name in nothing else None,
            float(weights.get(name, 1.0)),
            space_id=part.space_id,
        )
        for name, part in parts.items()
    }


def _side(
    name: str, part: Embeddings, splits: tuple[str, ...], picture: Picture | None, *, labels: bool = False
) -> Side:
    """Return the rows of the first of `splits` that there is."""
    found = np.asarray(part.splits, dtype=str)
    rows = next((np.flatnonzero(found == split) for split in splits if (found == split).any()), None)
    if rows is None:
        present = ", ".join(sorted(set(found.tolist()))) or "no rows"
        raise UserError(f"{name}: splits {present}; accepted: {' or '.join(splits)} among them")
    names = np.asarray(part.labels, dtype=object)[rows] if labels else None
    return Side(part.vectors[rows], np.asarray(part.files, dtype=object)[rows], names, picture)


def truth_of(part: Embeddings) -> list[list[str]]:
    """Return the labels of each row that asks, those of `landmarks` where there are; of a distractor none."""
    rows = np.flatnonzero(np.asarray(part.splits, dtype=str) == "query")
    labels = [[] if label == Recognition.distractor else [label] for label in part.labels[rows]]
    several = part.further.get("landmarks")
    if several is None:
        return labels
    return [text.split() if own else [] for own, text in zip(labels, several[rows], strict=True)]


def predicted(recogniser: Recogniser, views: Mapping[str, View], out: Path) -> Predictions:
    """Return the predictions, and write them to `out`/predictions.csv: file, label ("" for none), score.

    Where the gallery's distractors win there is none.
    """
    found = recogniser.predict(views)
    found = found._replace(
        labels=np.where(found.labels == Recognition.distractor, "", found.labels).astype(object)
    )
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows(zip(found.ids, found.labels, map(str, found.scores.tolist()), strict=True))
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / FILE, text.getvalue().encode())
    return found


def scored(found: Predictions, part: Embeddings) -> dict[str, Any]:
    """Return GAP, GAP- and ACC as protocol `recognition` has them, of the rows that ask; ignored ones apart.

    Empty where none of them shows anything known.
    """
    rows = np.flatnonzero(np.asarray(part.splits, dtype=str) == "query")
    usage = usage_of(part, rows)
    counts = usage != IGNORED
    judged = judge(part, rows[counts], found.labels[counts], found.scores[counts])
    return judged.numbers() | judged.by_usage(usage[counts]) if judged.known.any() else {}
