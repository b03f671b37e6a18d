import pytest

from guie.config.compose import composed
from guie.datasets.numbered import copydays, holidays, ukbench
from guie.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("above", ["jpg/", ""])
def test_the_first_of_each_hundred_asks_for_the_others_of_holidays(tmp_path, above):
    touch(tmp_path, *(f"{above}{number}.jpg" for number in (100000, 100001, 100002, 149900, 149901)))
    found = holidays(str(tmp_path), data_root="elsewhere")
    assert found.table["label"].to_pylist() == ["1000"] * 3 + ["1499"] * 2
    assert found.splits.tolist() == ["query", "index", "index", "query", "index"]
    assert found.files[0] == f"{above}100000.jpg"


@pytest.mark.parametrize("above", ["full/", ""])
def test_four_consecutive_pictures_are_an_object_of_ukbench(tmp_path, above):
    touch(tmp_path, *(f"{above}ukbench{number:05d}.jpg" for number in (*range(5), 10199)))
    found = ukbench(str(tmp_path), data_root="elsewhere")
    assert found.table["label"].to_pylist() == ["0"] * 4 + ["1", "2549"]
    assert set(found.splits) == {"test"}


@pytest.mark.parametrize("prefix", ["", "copydays_"])
def test_copies_ask_for_their_original_of_copydays(tmp_path, prefix):
    touch(tmp_path, f"{prefix}original/200000.jpg", f"{prefix}original/200100.jpg")
    touch(tmp_path, f"{prefix}strong/200001.jpg", f"{prefix}strong/200102.jpg")
    touch(tmp_path, "jpegqual/3/200000.jpg", "crops/80/200100.jpg", ".cache/200300.jpg")
    found = copydays(str(tmp_path), data_root="elsewhere")
    rows = zip(*(found.table[c].to_pylist() for c in ("file", "label", "split", "group")), strict=True)
    assert sorted(rows) == sorted(
        [
            (f"{prefix}original/200000.jpg", "200000", "index", "original"),
            (f"{prefix}original/200100.jpg", "200100", "index", "original"),
            (f"{prefix}strong/200001.jpg", "200000", "query", "strong"),
            (f"{prefix}strong/200102.jpg", "200100", "query", "strong"),
            ("jpegqual/3/200000.jpg", "200000", "query", "jpegqual/3"),
            ("crops/80/200100.jpg", "200100", "query", "crops/80"),
        ]
    )


def test_names_of_another_form_are_refused(tmp_path):
    touch(tmp_path, "jpg/100000.jpg", "jpg/beach.jpg")
    with pytest.raises(UserError, match=r"jpg/beach\.jpg: a name without its number; accepted: .*100001"):
        holidays(str(tmp_path), data_root="elsewhere")
    with pytest.raises(UserError, match=r"no picture; accepted: \.jpg"):
        ukbench(str(tmp_path), data_root="elsewhere")


def test_copydays_needs_originals_and_copies(tmp_path):
    touch(tmp_path, "strong/200000.jpg")
    with pytest.raises(UserError, match=r"no folder original; accepted: original/ and one or more of strong"):
        copydays(str(tmp_path), data_root="elsewhere")
    (tmp_path / "strong").rename(tmp_path / "original")
    with pytest.raises(UserError, match=r"no folder an attack, such as strong; accepted: original/"):
        copydays(str(tmp_path), data_root="elsewhere")


@pytest.mark.parametrize("name", ["holidays", "ukbench", "copydays"])
def test_the_yamls_compose(name):
    cfg = composed("train", [f"dataset={name}"])
    assert cfg["dataset"][name]["_target_"] == f"guie.datasets.numbered.{name}"
