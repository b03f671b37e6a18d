from collections import Counter

import pytest

from guie.config.compose import composed
from guie.datasets.disc21 import disc21
from guie.errors import UserError

TRUTH = "query_id,reference_id\nQ00000,\nQ00003,R326040\nQ00004,R852827\nQ00008,R326040\n"


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.jpg").touch()


@pytest.fixture
def raw(tmp_path):
    touch(tmp_path / "query_images", "Q00000", "Q00003", "Q00004", "Q00008", "Q25000")
    touch(tmp_path / "reference_images", "R000000", "R326040", "R852827")
    touch(tmp_path / "training_images", "T000000", "T000001")
    (tmp_path / "public_ground_truth.csv").write_text(TRUTH)
    return tmp_path


@pytest.mark.parametrize("training", ["training_images", "train_images"])
def test_pairs_are_the_truth_and_labels_follow_them(raw, training):
    (raw / "training_images").rename(raw / training)
    found = disc21(str(raw), data_root="elsewhere")
    rows = zip(found.files, found.table["label"].to_pylist(), found.splits, strict=True)
    assert list(rows) == [
        (f"{training}/T000000.jpg", "T000000", "train"),
        (f"{training}/T000001.jpg", "T000001", "train"),
        ("query_images/Q00000.jpg", "Q00000", "query"),
        ("query_images/Q00003.jpg", "R326040", "query"),
        ("query_images/Q00004.jpg", "R852827", "query"),
        ("query_images/Q00008.jpg", "R326040", "query"),
        ("reference_images/R000000.jpg", "distractor", "index"),
        ("reference_images/R326040.jpg", "R326040", "index"),
        ("reference_images/R852827.jpg", "R852827", "index"),
    ]
    assert found.truth.to_pylist() == [
        {
            "query": f"query_images/{query}.jpg",
            "item": f"reference_images/{item}.jpg",
            "relation": "ok",
            "usage": "public",
        }
        for query, item in (("Q00003", "R326040"), ("Q00004", "R852827"), ("Q00008", "R326040"))
    ]


def test_without_training_pictures_there_is_no_train(raw):
    for path in (raw / "training_images").iterdir():
        path.unlink()
    (raw / "training_images").rmdir()
    assert Counter(disc21(str(raw), data_root="").splits.tolist()) == {"query": 4, "index": 3}


def test_a_list_of_references_keeps_those(raw):
    (raw / "few").write_text("R852827\nR326040\n")
    found = disc21(str(raw), references="few", data_root="elsewhere")
    index = ["reference_images/R852827.jpg", "reference_images/R326040.jpg"]
    assert found.split("index").files.tolist() == index
    (raw / "few").write_text("R852827\n")
    with pytest.raises(UserError, match=r"ground_truth\.csv: 2 ids without a picture \(such as R326040\)"):
        disc21(str(raw), references="few", data_root="elsewhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"public_ground_truth\.csv: 0 bytes"),
        ("query,reference\nQ00000,\n", r"line 1: 'query,reference'; accepted: query_id,reference_id"),
        (TRUTH + "Q00009\n", r"line 6: 'Q00009'; accepted: Q00000,R000000 or Q00000,"),
        (TRUTH + "Q00000,R000000\n", r"line 6: 'Q00000,R000000'; accepted: each query once"),
        (TRUTH + "Q00009,\n", r"1 ids without a picture \(such as Q00009\); accepted: the complete"),
        ("query_id,reference_id\nQ00000,R9\n", r"1 ids without a picture \(such as R9\); accepted"),
    ],
)
def test_mistakes_name_the_file_and_the_line(raw, text, message):
    (raw / "public_ground_truth.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        disc21(str(raw), data_root="elsewhere")


def test_a_folder_that_was_not_downloaded_is_named(raw):
    (raw / "reference_images").rename(raw / "refs")
    with pytest.raises(UserError, match=r"reference_images: missing; accepted: the complete download"):
        disc21(str(raw), data_root="elsewhere")


def test_the_real_ground_truth_is_read(shared, tmp_path):
    text = (shared / "formats" / "disc21_public_ground_truth.csv").read_text()
    (tmp_path / "public_ground_truth.csv").write_text(text)
    pairs = [line.split(",") for line in text.splitlines()[1:]]
    touch(tmp_path / "query_images", *(query for query, _ in pairs))
    touch(tmp_path / "reference_images", *(item for _, item in pairs if item), "R000000")
    found = disc21(str(tmp_path), data_root="elsewhere")
    assert len(found.split("query")) == 25000 and len(found.truth) == 4991
    labels = found.split("query").table["label"].to_pylist()
    assert sum(label.startswith("Q") for label in labels) == 25000 - 4991


def test_the_real_subset_is_read(shared, tmp_path):
    for name in ("subset_1_ground_truth.csv", "subset_1_references"):
        (tmp_path / name).write_bytes((shared / "formats" / f"disc21_{name}").read_bytes())
    touch(tmp_path / "query_images", *(shared / "formats" / "disc21_subset_1_queries").read_text().split())
    touch(tmp_path / "reference_images", *(tmp_path / "subset_1_references").read_text().split(), "R000000")
    cfg = composed("train", ["dataset=disc21_subset"])["dataset"]["disc21_subset"]
    found = disc21(str(tmp_path), cfg["ground_truth"], cfg["references"], data_root="elsewhere")
    assert Counter(found.splits.tolist()) == {"query": 4991, "index": 4991}
    assert found.num_classes == 4991 and len(found.truth) == 4991


def test_the_yaml_composes(raw):
    cfg = composed("train", ["dataset=disc21", f"dataset.disc21.root={raw}"])
    assert cfg["dataset"]["disc21"]["_target_"] == "guie.datasets.disc21.disc21"
