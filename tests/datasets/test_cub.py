import pytest

from guie.config.compose import composed
from guie.datasets.cub import cub
from guie.errors import UserError

IMAGES = """1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg
2 001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg
5865 101.White_Pelican/White_Pelican_0063_96534.jpg
11788 200.Common_Yellowthroat/Common_Yellowthroat_0055_190967.jpg
"""
LABELS = "1 1\n2 1\n5865 101\n11788 200\n"
PARTS = "1 0\n2 1\n5865 1\n11788 0\n"
BOXES = "1 60.0 27.0 325.0 304.0\n2 139.0 30.0 153.0 264.0\n5865 0.0 1.5 10.0 20.0\n11788 5.0 6.0 7.0 8.0\n"


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "images.txt").write_text(IMAGES)
    (tmp_path / "image_class_labels.txt").write_text(LABELS)
    (tmp_path / "train_test_split.txt").write_text(PARTS)
    (tmp_path / "bounding_boxes.txt").write_text(BOXES)
    return tmp_path


def test_the_first_hundred_classes_are_trained_on(raw):
    found = cub(str(raw), data_root="elsewhere")
    assert found.splits.tolist() == ["train", "train", "test", "test"]
    assert found.table["label"].to_pylist() == ["1", "1", "101", "200"]
    assert found.table["label_name"].to_pylist()[2] == "101.White_Pelican"
    assert found.files[0] == "images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"
    assert found.table["box"].to_pylist()[:3] == ["60,27,325,304", "139,30,153,264", "0,1.5,10,20"]


def test_the_official_parts_share_classes(raw):
    assert cub(str(raw), "seen", data_root="elsewhere").splits.tolist() == ["test", "train", "train", "test"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("images.txt", None, r"images\.txt: missing; accepted: the complete"),
        ("images.txt", IMAGES + "9\n", r"images\.txt: line 5: '9'; accepted: an id and 1 file name"),
        ("image_class_labels.txt", "1 one\n", r"labels\.txt: line 1: '1 one'; accepted: an id and 1 number"),
        ("image_class_labels.txt", LABELS + "1 1\n", r"line 5: id 1 for the second time; accepted: each id"),
        ("train_test_split.txt", PARTS[:8], r"split\.txt: 2 ids are only here or only in images\.txt \(such"),
        ("bounding_boxes.txt", BOXES[:10], r"boxes\.txt: line 1: '1 60.0 27\.'; accepted: an id and 4 num"),
        ("bounding_boxes.txt", "", r"bounding_boxes\.txt: 0 bytes"),
    ],
)
def test_mistakes_name_the_file_and_the_line(raw, file, text, message):
    if text is None:
        (raw / file).unlink()
    else:
        (raw / file).write_text(text)
    with pytest.raises(UserError, match=message):
        cub(str(raw), data_root="elsewhere")


def test_the_yaml_composes(raw):
    cfg = composed("train", ["dataset=cub", f"dataset.cub.root={raw}", "dataset.cub.classes=seen"])
    assert cfg["dataset"]["cub"]["classes"] == "seen"
