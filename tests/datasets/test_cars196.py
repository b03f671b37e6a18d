import numpy as np
import pytest
from scipy.io import savemat

from guie.config.compose import composed
from guie.datasets.cars196 import cars196
from guie.errors import UserError

NAMES = [f"Make Model {number} 2012" for number in range(1, 197)]
NAMES[0], NAMES[195] = "AM General Hummer SUV 2000", "smart fortwo Convertible 2012"
CELLS = np.array(NAMES, dtype=object).reshape(1, -1)
SIDES = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def struct(rows, fields):
    """Return a 1 x N struct array as MATLAB writes it: each value a small matrix."""
    made = np.zeros((1, len(rows)), dtype=[(name, object) for name in fields])
    for i, row in enumerate(rows):
        for name, value in zip(fields, row, strict=True):
            made[0, i][name] = value
    return made


@pytest.fixture
def single(tmp_path):
    fields = ("relative_im_path", *SIDES, "class", "test")
    rows = [
        ("car_ims/000001.jpg", 112, 7, 853, 717, 1, 0),
        ("car_ims/008144.jpg", 1, 1, 10, 20, 98, 1),
        ("car_ims/016185.jpg", 5, 6, 7, 8, 196, 1),
    ]
    savemat(tmp_path / "cars_annos.mat", {"annotations": struct(rows, fields), "class_names": CELLS})
    return tmp_path


@pytest.fixture
def devkit(tmp_path):
    (tmp_path / "devkit").mkdir()
    train = [(39, 116, 569, 375, 14, "00001.jpg"), (1, 1, 2, 2, 99, "08144.jpg")]
    test = [(30, 52, 246, 147, 181, "00001.jpg")]
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    savemat(tmp_path / "devkit" / "cars_train_annos.mat", {"annotations": struct(train, fields)})
    savemat(tmp_path / "cars_test_annos_withlabels.mat", {"annotations": struct(test, fields)})
    savemat(tmp_path / "devkit" / "cars_meta.mat", {"class_names": CELLS})
    return tmp_path


def test_the_single_annotation_file_is_split_by_class_and_not_by_its_own_mark(single):
    found = cars196(str(single), data_root="elsewhere")
    assert found.files.tolist() == ["car_ims/000001.jpg", "car_ims/008144.jpg", "car_ims/016185.jpg"]
    assert found.splits.tolist() == ["train", "train", "test"]
    assert found.table["label"].to_pylist() == ["1", "98", "196"]
    assert found.table["label_name"].to_pylist()[::2] == [NAMES[0], NAMES[195]]
    assert found.table["box"].to_pylist() == ["111,6,742,711", "0,0,10,20", "4,5,3,3"]


@pytest.mark.parametrize("above", ["", "devkit/"])
def test_the_two_annotation_files_of_the_devkit_are_joined(devkit, above):
    (devkit / "cars_test_annos_withlabels.mat").rename(devkit / f"{above}cars_test_annos_withlabels.mat")
    found = cars196(str(devkit), data_root="elsewhere")
    assert found.files.tolist() == ["cars_train/00001.jpg", "cars_train/08144.jpg", "cars_test/00001.jpg"]
    assert found.splits.tolist() == ["train", "test", "test"]
    assert found.table["box"].to_pylist()[0] == "38,115,531,260"


def test_annotations_without_test_classes_are_not_enough(devkit):
    (devkit / "cars_test_annos_withlabels.mat").rename(devkit / "devkit" / "cars_test_annos.mat")
    with pytest.raises(
        UserError, match=r"withlabels\.mat: missing; accepted: this file, as devkit/cars_test"
    ):
        cars196(str(devkit), data_root="elsewhere")


@pytest.mark.parametrize("content", [b"<html>moved</html>" * 20, b"short"])
def test_what_is_not_a_mat_file_is_refused(single, content):
    (single / "cars_annos.mat").write_bytes(content)
    with pytest.raises(UserError, match=r"cars_annos\.mat: cannot be read \(.*\); accepted: the original"):
        cars196(str(single), data_root="elsewhere")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_half_a_mat_file_is_refused(single, share):
    whole = (single / "cars_annos.mat").read_bytes()
    (single / "cars_annos.mat").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"cars_annos\.mat: (cannot be read|no variable)"):
        cars196(str(single), data_root="elsewhere")


def test_another_mat_file_is_refused(single):
    savemat(single / "cars_annos.mat", {"annotations": struct([("a.jpg", 1)], ("fname", "class"))})
    with pytest.raises(UserError, match=r"annotations has no 'bbox_x1'; accepted: the original"):
        cars196(str(single), data_root="elsewhere")


def test_an_empty_folder_names_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"devkit/cars_train_annos\.mat: missing; accepted: the complete"):
        cars196(str(tmp_path), data_root="elsewhere")


def test_the_yaml_composes(single):
    cfg = composed("train", ["dataset=cars196", f"dataset.cars196.root={single}"])
    assert cfg["dataset"]["cars196"]["_target_"] == "guie.datasets.cars196.cars196"
