"""The rows of an evaluation: capped the same way everywhere, cropped to their boxes."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from guie.datasets.evaluated import capped, cropped, reader
from guie.datasets.manifest import from_columns
from guie.errors import UserError
from guie.images import decode


def rows(count=60, classes=12, splits=("test",), **further):
    columns = {
        "file": [f"{i:03d}.jpg" for i in range(count)],
        "label": [f"c{i % classes}" for i in range(count)],
        "split": [splits[i % len(splits)] for i in range(count)],
    }
    return from_columns("x", "/nowhere", columns | further)


def test_a_cap_keeps_whole_classes_of_what_searches_itself():
    kept = capped(rows(), ["test"], ["test"], 20)
    assert len(kept) == 20
    assert sorted(np.bincount(kept.labels).tolist()) == [5, 5, 5, 5]


def test_a_cap_is_the_same_for_rows_in_another_order():
    everything = rows()
    shuffled = everything.select(np.random.default_rng(0).permutation(60))
    files = [sorted(capped(one, ["test"], ["test"], 17).files) for one in (everything, shuffled)]
    assert files[0] == files[1] and len(files[0]) == 17


def test_queries_keep_their_relevant_pictures_before_others():
    everything = rows(200, 10, ("query", "index", "index", "index"))
    kept = capped(everything, ["query"], ["index"], 8)
    splits = kept.splits
    assert (splits == "query").sum() == 8 and (splits == "index").sum() == 8
    asked = set(np.array(kept.label_names)[kept.labels[splits == "query"]])
    assert set(np.array(kept.label_names)[kept.labels[splits == "index"]]) <= asked


def test_stated_pairs_stay_where_both_pictures_do():
    everything = rows(80, 80, ("query", "index"))
    files = everything.files
    table = {"query": files[0::2], "item": files[1::2], "relation": ["ok"] * 40, "usage": ["public"] * 40}
    everything.truth = pa.table({name: pa.array(list(column)) for name, column in table.items()})
    kept = capped(everything, ["query"], ["index"], 10)
    assert len(kept) == 20 and kept.truth.num_rows == 10
    assert set(kept.truth["item"].to_pylist()) <= set(kept.files)


def test_what_is_within_the_cap_stays_as_it_is():
    everything = rows()
    assert capped(everything, ["test"], ["test"], 60) is everything


def test_only_the_asked_splits_are_cropped():
    everything = rows(4, 2, ("query", "index"), box=["1,2,30,40", "5,6,7,8", None, "1,1,1,1"])
    made = cropped(everything, ["query"])
    assert [made.crop(i) for i in range(4)] == [(1.0, 2.0, 30.0, 40.0), None, None, None]
    assert everything.crop(0) is None and cropped(everything, []) is everything
    assert made.fingerprint() != everything.fingerprint()


def test_boxes_that_are_missing_or_no_boxes_are_named():
    with pytest.raises(
        UserError, match=r"dataset x: no column box to crop to; accepted: protocol\.x\.crops=\[\]"
    ):
        cropped(rows(), ["test"])
    wrong = cropped(rows(2, 1, box=["1,2,3", "a"]), ["test"])
    with pytest.raises(
        UserError, match=r"dataset x: row 0: box '1,2,3'; accepted: x,y,width,height in pixels"
    ):
        wrong.crop(0)


def test_a_cropped_picture_is_read_as_its_box_and_the_others_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("a#1.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    columns = {"file": ["a#1.png", "b.png"], "label": ["x", "x"], "split": ["query", "index"]}
    made = cropped(from_columns("x", tmp_path, columns | {"box": ["10,5,20,30", "0,0,1,1"]}), ["query"])
    read = reader(made)
    np.testing.assert_array_equal(decode(read("a#1.png")), pixels[5:35, 10:30])
    assert read("b.png") == (tmp_path / "b.png").read_bytes()
