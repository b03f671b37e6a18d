import pytest

from guie.config.compose import composed
from guie.datasets.gpr1200 import gpr1200
from guie.errors import UserError


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("0_1306.jpg", "10_7b.jpg", "2_4520.jpg", "200_a_b.JPG", "400_x.jpg", "600_x.jpg"):
        (tmp_path / "images" / name).touch()
    for name in ("999_chair_final_1.JPG", "1199_nm0000001.jpg", "notes.txt"):
        (tmp_path / "images" / name).touch()
    return tmp_path


def test_the_number_in_front_is_the_category_and_its_block_the_domain(raw):
    found = gpr1200(str(raw), data_root="elsewhere")
    assert found.table["label"].to_pylist() == ["0", "2", "10", "200", "400", "600", "999", "1199"]
    parts = ["landmark"] * 3 + ["nature", "sketch", "instance", "packaged", "face"]
    assert found.table["domain"].to_pylist() == parts
    assert found.files[3] == "images/200_a_b.JPG" and set(found.splits) == {"test"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("1200_x.jpg", r"images/1200_x\.jpg: category 1200; accepted: categories 0 to 1199"),
        ("cat.jpg", r"images/cat\.jpg: a name without its number; accepted: names like 0_1306\.jpg"),
    ],
)
def test_names_of_another_form_are_refused(raw, name, message):
    (raw / "images" / name).touch()
    with pytest.raises(UserError, match=message):
        gpr1200(str(raw), data_root="elsewhere")


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"images: No such file or directory; accepted: the complete"):
        gpr1200(str(tmp_path), data_root="elsewhere")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "._0_1.jpg").touch()
    with pytest.raises(UserError, match=r"images: no picture; accepted: \.jpg"):
        gpr1200(str(tmp_path), data_root="elsewhere")


def test_the_yaml_composes(raw):
    cfg = composed("train", ["dataset=gpr1200", f"dataset.gpr1200.root={raw}"])
    assert cfg["dataset"]["gpr1200"]["_target_"] == "guie.datasets.gpr1200.gpr1200"
