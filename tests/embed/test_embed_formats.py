"""Files for other programs, read back by other code than ours; the vectors of several models side by side."""

import struct
import subprocess
import sys

import h5py
import numpy as np
import pytest

from guie.embed import ensemble, formats
from guie.errors import UserError

DRAW = np.random.default_rng(0)
SPLITS = np.array(["index", "query", "train", "index", "query"], dtype=object)
IDS = np.array(["R000001", "Q00002", "T000009", "R000000", "Q00001"])


def vectors(rows=5, dim=4):
    return DRAW.normal(size=(rows, dim)).astype(np.float32)


def test_fvecs_are_a_width_and_its_numbers_for_each_row(tmp_path):
    made = vectors(10_000, 3)
    formats.write(["fvecs"], tmp_path, made, np.arange(10_000).astype(str), np.full(10_000, "train"))
    data = (tmp_path / "vectors.fvecs").read_bytes()
    assert len(data) == 10_000 * 16
    for row in (0, 1, 8191, 8192, 9999):
        dim, *values = struct.unpack_from("<i3f", data, 16 * row)
        assert dim == 3 and values == made[row].tolist()
    assert np.load(tmp_path / "ids.npy").tolist() == [str(i) for i in range(10_000)]


def test_the_challenges_h5_has_both_sides_with_ids_of_6_and_7_bytes(tmp_path):
    made = vectors()
    formats.check(["isc"], IDS, SPLITS)
    formats.write(["isc"], tmp_path, made, IDS, SPLITS)
    with h5py.File(tmp_path / "isc.h5") as file:
        assert sorted(file) == ["query", "query_ids", "reference", "reference_ids"]
        np.testing.assert_array_equal(file["query"][:], made[[1, 4]])
        np.testing.assert_array_equal(file["reference"][:], made[[0, 3]])
        assert file["query"].dtype == file["reference"].dtype == np.dtype("<f4")
        assert file["query_ids"].dtype == np.dtype("S6") and file["reference_ids"].dtype == np.dtype("S7")
        assert file["query_ids"][:].tolist() == [b"Q00002", b"Q00001"]
        assert file["reference_ids"][:].tolist() == [b"R000001", b"R000000"]


def test_the_landmark_h5_has_ids_of_16_bytes_and_feats(tmp_path):
    made, ids = vectors(2), np.array(["00000d9c6b0d1a07", "17660ef415d37059"])
    formats.write(["e0"], tmp_path, made, ids, np.array(["index"] * 2))
    with h5py.File(tmp_path / "e0.h5") as file:
        assert sorted(file) == ["feats", "ids"]
        assert file["ids"].dtype == np.dtype("S16") and file["feats"].dtype == np.dtype("<f4")
        assert [name.decode() for name in file["ids"]] == ids.tolist()
        np.testing.assert_array_equal(file["feats"][:], made)


def test_an_h5_of_the_same_vectors_has_the_same_bytes(tmp_path):
    made = vectors()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        formats.write(["isc", "e0"], tmp_path / name, made, IDS, SPLITS)
    for name in ("isc.h5", "e0.h5"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_writing_needs_no_torch_and_h5_only_where_it_is_written():
    code = "import sys, guie.embed.formats, guie.embed.ensemble; print({'torch', 'h5py'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_ids_are_stems_of_files_or_entries_or_whole_names():
    places = [("a/b/x.1.jpg", None), ("t.tar", "c/y.jpg")]
    assert formats.picture_ids(places, "stem").tolist() == ["x.1", "y"]
    assert formats.picture_ids(places, "file").tolist() == ["a/b/x.1.jpg", "t.tar#c/y.jpg"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            lambda: formats.picture_ids([("a/1.jpg", None), ("b/1.jpg", None)], "stem"),
            r"ids: stem gives 1 that two pictures share \('1'\); accepted: ids=file",
        ),
        (lambda: formats.check_names("hdf5", "stem"), "formats: 'hdf5'; accepted: npy, fvecs, isc, e0"),
        (lambda: formats.check_names(["npy"], "name"), "ids: 'name'; accepted: stem, file"),
        (
            lambda: formats.check(["e0"], np.array(["x", "a" * 17]), np.array(["train"] * 2)),
            "formats: e0 with id 'a{17}' of 17 bytes; accepted: at most 16",
        ),
        (
            lambda: formats.check(["isc"], np.array(["Q1", "é" * 4]), np.array(["query", "index"])),
            "formats: isc reference_ids with id 'éééé' of 8 bytes; accepted: at most 7",
        ),
        (
            lambda: formats.check(["isc"], IDS, np.array(["query"] * 5)),
            "formats: isc without rows of split index; accepted: query and index",
        ),
        (lambda: formats.check_width(["isc"], 257), "formats: isc of 257-d vectors; accepted: at most 256-d"),
    ],
)
def test_what_does_not_fit_a_format_is_one_line(wrong, said):
    with pytest.raises(UserError, match=said):
        wrong()


def test_several_models_are_unit_vectors_times_weight_side_by_side_of_unit_length(tmp_path):
    parts = {"b7": vectors(9000, 3), "b5": 4 * vectors(9000, 2)}
    parts["b5"][17] = np.nan
    weights = {"b7": 0.6, "b5": 0.1}
    rows = ensemble.good_rows(parts)
    assert rows.tolist() == [i for i in range(9000) if i != 17]
    ensemble.Ensemble(weights).write(tmp_path / "x.npy", parts, rows)
    found = np.load(tmp_path / "x.npy")
    assert found.shape == (8999, 5) and found.dtype == np.float32
    for place in (0, 16, 17, 8998):
        row, whole = rows[place], []
        for name, part in parts.items():
            length = sum(float(value) ** 2 for value in part[row]) ** 0.5
            whole += [weights[name] * float(value) / length for value in part[row]]
        length = sum(value**2 for value in whole) ** 0.5
        np.testing.assert_allclose(found[place], [value / length for value in whole], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"c": 1.0}, r"weights\.c: there is no such model; accepted: a, b"),
        ({"a": 0}, r"weights\.a: 0; accepted: a number above 0"),
        ({"a": "x"}, r"weights\.a: 'x'; accepted: a number above 0"),
    ],
)
def test_weights_of_no_model_and_no_weight_are_refused(weights, said):
    assert ensemble.check_weights({"a": 2}, ["a", "b"]) == {"a": 2.0, "b": 1.0}
    with pytest.raises(UserError, match=said):
        ensemble.check_weights(weights, ["a", "b"])
    with pytest.raises(UserError, match=r"weights\.a: there is no such model; accepted: with several models"):
        ensemble.check_weights({"a": 1.0}, [""])
