"""Known data sets that are folders of pictures: Hotel-ID, ObjectNet, the 130k."""

import json
import os
from pathlib import Path

import pytest

from guie.config.compose import composed
from guie.datasets.guie130k import CLASSES, guie130k
from guie.datasets.hotel_id import hotel_id
from guie.datasets.objectnet import objectnet
from guie.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]


def pictures(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def labels_of(manifest):
    return [manifest.label_names[label] for label in manifest.labels]


def test_hotels_of_2021_come_from_the_list(tmp_path):
    (tmp_path / "train.csv").write_text(
        "image,chain,hotel_id,timestamp\n"
        "d6da58e3f4ad9cc9.jpg,0,36363,2018-03-20 19:10:09\n"
        "e4d9d8e4a4a3b6b6.jpg,6,54715,2017-04-05 01:46:04\n"
    )
    (tmp_path / "train_images").mkdir()
    found = hotel_id(str(tmp_path), data_root="x")
    assert found.files.tolist() == [
        "train_images/0/d6da58e3f4ad9cc9.jpg",
        "train_images/6/e4d9d8e4a4a3b6b6.jpg",
    ]
    assert labels_of(found) == ["36363", "54715"] and found.domain_names == ["hotel"]
    assert found.table["super_label"].to_pylist() == ["0", "6"] and set(found.splits) == {"train"}


def test_hotels_of_2022_are_folders(tmp_path):
    pictures(tmp_path, "train_images/1000/b.jpg", "train_images/1000/a.jpg", "train_images/57/c.jpg")
    pictures(tmp_path, "train_masks/1/m.png", "train_images/57/notes.txt")
    found = hotel_id(str(tmp_path), data_root="x")
    assert found.files.tolist() == [
        "train_images/1000/a.jpg",
        "train_images/1000/b.jpg",
        "train_images/57/c.jpg",
    ]
    assert labels_of(found) == ["1000", "1000", "57"]


def test_hotel_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"train_images: missing; accepted: the complete download"):
        hotel_id(str(tmp_path), data_root="x")
    (tmp_path / "train_images").mkdir()
    with pytest.raises(UserError, match=r"train_images: no pictures; accepted: a folder for each hotel"):
        hotel_id(str(tmp_path), data_root="x")
    (tmp_path / "train.csv").write_text("image,hotel_id\na.jpg,1\n")
    with pytest.raises(UserError, match=r"train\.csv: no column 'chain' \(found image, hotel_id\)"):
        hotel_id(str(tmp_path), data_root="x")


@pytest.fixture
def objects(tmp_path):
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / "folder_to_objectnet_label.json").write_text(
        json.dumps({"mixing_salad_bowl": "Mixing / Salad Bowl", "chair": "Chair", "squeegee": "Squeegee"})
    )
    pictures(tmp_path, "images/mixing_salad_bowl/0a1b.png", "images/chair/2c.png", "images/chair/1c.png")
    return tmp_path


def test_objects_are_named_by_the_mapping(objects):
    found = objectnet(str(objects), data_root="x")
    assert found.files.tolist() == [
        "images/chair/1c.png",
        "images/chair/2c.png",
        "images/mixing_salad_bowl/0a1b.png",
    ]
    assert labels_of(found) == ["Chair", "Chair", "Mixing / Salad Bowl"]
    assert set(found.splits) == {"test"} and found.domain_names == ["object"]


def test_all_folders_of_the_real_mapping_are_objects(tmp_path):
    shared = Path(os.environ.get("GUIE_SHARED", PROJECT.parent / "shared"))
    mapping = shared / "formats" / "folder_to_objectnet_label.json"
    if not mapping.exists():
        pytest.skip(f"no real mapping at {mapping} (set GUIE_SHARED)")
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / mapping.name).write_bytes(mapping.read_bytes())
    names = json.loads(mapping.read_text())
    pictures(tmp_path, *(f"images/{folder}/0.png" for folder in names))
    found = objectnet(str(tmp_path), data_root="x")
    assert len(found) == found.num_classes == 313
    assert set(found.label_names) == set(names.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda raw: pictures(raw, "images/sofa/1.png"),
            r"images/sofa: not in folder_to_objectnet_label\.json; accepted: the 3 folders named there",
        ),
        (
            lambda raw: (raw / "mappings" / "folder_to_objectnet_label.json").write_text('{\n"chair": "Ch'),
            r"folder_to_objectnet_label\.json: line 2: .*; accepted: the complete JSON file",
        ),
        (
            lambda raw: (raw / "mappings" / "folder_to_objectnet_label.json").write_text("[]"),
            r"folder_to_objectnet_label\.json: list; accepted: an object",
        ),
        (
            lambda raw: (raw / "mappings" / "folder_to_objectnet_label.json").unlink(),
            r"folder_to_objectnet_label\.json: missing",
        ),
    ],
)
def test_object_mistakes_name_the_file(objects, change, message):
    change(objects)
    with pytest.raises(UserError, match=message):
        objectnet(str(objects), data_root="x")


@pytest.fixture
def eleven(tmp_path):
    pictures(tmp_path, *(f"{name}/{number}.jpg" for name in reversed(CLASSES) for number in (0, 1)))
    return tmp_path


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("prefixed", [False, True])
def test_the_130k_have_their_classes_in_the_fixed_order(eleven, listed, prefixed):
    if listed:
        names = [(name, f"{name}/{number}.jpg") for name in reversed(CLASSES) for number in (0, 1)]
        lines = [f"{label},{file if prefixed else file.split('/')[1]}\n" for label, file in names]
        (eleven / "train.csv").write_text("label,image_name\n" + "".join(lines))
    found = guie130k(str(eleven), data_root="x")
    assert found.label_names == list(
        "apparel artwork cars dishes furniture illustrations landmark meme packaged storefronts toys".split()
    )
    assert sorted(zip(found.files, labels_of(found), strict=True)) == [
        (f"{name}/{number}.jpg", name) for name in CLASSES for number in (0, 1)
    ]
    assert "storefront" in found.domain_names and set(found.splits) == {"train"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: (raw / "meme").rename(raw / "memes"), r"meme: missing; accepted: the complete"),
        (lambda raw: (raw / "toys").rename(raw / "toys2"), r"toys: missing"),
        (lambda raw: pictures(raw, "food/1.jpg"), r"food: unknown class; accepted: apparel, artwork"),
        (
            lambda raw: [path.unlink() for path in (raw / "cars").iterdir()],
            r"cars: no picture of cars; accepted: pictures of all 11",
        ),
        (
            lambda raw: (raw / "train.csv").write_text("label,image_name\ntoy,0.jpg\n"),
            r"train\.csv: line 2: label 'toy'; accepted: apparel",
        ),
        (
            lambda raw: (raw / "train.csv").write_text("label,image_name\ntoys,0.jpg\n"),
            r"train\.csv: no picture of apparel",
        ),
    ],
)
def test_mistakes_in_the_130k_name_the_class(eleven, change, message):
    change(eleven)
    with pytest.raises(UserError, match=message):
        guie130k(str(eleven), data_root="x")


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("hotel_id", "guie.datasets.hotel_id.hotel_id"),
        ("objectnet", "guie.datasets.objectnet.objectnet"),
        ("guie130k", "guie.datasets.guie130k.guie130k"),
    ],
)
def test_the_yamls_compose(name, target):
    cfg = composed("train", [f"dataset={name}", f"dataset.{name}.root=somewhere"])
    assert cfg["dataset"][name]["_target_"] == target and cfg["dataset"][name]["root"] == "somewhere"
