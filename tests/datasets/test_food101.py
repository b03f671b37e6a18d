import pytest

from guie.config.compose import composed
from guie.datasets.food101 import food101
from guie.errors import UserError


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "train.txt").write_text("apple_pie/1005649\napple_pie/1014775\nwaffles/971843\n")
    (tmp_path / "meta" / "test.txt").write_text("apple_pie/1011328\nwaffles/942007")  # no end of line
    return tmp_path


def test_both_lists_are_read(raw):
    found = food101(str(raw), data_root="x")
    assert found.files[0] == "images/apple_pie/1005649.jpg"
    assert found.splits.tolist() == ["train"] * 3 + ["test"] * 2
    assert found.label_names == ["apple_pie", "waffles"] and found.domain_names == ["food"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.txt", "apple_pie/1\n1005649\n", r"train\.txt: line 2: '1005649'; accepted: dish/number"),
        ("train.txt", "apple_pie/\n", r"train\.txt: line 1: 'apple_pie/'"),
        ("test.txt", "", r"test\.txt: 0 bytes"),
        ("test.txt", "apple_pie/1005649\n", r"1 pictures listed twice"),
    ],
)
def test_mistakes_name_the_file_and_the_line(raw, name, text, message):
    (raw / "meta" / name).write_text(text)
    with pytest.raises(UserError, match=message):
        food101(str(raw), data_root="x")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"meta/train\.txt: missing; accepted: the complete download"):
        food101(str(tmp_path), data_root="x")


def test_the_yaml_composes():
    cfg = composed("train", ["dataset=food101"])
    assert cfg["dataset"]["food101"]["_target_"] == "guie.datasets.food101.food101"
