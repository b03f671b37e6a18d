import json

import pytest

from guie.config.compose import composed
from guie.datasets.met import met
from guie.errors import UserError

DATABASE = [
    {"id": 6, "path": "MET/6/0.jpg"},
    {"id": 6, "path": "MET/6/1.jpg"},
    {"id": 850961, "path": "MET/850961/0.jpg"},
]
TEST = [
    {"path": "test_met/7c1f.jpg", "MET_id": 850961},
    {"path": "test_other/00aa.jpg"},
    {"path": "test_noart/00bb.jpg", "MET_id": -1},
]
VAL = [{"path": "test_met/8d2e.jpg", "MET_id": 6}, {"path": "test_other/00cc.jpg"}]


def write(folder):
    folder.mkdir(exist_ok=True)
    (folder / "MET_database.json").write_text(json.dumps(DATABASE))
    (folder / "mini_MET_database.json").write_text(json.dumps(DATABASE[1:]))
    (folder / "testset.json").write_text(json.dumps(TEST))
    (folder / "valset.json").write_text(json.dumps(VAL))
    return folder


@pytest.fixture
def raw(tmp_path):
    return write(tmp_path)


def test_exhibits_validation_and_queries(raw):
    found = met(str(raw), data_root="x")
    labels = [found.label_names[label] for label in found.labels]
    assert list(zip(found.files.tolist(), labels, found.splits.tolist(), strict=True)) == [
        ("MET/6/0.jpg", "6", "train"),
        ("MET/6/1.jpg", "6", "train"),
        ("MET/850961/0.jpg", "850961", "train"),
        ("test_met/8d2e.jpg", "6", "val"),
        ("test_other/00cc.jpg", "distractor", "val"),
        ("test_met/7c1f.jpg", "850961", "query"),
        ("test_other/00aa.jpg", "distractor", "query"),
        ("test_noart/00bb.jpg", "distractor", "query"),
    ]
    assert found.domain_names == ["artwork"]
    assert found.table["group"].to_pylist()[-3:] == ["test_met", "test_other", "test_noart"]


def test_as_a_gallery_the_exhibits_are_searched(raw):
    assert met(str(raw), gallery=True, data_root="x").splits.tolist()[:3] == ["index"] * 3


def test_the_small_database(raw):
    found = met(str(raw), mini=True, data_root="x")
    assert len(found.split("train")) == 2 and len(found.split("query")) == 3


def test_lists_and_pictures_in_folders_of_their_own_are_found(tmp_path):
    write(tmp_path / "ground_truth")
    (tmp_path / "images").mkdir()
    found = met(str(tmp_path), data_root="x")
    assert found.files[0] == "images/MET/6/0.jpg"
    assert found.table["group"][0].as_py() == "MET"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "MET_database.json",
            json.dumps(DATABASE)[:70],
            r"MET_database\.json: line 1: .*; accepted: the",
        ),
        ("MET_database.json", "", r"MET_database\.json: 0 bytes"),
        (
            "MET_database.json",
            "{}",
            r"MET_database\.json: dict; accepted: a list of objects",
        ),
        (
            "MET_database.json",
            '[{"path": "MET/1/0.jpg"}]',
            r"entry 1 is .*; accepted: an object with",
        ),
        ("MET_database.json", '[{"path": "MET/1/0.jpg", "id": -1}]', r"negative labels"),
        ("testset.json", json.dumps([*TEST, TEST[0]]), r"1 pictures listed twice"),
        ("testset.json", '[{"path": "a.jpg"}, {"MET_id": 1}]', r"testset\.json: entry 2 is"),
    ],
)
def test_mistakes_name_the_file_and_the_place(raw, name, text, message):
    (raw / name).write_text(text)
    with pytest.raises(UserError, match=message):
        met(str(raw), data_root="x")


def test_a_missing_list_is_named(raw):
    (raw / "valset.json").unlink()
    with pytest.raises(UserError, match=r"valset\.json: missing; accepted: the complete download"):
        met(str(raw), data_root="x")


@pytest.mark.parametrize(
    ("name", "mini", "gallery"),
    [("met", False, False), ("met_mini", True, False), ("met_retrieval", False, True)],
)
def test_the_yamls_compose(name, mini, gallery):
    node = composed("train", [f"dataset={name}"])["dataset"][name]
    assert (node["_target_"], node["mini"], node["gallery"]) == ("guie.datasets.met.met", mini, gallery)
