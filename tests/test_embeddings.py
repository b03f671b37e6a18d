"""The folder form of embeddings: whole or absent, checked when read, one space only."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from guie import embeddings as disk
from guie.datasets.known import checked_truth
from guie.datasets.manifest import from_columns
from guie.errors import UserError
from guie.types import Embeddings, Pairs


@pytest.fixture
def some():
    vectors = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    strings = {name: np.array([f"{name}{i}é" for i in range(6)]) for name in disk.COLUMNS}
    return Embeddings(vectors, space_id="space-1", **strings)


def test_what_is_saved_is_read_back(some, tmp_path):
    folder = disk.save(some, tmp_path / "e", dataset="toy")
    back = disk.load(folder)
    np.testing.assert_array_equal(back.vectors, some.vectors)
    for name in disk.COLUMNS:
        assert getattr(back, name).tolist() == getattr(some, name).tolist()
    assert disk.read_meta(folder) == {"space_id": "space-1", "rows": 6, "dim": 4, "dataset": "toy"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]


def test_stated_pairs_and_further_columns_are_kept(some, tmp_path):
    truth = Pairs(*(np.array(column, dtype=object) for column in (["q"], ["i"], ["easy"], ["public"])))
    usage = {"usage": np.array(["public", "", "private", "", "", ""], dtype=object)}
    disk.save(replace(some, truth=truth, further=usage), tmp_path / "e")
    back = disk.load(tmp_path / "e")
    assert {k: v.tolist() for k, v in vars(back.truth).items()} == {
        k: v.tolist() for k, v in vars(truth).items()
    }
    assert back.further["usage"].tolist() == usage["usage"].tolist()
    disk.save(some, tmp_path / "e")
    assert disk.load(tmp_path / "e").truth is None


def test_rows_bring_what_protocols_ask_of_their_manifest():
    columns = {"file": list("abc"), "label": list("xyz"), "usage": ["public", None, "private"]}
    manifest = from_columns("m", "/nowhere", columns | {"width": [1, 2, 3]})
    pairs = {"query": ["a"], "item": ["b"], "relation": ["ok"], "usage": ["public"]}
    manifest.truth = checked_truth(pairs, "m")
    found = disk.from_manifest(np.eye(2), manifest, rows=np.array([2, 1]), space_id="s")
    assert {name: column.tolist() for name, column in found.further.items()} == {"usage": ["private", ""]}
    assert found.truth.item.tolist() == ["b"]


def test_a_file_listed_twice_is_named(some, tmp_path):
    some.files[4] = some.files[1]
    with pytest.raises(
        UserError, match=r"e: 1 files listed again, such as files1é in rows 1 and 4; accepted"
    ):
        disk.save(some, tmp_path / "e")


def test_distractors_are_rows_of_an_index_that_match_nothing(some):
    other = replace(some, further={})
    part = replace(some, further={"group": np.array(list("aabbcc"), dtype=object)})
    both = disk.with_distractors(part, {"more": other}, "index")
    assert len(both.vectors) == 12 and both.files[6] == "distractors/more/files0é"
    assert set(both.splits[6:]) == {"index"} and not set(both.labels[6:]) & set(some.labels)
    assert both.further["group"].tolist() == [*"aabbcc", *[""] * 6]
    with pytest.raises(UserError, match="more: embedding space t"):
        disk.with_distractors(part, {"more": replace(other, space_id="t")}, "index")


def test_saving_again_replaces_the_folder(some, tmp_path):
    disk.save(some, tmp_path / "e")
    disk.save(replace(some, vectors=2 * some.vectors), tmp_path / "e")
    np.testing.assert_array_equal(disk.load(tmp_path / "e").vectors, 2 * some.vectors)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_write_that_fails_leaves_the_old_folder(some, tmp_path, monkeypatch):
    disk.save(some, tmp_path / "e")
    monkeypatch.setattr(disk.json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        disk.save(replace(some, vectors=2 * some.vectors), tmp_path / "e")
    np.testing.assert_array_equal(disk.load(tmp_path / "e").vectors, some.vectors)


def test_another_space_is_refused(some, tmp_path):
    disk.save(some, tmp_path / "e")
    with pytest.raises(UserError, match="embedding space space-1; accepted: space-2"):
        disk.load(tmp_path / "e", space_id="space-2")


def test_two_spaces_are_not_joined(some):
    with pytest.raises(UserError, match="b: embedding space other, 4-d; accepted: space-1, 4-d as a has"):
        disk.concatenate({"a": some, "b": replace(some, space_id="other")})


def test_joined_datasets_keep_their_labels_apart(some):
    both = disk.concatenate({"a": some, "b": some})
    assert len(set(both.labels)) == 12 and both.vectors.shape == (12, 4)
    assert both.labels[0] == "a/labels0é" and both.labels[6] == "b/labels0é"


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_bad_vectors_are_named(some, tmp_path, value):
    some.vectors[3] = value
    with pytest.raises(UserError, match=r"1 vectors not finite or zero: row 3 \(files3é\)"):
        disk.save(some, tmp_path / "e")


def test_rows_that_do_not_fit_are_named(some, tmp_path):
    with pytest.raises(UserError, match="5 labels for 6 vectors; accepted: one each"):
        disk.save(replace(some, labels=some.labels[:5]), tmp_path / "e")


@pytest.mark.parametrize("part", disk.PARTS)
def test_a_missing_part_is_one_line(some, tmp_path, part):
    folder = disk.save(some, tmp_path / "e")
    (folder / part).unlink()
    with pytest.raises(UserError, match="accepted: ") as caught:
        disk.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_truncated_part_is_one_line(some, tmp_path):
    folder = disk.save(some, tmp_path / "e")
    for part in ("vectors.npy", "rows.parquet"):
        whole = (folder / part).read_bytes()
        (folder / part).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="accepted: "):
            disk.load(folder)
        (folder / part).write_bytes(whole)


def test_meta_of_something_else_is_refused(tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="no space_id"):
        disk.read_meta(tmp_path)


def test_reading_and_evaluating_does_not_import_torch():
    code = (
        "import sys, guie.embeddings, guie.evaluate, guie.metrics, guie.search.exact, guie.floors;"
        "import guie.report.page; print([m for m in ('torch', 'faiss', 'pandas', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_whole_evaluation_imports_neither_torch_nor_pandas(some, tmp_path):
    disk.save(replace(some, labels=np.array(list("aabbcc")), splits=np.full(6, "test")), tmp_path / "e")
    code = f"""
import json, pathlib, sys
from guie import embeddings, evaluate
from guie.report.page import write_report
folder = pathlib.Path({str(tmp_path)!r})
result = evaluate.evaluate({{"mini": embeddings.load(folder / "e")}})
result.write_queries(folder / "queries.parquet")
(folder / "metrics.json").write_text(json.dumps({{"trained": result.metrics}}))
write_report(folder)
print([m for m in ("torch", "pandas", "scipy", "sklearn") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_arrow_columns_hold_what_was_given():
    columns = [
        np.arange(3),
        np.array([1.5, np.nan]),
        ["a", "é", ""],
        [["x"], [], ["y", "z"]],
        [[0.5], [1.0, 2.0]],
    ]
    for values in columns:
        expected = values.tolist() if isinstance(values, np.ndarray) else values
        assert str(disk.to_arrow(values).to_pylist()) == str(expected)
