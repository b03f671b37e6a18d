import pickle
from collections import Counter

import numpy as np
import pytest

from guie.config.compose import composed
from guie.datasets.revisited import r1m, roxford5k, rparis6k
from guie.errors import UserError

INDEX = [
    "all_souls_000000",
    "all_souls_000001",
    "oxford_000100",
    "magdalen_000003",
    "radcliffe_camera_000519",
]
QUERIES = ["all_souls_000013", "all_souls_000026", "oxford_002985"]


def ground_truth():
    return {
        "imlist": list(INDEX),
        "qimlist": list(QUERIES),
        "gnd": [
            {
                "bbx": [136.5, 34.1, 648.5, 955.7],
                "easy": np.array([0, 1]),
                "hard": np.array([], dtype=np.int64),
                "junk": np.array([3]),
            },
            {"bbx": [1, 2, 11, 22], "easy": [1], "hard": [2], "junk": []},
            {"bbx": np.array([0.0, 0.0, 5.0, 6.0]), "easy": np.array([4]), "hard": [0], "junk": [1, 2]},
        ],
    }


def write(folder, content, name="gnd_roxford5k.pkl", protocol=2):
    (folder / "jpg").mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(content, protocol))
    return str(folder)


def test_the_pairs_are_the_protocol(tmp_path):
    found = roxford5k(write(tmp_path, ground_truth()), data_root="elsewhere")
    pairs = {tuple(row[c] for c in ("query", "item", "relation", "usage")) for row in found.truth.to_pylist()}
    expected = {
        (f"jpg/{QUERIES[q]}.jpg", f"jpg/{INDEX[i]}.jpg", grade, "public")
        for q, query in enumerate(ground_truth()["gnd"])
        for grade in ("easy", "hard", "junk")
        for i in query[grade]
    }
    assert pairs == expected and len(found.truth) == len(expected) == 9


def test_queries_have_their_box_and_all_rows_a_label(tmp_path):
    found = roxford5k(write(tmp_path, ground_truth()), data_root="elsewhere")
    assert Counter(found.splits.tolist()) == {"query": 3, "index": 5}
    assert found.table["box"].to_pylist() == ["136.5,34.1,512,921.6", "1,2,10,20", "0,0,5,6"] + [None] * 5
    first, third = QUERIES[0], QUERIES[2]
    labels = [first, first, third, first, first, first, "distractor", third]
    assert found.table["label"].to_pylist() == labels
    assert found.domain_names == ["landmark"]


def test_paris_reads_its_own_pickle(tmp_path):
    found = rparis6k(write(tmp_path, ground_truth(), "gnd_rparis6k.pkl", 4), data_root="elsewhere")
    assert found.name == "rparis6k" and len(found.truth) == 9
    with pytest.raises(UserError, match=r"gnd_roxford5k\.pkl: missing; accepted: the complete"):
        roxford5k(str(tmp_path), data_root="elsewhere")


class Evil:
    def __reduce__(self):
        return eval, ("1/0",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gnd: gnd.update(imlist=Evil()), r"gnd_roxford5k\.pkl: the pickle names builtins\.eval"),
        (lambda gnd: gnd.pop("qimlist"), r"no imlist, qimlist and gnd; accepted: the file of the revisited"),
        (lambda gnd: gnd["gnd"].pop(), r"3 queries, but 2 in gnd; accepted: one per query"),
        (lambda gnd: gnd["gnd"][1].pop("easy"), r"gnd of query all_souls_000026: KeyError 'easy'; accepted"),
        (
            lambda gnd: gnd["gnd"][1].update(hard=[5]),
            r"all_souls_000026: position 5; accepted: positions 0\.\.4",
        ),
        (lambda gnd: gnd["gnd"][2].update(junk=[-1]), r"oxford_002985: position -1; accepted"),
        (lambda gnd: gnd["gnd"][2].update(junk=[1.5]), r"oxford_002985: TypeError"),
        (lambda gnd: gnd["gnd"][0].update(bbx=[1, 2]), r"all_souls_000013: 2 sides of a box; accepted"),
    ],
)
def test_mistakes_name_the_file_and_the_query(tmp_path, change, message):
    content = ground_truth()
    change(content)
    with pytest.raises(UserError, match=message):
        roxford5k(write(tmp_path, content), data_root="elsewhere")


def test_distractors_are_an_index_without_labels(tmp_path):
    for name in ("0a/1.jpg", "0a/b/2.jpg", "1/3.jpg", "1/list.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = r1m(str(tmp_path), data_root="elsewhere")
    assert sorted(found.files) == ["0a/1.jpg", "0a/b/2.jpg", "1/3.jpg"]
    assert found.label_names == ["distractor"] and set(found.splits) == {"index"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures in its folders; accepted: revisitop1m, unpacked"):
        r1m(str(tmp_path / "empty"), data_root="elsewhere")


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k", "r1m"])
def test_the_yamls_compose(name):
    cfg = composed("train", [f"dataset={name}"])
    assert cfg["dataset"][name]["_target_"] == f"guie.datasets.revisited.{name}"
