"""Google Landmarks (Weyand et al., CVPR 2020; Noh et al., ICCV 2017): v2 and its subsets, v1, GLR 2021.

The lists have up to 5 million rows, so they stay in Arrow. Pictures lie at `train/a/b/c/ID.jpg`, a, b and c
being the first characters of the id; where there are none, `train/ID.jpg` and `images/train/` are looked at.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from guie.datasets.known import Listing, arrow_columns, known, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.datasets.tfrecord import guie_records
from guie.errors import UserError

# Labels of the TFRecord version are those of all sets made for GUIE together.
TFRECORD_LABELS = range(10691, 17691)
DISTRACTOR = "distractor"

Subset = Literal["v2", "v2c", "v2x"]

_LISTS_IN = ("", "metadata", "train", "index", "test")  # where downloads put the lists
_USAGES = pa.array(["public", "private", "ignored"])
_ID = "[0-9A-Za-z_-]{3,}"
_SAMPLE = 100


def glr2021(root: str = "glr2021", subset: Subset = "v2", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return Landmark Recognition 2021's training set, by landmark: all of its `train.csv`, unless `subset`.

    Where the folder holds shards `*-train-*.tfrec` instead (GLR2021-mini), their records are listed, with
    labels 10691..17690. All rows are split train and domain landmark.
    """
    return known("glr2021", root, data_root, partial(listed, subset=subset), rules)


def gldv2(root: str = "gldv2", subset: Subset = "v2c", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return the training set of Google Landmarks v2, by landmark; all rows are split train.

    `v2` is `train.csv`, `v2c` the cleaned `train_clean.csv`, `v2x` every row of `train.csv` whose landmark
    occurs in `train_clean.csv`.
    """
    return known("gldv2", root, data_root, partial(listed, subset=subset), rules)


def gldv1(root: str = "gldv1", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return the training set of Google Landmarks v1, by landmark; rows without a landmark are left out."""
    return known("gldv1", root, data_root, listed_v1, rules)


def gldv2_retrieval(root: str = "gldv2", rules: Rules = None, *, data_root: str) -> Manifest:
    """Return the retrieval task of v2: its queries, its index, and the stated pairs as `truth`.

    Queries whose Usage is Ignored are left out. The label is the landmark; with `index.csv` alone, without
    `index_image_to_landmark.csv`, that of an index picture is the first query that lists it, else
    `distractor`. A query's label is that of the first picture it lists.
    """
    return known("gldv2_retrieval", root, data_root, listed_retrieval, rules)


def gldv2_recognition(
    root: str = "gldv2", subset: Subset = "v2c", rules: Rules = None, *, data_root: str
) -> Manifest:
    """Return the recognition task of v2: test pictures as query, the training set (`subset`) as index.

    Queries without a landmark are labelled `distractor`; of several landmarks the first that the index has
    is the label, and `landmarks` holds all of them. `usage` is public or private; Ignored ones are left out.
    """
    return known("gldv2_recognition", root, data_root, partial(listed_recognition, subset=subset), rules)


def listed(place: Path, subset: Subset = "v2") -> Listing:
    """List the shards, else a subset of the training lists."""
    columns = guie_records(place, TFRECORD_LABELS)
    if columns["file"] and subset != "v2":
        raise UserError(
            f"dataset subset: {subset!r} for the shards in {place}; accepted: v2, they are listed whole"
        )
    if columns["file"]:
        count = len(columns["file"])
        return Listing({**columns, "domain": ["landmark"] * count, "split": ["train"] * count})
    return Listing(_rows(place, "train", _subset(place, subset), "train"))


def listed_v1(place: Path) -> Listing:
    """List `train.csv`, whose landmark may be the word None."""
    rows = _ids(_list(place, "train.csv"), "landmark_id")
    with_landmark = rows.filter(pc.not_equal(rows["landmark_id"], "None"))
    left_out = rows.num_rows - with_landmark.num_rows
    return Listing(
        _rows(place, "train", with_landmark, "train"),
        notes=[f"{left_out:,} rows without a landmark left out"],
    )


def listed_retrieval(place: Path) -> Listing:
    """List `retrieval_solution_v2.1.csv` and the index."""
    path = _list(place, "retrieval_solution_v2.1.csv")
    asked, ignored = _asked(path, "images")
    empty = pc.equal(asked["images"], "")
    if pc.any(empty).as_py():
        query = asked["id"].filter(empty)[0].as_py()
        raise UserError(f"{path}: query {query} lists no image; accepted: images, or Usage Ignored")
    pairs = _exploded(asked, "images")
    index = _index(place, pairs)
    where = pc.index_in(pairs["images"], value_set=index["id"])
    if where.null_count:
        query, image = (pairs[name].filter(where.is_null())[0].as_py() for name in ("id", "images"))
        raise UserError(f"{path}: query {query} lists {image}, which the index lacks; accepted: its images")
    first = pc.index_in(asked["id"], value_set=pairs["id"])
    labels = index["landmark_id"].take(where).take(first)
    queries = pa.table({"id": asked["id"], "landmark_id": labels})
    columns = _joined(_rows(place, "test", queries, "query"), _rows(place, "index", index, "index"))
    truth = {
        "query": _files(place, "test", pairs["id"]),
        "item": _files(place, "index", pairs["images"]),
        "relation": _repeated("ok", pairs.num_rows),
        "usage": pairs["usage"],
    }
    return Listing(columns, truth, notes=[f"{ignored:,} queries whose Usage is Ignored left out"])


def listed_recognition(place: Path, subset: Subset = "v2c") -> Listing:
    """List `recognition_solution_v2.1.csv` and, as index, a subset of the training lists."""
    asked, ignored = _asked(_list(place, "recognition_solution_v2.1.csv"), "landmarks")
    index = _subset(place, subset)
    in_index = set(index["landmark_id"].unique().to_pylist())
    labels = [_label(answer.split(), in_index) for answer in asked["landmarks"].to_pylist()]
    queries = pa.table({"id": asked["id"], "landmark_id": pa.chunked_array([pa.array(labels, pa.string())])})
    columns = _joined(
        {**_rows(place, "test", queries, "query"), "landmarks": asked["landmarks"], "usage": asked["usage"]},
        {
            **_rows(place, "train", index, "index"),
            "landmarks": index["landmark_id"],
            "usage": _repeated("", index.num_rows),
        },
    )
    return Listing(columns, notes=[f"{ignored:,} queries whose Usage is Ignored left out"])


def _label(landmarks: list[str], in_index: set[str]) -> str:
    return next((name for name in landmarks if name in in_index), landmarks[0] if landmarks else DISTRACTOR)


def _subset(place: Path, subset: Subset) -> pa.Table:
    """Return columns id and landmark_id of the subset."""
    if subset == "v2":
        return _ids(_list(place, "train.csv"), "landmark_id")
    path = _list(place, "train_clean.csv")
    by_landmark = _checked(path, arrow_columns(path, "landmark_id", "images"), "images", f"{_ID}( +{_ID})*")
    clean = _exploded(by_landmark, "images").rename_columns({"images": "id"})
    if subset == "v2c":
        return clean
    everything = _ids(_list(place, "train.csv"), "landmark_id")
    return everything.filter(pc.is_in(everything["landmark_id"], clean["landmark_id"].unique()))


def _index(place: Path, pairs: pa.Table) -> pa.Table:
    """Return columns id and landmark_id of the index."""
    if any((place / folder / "index_image_to_landmark.csv").exists() for folder in _LISTS_IN):
        return _ids(_list(place, "index_image_to_landmark.csv"), "landmark_id")
    index = _ids(_list(place, "index.csv"))
    asked_by = pairs["id"].take(pc.index_in(index["id"], value_set=pairs["images"]))
    return index.append_column("landmark_id", pc.fill_null(asked_by, DISTRACTOR))


def _asked(path: Path, answer: str) -> tuple[pa.Table, int]:
    """Return columns id, `answer` and usage of the queries that count, and how many do not."""
    table = _ids(path, answer, "Usage")
    usage = pc.utf8_lower(table["Usage"])
    unknown = pc.invert(pc.is_in(usage, value_set=_USAGES))
    if pc.any(unknown).as_py():
        row = int(np.flatnonzero(unknown)[0])
        raise UserError(
            f"{path}: line {row + 2}: Usage {table['Usage'][row].as_py()!r}; "
            "accepted: Public, Private, Ignored"
        )
    counts = pc.not_equal(usage, "ignored")
    asked = pa.table({"id": table["id"], answer: table[answer], "usage": usage}).filter(counts)
    return asked, table.num_rows - asked.num_rows


def _exploded(table: pa.Table, column: str) -> pa.Table:
    """Return one row for each of the words of `column`."""
    words = pc.utf8_split_whitespace(table[column].combine_chunks())
    made = {name: table[name].take(pc.list_parent_indices(words)) for name in table.column_names}
    return pa.table({**made, column: pc.list_flatten(words)})


def _list(place: Path, name: str) -> Path:
    """Return where the list `name` is: in the folder itself, its metadata/, or with the pictures."""
    folder = next((folder for folder in _LISTS_IN if (place / folder / name).exists()), "")
    return required(place / folder, name)[0]


def _ids(path: Path, *names: str) -> pa.Table:
    """Return the columns id and `names` of a list, the ids checked."""
    return _checked(path, arrow_columns(path, "id", *names), "id", _ID)


def _checked(path: Path, table: pa.Table, column: str, pattern: str) -> pa.Table:
    wrong = pc.invert(pc.match_substring_regex(table[column], f"^{pattern}$"))
    if pc.any(wrong).as_py():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{path}: line {row + 2} has {column} {table[column][row].as_py()!r}; "
            "accepted: as in the original, ids of 16 hex digits"
        )
    return table


def _rows(place: Path, part: str, rows: pa.Table, split: str) -> dict[str, pa.ChunkedArray]:
    """Return the manifest's columns of `rows` (id, landmark_id), whose pictures are in the folder `part`."""
    return {
        "file": _files(place, part, rows["id"]),
        "label": rows["landmark_id"],
        "domain": _repeated("landmark", rows.num_rows),
        "split": _repeated(split, rows.num_rows),
    }


def _files(place: Path, part: str, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    folder, depth = _layout(place, part, ids)
    above = [pc.utf8_slice_codeunits(ids, at, at + 1) for at in range(depth)]
    return pc.binary_join_element_wise(folder, *above, pc.binary_join_element_wise(ids, ".jpg", ""), "/")


def _layout(place: Path, part: str, ids: pa.ChunkedArray) -> tuple[str, int]:
    """Return the folder and how many folders are below it, by looking for some of the pictures."""
    some = ids.take(np.linspace(0, max(len(ids) - 1, 0), min(len(ids), _SAMPLE), dtype=np.int64)).to_pylist()
    for folder, depth in product((part, f"images/{part}"), (3, 0)):
        if any(Path(place, folder, *name[:depth], f"{name}.jpg").exists() for name in some):
            return folder, depth
    return part, 3


def _repeated(text: str, count: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(text, count)])


def _joined(*parts: dict[str, pa.ChunkedArray]) -> dict[str, pa.ChunkedArray]:
    table = pa.concat_tables([pa.table(part) for part in parts])
    return {name: table[name] for name in table.column_names}
