"""Google Landmark files: recognition `id,landmarks` ("label score", or nothing), retrieval `id,images`.

Of retrieval each query has at most 100 images, best first, separated by spaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from guie.errors import UserError
from guie.recognise.pipeline import Predictions
from guie.submit.tables import check_ids, number, once, read_rows, stem, stems, write_rows, wrong

RECOGNITION, RETRIEVAL = ("id", "landmarks"), ("id", "images")
MOST_IMAGES = 100


def write_recognition(path: Path, found: Predictions, wanted: Sequence[str] | None = None) -> Path:
    """Write one row per query, or per id `wanted`, without an answer where there is none."""
    ids = stems(found.ids, "predictions")
    answers = {
        query: f"{label} {score:.9g}" if label != "" else ""
        for query, label, score in zip(ids, found.labels.tolist(), found.scores.tolist(), strict=True)
    }
    return write_rows(path, RECOGNITION, _by_id(answers, wanted))


def check_recognition(path: Path, wanted: Sequence[str] | None = None) -> str:
    """Return a line that says what the file holds; UserError naming line and value of what is wrong."""
    seen: dict[str, int] = {}
    answered = 0
    for line, (query, landmarks) in read_rows(path, RECOGNITION):
        once(path, line, seen, query, "id")
        parts = landmarks.split()
        if parts and (len(parts) != 2 or not parts[0].isdecimal()):
            raise wrong(path, line, f"landmarks {landmarks!r}", "'<landmark number> <score>', or nothing")
        if parts:
            number(path, line, parts[1], "score")
        answered += bool(parts)
    check_ids(path, seen, wanted)
    return f"{len(seen):,} queries, {answered:,} with a landmark"


def write_retrieval(
    path: Path, results: Mapping[str, Sequence[str]], wanted: Sequence[str] | None = None
) -> Path:
    """Write the images of each query, by file, best first; an image that comes again is left out."""
    queries = stems(results, "queries")
    images = {
        query: " ".join(list(dict.fromkeys(map(stem, files)))[:MOST_IMAGES])
        for query, files in zip(queries, results.values(), strict=True)
    }
    return write_rows(path, RETRIEVAL, _by_id(images, wanted))


def check_retrieval(
    path: Path, wanted: Sequence[str] | None = None, index: Sequence[str] | None = None
) -> str:
    """Return a line that says what the file holds; `index`: the ids that may be named."""
    seen: dict[str, int] = {}
    named, known = 0, None if index is None else set(index)
    for line, (query, images) in read_rows(path, RETRIEVAL):
        once(path, line, seen, query, "id")
        ids = images.split()
        if len(ids) > MOST_IMAGES:
            raise wrong(path, line, f"{len(ids)} images", f"at most {MOST_IMAGES}")
        again: dict[str, int] = {}
        for image in ids:
            once(path, line, again, image, "image")
            if known is not None and image not in known:
                raise wrong(path, line, f"image {image!r}", "images of the index")
        named += len(ids)
    check_ids(path, seen, wanted)
    return f"{len(seen):,} queries, {named:,} images"


def _by_id(rows: Mapping[str, str], wanted: Sequence[str] | None) -> list[tuple[str, str]]:
    if wanted is None:
        return list(rows.items())
    known = set(wanted)
    if strange := [key for key in rows if key not in known]:
        told = f"{len(strange)} queries that it does not list, such as {strange[0]!r}"
        raise UserError(f"sample: {told}; accepted: the sample submission of these queries")
    return [(key, rows.get(key, "")) for key in wanted]


def as_predictions(files: Sequence[str], labels: Sequence[str], scores: Sequence[float]) -> Predictions:
    """Return predictions from columns (Q,)."""
    ids, names = (np.array(list(column), dtype=object) for column in (files, labels))
    return Predictions(ids, names, np.array(scores, dtype=np.float32))
