import pytest

from guie.config.compose import composed
from guie.datasets.sop import sop
from guie.errors import UserError

TRAIN = """image_id class_id super_class_id path
1 1 1 bicycle_final/111085122871_0.JPG
2 1 1 bicycle_final/111085122871_1.JPG
3 2 1 bicycle_final/111265328556_0.JPG
"""
TEST = """image_id class_id super_class_id path
1 11319 1 bicycle_final/251952414262_0.JPG
2 11319 7 lamp_final/251952414262_1.JPG
"""


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "Ebay_train.txt").write_text(TRAIN)
    (tmp_path / "Ebay_test.txt").write_text(TEST)
    return tmp_path


def test_both_lists_are_read(raw):
    found = sop(str(raw), data_root="elsewhere")
    assert found.splits.tolist() == ["train"] * 3 + ["test"] * 2
    assert found.files[0] == "bicycle_final/111085122871_0.JPG"
    assert found.split("train").label_names == ["1", "2"] and found.split("test").label_names == ["11319"]
    assert found.table["super_label"].to_pylist()[-2:] == ["bicycle", "lamp"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: (raw / "Ebay_test.txt").unlink(), r"Ebay_test\.txt: missing; accepted: the complete"),
        (lambda raw: (raw / "Ebay_test.txt").write_text(""), r"Ebay_test\.txt: 0 bytes"),
        (
            lambda raw: (raw / "Ebay_train.txt").write_text(TRAIN + "4 2 1\n"),
            r"Ebay_train\.txt: line 5: 3 values",
        ),
        (lambda raw: (raw / "Ebay_train.txt").write_text("id path\n1 x.JPG\n"), r"no column 'image_id'"),
        (lambda raw: (raw / "Ebay_train.txt").write_bytes(b"\xff\xfe\x00"), r"byte 0 is not UTF-8"),
        (
            lambda raw: (raw / "Ebay_test.txt").write_text(TEST + TEST.splitlines()[1] + "\n"),
            r"1 pictures listed twice",
        ),
    ],
)
def test_mistakes_name_the_file_and_the_line(raw, change, message):
    change(raw)
    with pytest.raises(UserError, match=message):
        sop(str(raw), data_root="elsewhere")


def test_the_yaml_composes(raw):
    cfg = composed("train", ["dataset=sop", f"dataset.sop.root={raw}"])
    assert cfg["dataset"]["sop"]["_target_"] == "guie.datasets.sop.sop"
