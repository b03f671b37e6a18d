import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from guie.datasets.manifest import concatenate, from_columns, make_table, open_manifest
from guie.errors import UserError


def columns(**changed):
    made = {
        "file": ["b.jpg", "a.jpg", "c/d.jpg", "e.tfrec", "e.tfrec"],
        "entry": [None, None, None, "0", "1"],
        "label": ["dog", "cat", "dog", "10", "9"],
        "domain": ["pets", "pets", "pets", "things", "things"],
        "split": ["train", "train", "test", "query", "index"],
    }
    return {**made, **changed}


def test_class_ids_are_places_in_the_sorted_labels_that_occur():
    manifest = from_columns("x", ".", columns())
    assert manifest.label_names == ["10", "9", "cat", "dog"]
    assert manifest.labels.tolist() == [3, 2, 3, 0, 1]
    pets = manifest.select(manifest.domains == manifest.domain_names.index("pets"))
    assert pets.label_names == ["cat", "dog"] and pets.labels.tolist() == [1, 0, 1]
    assert pets.num_classes == 2 and pets.domain_names == ["pets"]


def test_rows_and_places_come_back_as_they_were_given():
    manifest = from_columns("x", ".", columns())
    assert manifest.place(4) == ("e.tfrec", "1") and manifest.place(0) == ("b.jpg", None)
    assert manifest.row(2).label == "dog" and manifest.row(2).split == "test"
    assert manifest.split("query", "index").files.tolist() == ["e.tfrec", "e.tfrec"]
    assert manifest.select([4, 0]).files.tolist() == ["e.tfrec", "b.jpg"]


def test_missing_columns_have_stated_defaults_and_extra_ones_are_kept():
    manifest = from_columns("x", ".", {"file": ["a", "b"], "label": [7, 8], "width": [3, 4]})
    assert manifest.splits.tolist() == ["train"] * 2 and manifest.domain_names == [""]
    assert manifest.table["width"].to_pylist() == [3, 4] and manifest.label_names == ["7", "8"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"label": None},
            r"dataset x: no column 'label' \(found file, entry, domain, split\); accepted: file, label",
        ),
        ({"entry": [None, None, None, "0", "0"]}, r"1 pictures listed twice or more \(e.tfrec\[0\]\)"),
        ({"file": ["b.jpg", "b.jpg", "c", "e", "f"]}, r"1 pictures listed twice or more \(b.jpg\)"),
        ({"label": ["dog", "-1", "-20", "10", "9"]}, r"negative labels at \(2 rows; row 1: 'a.jpg', row 2"),
        (
            {"label": ["dog", " ", "cat", None, "9"]},
            r"empty labels at \(2 rows; row 1: 'a.jpg', row 3: 'e.tfrec'\)",
        ),
        ({"file": ["../b.jpg", "a", "c", "d", "e"]}, r"leave the root \(1 rows; row 0: '../b.jpg'\)"),
        ({"file": ["a/../../b", "/etc/x", "C:\\x", "d", ""]}, r"leave the root \(4 rows;"),
        (
            {"split": ["train", "train", "tset", "query", "index"]},
            r"unknown splits .*'tset'.*accepted: train, val",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_examples(changed, message):
    wrong = {key: value for key, value in columns(**changed).items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        from_columns("x", ".", wrong)
    assert "\n" not in str(caught.value)


def test_names_with_two_dots_inside_are_no_escape():
    assert len(from_columns("x", ".", {"file": ["a..b.jpg", "..c/d.jpg"], "label": ["1", "2"]})) == 2


def test_no_rows_are_refused():
    with pytest.raises(UserError, match="dataset x: 0 rows"):
        make_table(pa.table({"file": pa.array([], pa.string()), "label": pa.array([], pa.string())}), "x")


def test_csv_and_parquet_give_the_same_manifest_by_a_mapped_copy(tmp_path):
    made = from_columns("x", tmp_path, columns())
    made.write(tmp_path / "m.csv")
    made.write(tmp_path / "m.parquet")
    opened = [open_manifest(tmp_path / name, tmp_path, "x") for name in ("m.csv", "m.parquet")]
    assert {m.fingerprint() for m in opened} == {made.fingerprint()}
    copies = list((tmp_path / ".guie").glob("m-*.arrow"))
    assert len(copies) == 2
    os.truncate(tmp_path / "m.parquet", os.path.getsize(tmp_path / "m.parquet") - 1)  # other bytes, other key
    with pytest.raises(UserError, match=r"m.parquet: cannot be read"):
        open_manifest(tmp_path / "m.parquet", tmp_path, "x")


def test_the_arrow_copy_is_what_is_read_the_second_time(tmp_path, monkeypatch):
    from_columns("x", tmp_path, columns()).write(tmp_path / "m.csv")
    first = open_manifest(tmp_path / "m.csv", tmp_path, "x").fingerprint()
    monkeypatch.setattr("guie.datasets.manifest._read_source", lambda path: 1 / 0)
    assert open_manifest(tmp_path / "m.csv", tmp_path, "x").fingerprint() == first
    with pytest.raises(ZeroDivisionError):  # the check above can fail
        open_manifest(tmp_path / "m.csv", tmp_path, "x", constants={"domain": "d"})


def test_the_arrow_copy_is_mapped_not_loaded(tmp_path):
    names = [f"a/rather/long/folder/name/{i:06d}.jpg" for i in range(50_000)]
    from_columns("x", tmp_path, {"file": names, "label": ["1"] * len(names)}).write(tmp_path / "m.parquet")
    open_manifest(tmp_path / "m.parquet", tmp_path, "x")
    before = pa.total_allocated_bytes()
    manifest = open_manifest(tmp_path / "m.parquet", tmp_path, "x")
    assert manifest.place(49_999)[0] == names[-1]
    assert pa.total_allocated_bytes() - before < 100_000
    assert manifest.select(range(40_000)).table.nbytes > 1_000_000  # what loading would take


def test_labels_like_01_stay_text(tmp_path):
    (tmp_path / "m.csv").write_text("file,label\na.jpg,01\nb.jpg,1\n")
    assert open_manifest(tmp_path / "m.csv", tmp_path, "x").label_names == ["01", "1"]


def test_columns_can_be_renamed_and_a_wrong_name_is_named(tmp_path):
    (tmp_path / "m.csv").write_text("path,sku\na.jpg,7\n")
    manifest = open_manifest(tmp_path / "m.csv", tmp_path, "x", columns={"file": "path", "label": "sku"})
    assert manifest.row(0).label == "7"
    with pytest.raises(UserError, match=r"no column 'skuu' for 'label'; accepted: one of path, sku"):
        open_manifest(tmp_path / "m.csv", tmp_path, "x", columns={"file": "path", "label": "skuu"})


def test_a_missing_or_unknown_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no manifest at .*nothing.csv; accepted: a .csv or .parquet file"):
        open_manifest(tmp_path / "nothing.csv", tmp_path, "x")
    (tmp_path / "m.xls").write_text("")
    with pytest.raises(UserError, match=r"unknown kind '.xls'; accepted: .csv, .parquet"):
        open_manifest(tmp_path / "m.xls", tmp_path, "x")


def test_the_fingerprint_changes_with_files_labels_domains_and_order_but_not_with_the_split():
    first = from_columns("x", ".", columns()).fingerprint()
    assert from_columns("y", "/", columns(split=["train"] * 5)).fingerprint() == first
    changes = [
        {"file": ["bb.jpg", "a.jpg", "c/d.jpg", "e.tfrec", "e.tfrec"]},
        {"entry": [None, None, None, "0", "2"]},
        {"label": ["dog", "cat", "cat", "10", "9"]},
        {"label": ["dox", "cat", "dox", "10", "9"]},
        {"domain": ["pets", "pets", "things", "things", "things"]},
    ]
    others = {from_columns("x", ".", columns(**changed)).fingerprint() for changed in changes}
    others.add(from_columns("x", ".", columns()).select([1, 0, 2, 3, 4]).fingerprint())
    assert len(others) == 6 and first not in others


def test_a_selection_has_the_fingerprint_of_the_same_rows_made_anew():
    whole = from_columns("x", ".", columns())
    part = {key: [value[i] for i in (0, 2, 4)] for key, value in columns().items()}
    assert whole.select([0, 2, 4]).fingerprint() == from_columns("x", ".", part).fingerprint()


def test_a_manifest_pickles_and_reads_its_bytes(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"bytes")
    manifest = from_columns("x", tmp_path, {"file": ["a.jpg"], "label": ["1"]})
    assert manifest.read(0) == pickle.loads(pickle.dumps(manifest)).read(0) == b"bytes"


def test_several_data_sets_become_one_with_labels_apart(tmp_path):
    for place, content in (("one", b"1"), ("two/deep", b"2")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.jpg").write_bytes(content)
    parts = [
        from_columns(name, tmp_path / place, {"file": ["a.jpg"], "label": ["7"], "domain": [name]})
        for name, place in (("p", "one"), ("q", "two/deep"))
    ]
    both = concatenate(parts)
    assert both.label_names == ["p/7", "q/7"] and both.domain_names == ["p", "q"]
    assert [both.read(0), both.read(1)] == [b"1", b"2"]
    assert concatenate(parts[:1]) is parts[0]


def test_several_data_sets_keep_the_columns_that_all_have_with_one_type(tmp_path):
    sizes = [{"width": [30], "height": [20], "box": ["1 2"]}, {"width": [8], "height": [9.5]}]
    parts = [
        from_columns(name, tmp_path, {"file": [f"{name}.jpg"], "label": ["7"], **size})
        for name, size in zip("pq", sizes, strict=True)
    ]
    table = concatenate(parts).table
    assert table["width"].to_pylist() == [30, 8]
    assert not {"height", "box"} & set(table.column_names)


def test_an_unknown_domain_is_refused():
    manifest = from_columns("x", ".", columns())
    assert len(manifest.keep_domains(["things"])) == 2
    with pytest.raises(UserError, match=r"unknown domain 'thing'; accepted: pets, things"):
        manifest.keep_domains(["thing"])


def test_a_parquet_with_numbers_as_labels_is_read_as_text(tmp_path):
    parquet.write_table(pa.table({"file": ["a", "b"], "label": np.array([3, 10])}), tmp_path / "m.parquet")
    assert open_manifest(tmp_path / "m.parquet", tmp_path, "x").label_names == ["10", "3"]
