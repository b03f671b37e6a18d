import pytest

from guie.config.compose import composed
from guie.datasets.ifood import ifood
from guie.errors import UserError

CLASSES = "0 macaron\n1 beignet\n250 fish and chips\n"


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "class_list.txt").write_text(CLASSES)
    (tmp_path / "train_labels.csv").write_text("img_name,label\ntrain_101733.jpg,250\ntrain_000001.jpg,0\n")
    (tmp_path / "val_labels.csv").write_text("img_name,label\nval_004252.jpg,1\n")
    return tmp_path


def test_training_and_validation_are_read(raw):
    found = ifood(str(raw), data_root="x")
    assert found.files.tolist() == [
        "train_set/train_101733.jpg",
        "train_set/train_000001.jpg",
        "val_set/val_004252.jpg",
    ]
    assert found.splits.tolist() == ["train", "train", "val"] and found.domain_names == ["food"]
    assert found.label_names == ["0", "1", "250"]
    assert found.table["name"].to_pylist() == ["fish and chips", "macaron", "beignet"]


def test_verified_pictures_alone_need_no_other_list(raw):
    (raw / "train_labels.csv").unlink()
    found = ifood(str(raw), verified=True, data_root="x")
    assert found.files.tolist() == ["val_set/val_004252.jpg"] and found.splits.tolist() == ["train"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "class_list.txt",
            CLASSES + "macaron\n",
            r"class_list\.txt: line 4: 'macaron'; accepted: a new",
        ),
        ("class_list.txt", CLASSES + "1 again\n", r"class_list\.txt: line 4: '1 again'"),
        (
            "val_labels.csv",
            "img_name,label\nval_1.jpg,251\n",
            r"val_labels\.csv: line 2: label '251'",
        ),
        ("val_labels.csv", "img_name\nval_1.jpg\n", r"val_labels\.csv: no column 'label'"),
        ("train_labels.csv", "img_name,label\na.jpg,0,1\n", r"train_labels\.csv: line 2: 3 values"),
        ("train_labels.csv", "img_name,label\na.jpg,0\na.jpg,1\n", r"1 pictures listed twice"),
        ("train_labels.csv", "", r"train_labels\.csv: 0 bytes"),
    ],
)
def test_mistakes_name_the_file_and_the_line(raw, name, text, message):
    (raw / name).write_text(text)
    with pytest.raises(UserError, match=message):
        ifood(str(raw), data_root="x")


@pytest.mark.parametrize(("name", "verified"), [("ifood", False), ("ifood_verified", True)])
def test_the_yamls_compose(name, verified):
    node = composed("train", [f"dataset={name}"])["dataset"][name]
    assert node["_target_"] == "guie.datasets.ifood.ifood" and node["verified"] is verified
