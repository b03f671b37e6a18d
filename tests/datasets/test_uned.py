import json
from collections import Counter

import pytest
import tfrecord

from guie.config.compose import composed
from guie.datasets.uned import uned
from guie.errors import UserError


def write_shard(path, ids, key="class_id"):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = tfrecord.TFRecordWriter(str(path))
    for number, value in enumerate(ids):
        picture = (f"{path.name} {number}".encode(), "byte")
        name = (f"sop/lamp_final/{number}.JPG".encode(), "byte")
        writer.write(
            {"image_bytes": picture, "key": name} | ({key: (value, "int")} if value is not None else {})
        )
    writer.close()


@pytest.fixture
def records(tmp_path):
    for domain in ("cars", "sop"):
        for split, ids in (("train", [0, 0, 3]), ("val", [1]), ("test", [7, 7])):
            write_shard(tmp_path / "tfds" / domain / split / f"{domain}.{split}.tfrecord", ids)
    folder = tmp_path / "tfds" / "gldv2"
    for number in range(2):
        write_shard(folder / "train" / f"gldv2.train_clean.tfrecord-{number:05d}-of-00002", [5, number])
    write_shard(folder / "val" / "gldv2.val_train.tfrecord-00000-of-00001", [2])
    write_shard(folder / "test" / "gldv2.test.tfrecord-00000-of-00001", [[11, 12], 13])
    write_shard(folder / "index" / "gldv2.index.tfrecord-00000-of-00001", [11, -1, None])
    for split in ("train", "small_train", "index"):
        name = "met.train" if split == "index" else f"met.{split}"
        write_shard(tmp_path / "tfds" / "met" / split / f"{name}.tfrecord", [20, 21])
    write_shard(tmp_path / "tfds" / "met" / "test" / "met.test.tfrecord", [20])
    return tmp_path


@pytest.fixture
def infos(tmp_path):
    lists = {
        "cars/train": [("cars/car_ims/000001.jpg", 0)],
        "cars/test": [("cars/car_ims/008145.jpg", 98), ("cars/car_ims/008146.jpg", 98)],
        "gldv2/test": [("gldv2/test/0/0/1/0016d1.jpg", [4, 9])],
        "gldv2/index": [("gldv2/index/0/0/0/000.jpg", [9]), ("gldv2/index/0/0/0/001.jpg", [])],
        "met/small_index": [("met/MET/1/0.jpg", 1)],
    }
    for name, rows in lists.items():
        path = tmp_path / "info_files" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([{"path": file, "class_id": ids} for file, ids in rows]))
    return tmp_path


def test_records_of_train_and_val(records):
    found = uned(str(records), data_root="elsewhere")
    assert Counter(found.splits.tolist()) == {"train": 12, "val": 3}
    assert found.domain_names == ["cars", "gldv2", "met", "sop"]
    row = next(
        row for row in map(found.row, range(len(found))) if "-00001-of-" in row.file and row.entry == "1"
    )
    assert row.file == "tfds/gldv2/train/gldv2.train_clean.tfrecord-00001-of-00002"
    assert (row.label, row.domain) == ("gldv2/1", "gldv2")
    assert found.read(0) == b"cars.train.tfrecord 0"
    assert "cars/0" in found.label_names and "sop/0" in found.label_names


def test_records_of_test_ask_their_own_set_or_its_index(records):
    found = uned(str(records), "test", data_root="elsewhere")
    columns = [found.table[name].to_pylist() for name in ("domain", "split", "label", "class_ids")]
    assert list(zip(*columns, strict=True)) == [
        ("cars", "test", "cars/7", "7"),
        ("cars", "test", "cars/7", "7"),
        ("gldv2", "index", "gldv2/11", "11"),
        ("gldv2", "index", "distractor", ""),
        ("gldv2", "index", "distractor", ""),
        ("gldv2", "query", "gldv2/11", "11 12"),
        ("gldv2", "query", "gldv2/13", "13"),
        ("met", "index", "met/20", "20"),
        ("met", "index", "met/21", "21"),
        ("met", "query", "met/20", "20"),
        ("sop", "test", "sop/7", "7"),
        ("sop", "test", "sop/7", "7"),
    ]


def test_info_files_serve_where_there_are_no_records(infos):
    train = uned(str(infos), data_root="elsewhere")
    assert train.files.tolist() == ["images/cars/car_ims/000001.jpg"] and train.row(0).entry is None
    found = uned(str(infos), "test", data_root="elsewhere")
    assert found.splits.tolist() == ["test", "test", "index", "index", "query"]
    assert found.table["label"].to_pylist()[2:] == ["gldv2/9", "distractor", "gldv2/4"]
    assert found.table["class_ids"].to_pylist()[4] == "4 9"


def test_the_file_that_tensorflow_wrote_is_read(shared, tmp_path):
    (tmp_path / "sop.test.tfrecord").symlink_to(shared / "formats" / "tfrecords" / "sop.test.tfrecord")
    found = uned(str(tmp_path), "test", data_root="elsewhere")
    expected = json.loads((shared / "formats" / "tfrecords" / "expected.json").read_text())
    labels = [f"sop/{label}" for label, _ in expected["sop.test.tfrecord"]["label_and_sha256_16"]]
    assert found.table["label"].to_pylist() == labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: (p / "tfds/gldv2/train/gldv2.train_clean.tfrecord-00000-of-00002").unlink(),
            r"train_clean\.tfrecord-00000-of-00002: missing; accepted: all 2 shards",
        ),
        (
            lambda p: (p / "tfds/cars/train/cars.train.tfrecord").write_bytes(b"12345"),
            r"cars\.train\.tfrecord: record 0 at byte 0: truncated",
        ),
        (
            lambda p: write_shard(p / "tfds/cars/val/cars.val.tfrecord", [1, None]),
            r"cars\.val\.tfrecord: record 1: class_id None; accepted: one number from 0 or several",
        ),
        (
            lambda p: write_shard(p / "tfds/cars/val/cars.val.tfrecord", [3], "label"),
            r"cars\.val\.tfrecord: record 0: class_id None",
        ),
        (
            lambda p: write_shard(p / "tfds/cars.tfrecord", [3]),
            r"cars\.tfrecord: a name without set and split; accepted: names like sop\.test\.tfrecord",
        ),
        (
            lambda p: write_shard(p / "tfds/cars.other.tfrecord", [3]),
            r"cars\.other\.tfrecord: split 'other'; accepted: train, val, test, index",
        ),
    ],
)
def test_mistakes_in_records_name_the_file_and_the_record(records, change, message):
    change(records)
    with pytest.raises(UserError, match=message):
        uned(str(records), data_root="elsewhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"path": "a.jpg", "cla', r"train\.json: Unterminated string.*; accepted: the complete JSON"),
        ('{"path": 1}', r"train\.json: a JSON dict; accepted: a list of path and class_id"),
        ('[{"path": "a.jpg"}]', r"train\.json: item 0: {'path': 'a\.jpg'}; accepted: path and class_id"),
        ('[{"path": "a.jpg", "class_id": []}]', r"train\.json: item 0: class_id \[\]; accepted: one number"),
        ('[{"path": "../../a.jpg", "class_id": 1}]', r"paths that leave the root"),
    ],
)
def test_mistakes_in_info_files_name_the_file_and_the_item(infos, text, message):
    (infos / "info_files" / "cars" / "train.json").write_text(text)
    with pytest.raises(UserError, match=message):
        uned(str(infos), data_root="elsewhere")


def test_an_empty_folder_and_a_missing_part_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no <set>\.<split>\.tfrecord and no info_files/"):
        uned(str(tmp_path), data_root="elsewhere")
    write_shard(tmp_path / "sop.test.tfrecord", [1])
    with pytest.raises(UserError, match=r"no train or val of any set; accepted: files of part=train"):
        uned(str(tmp_path), data_root="elsewhere")


@pytest.mark.parametrize(("name", "part"), [("uned", None), ("uned_test", "test")])
def test_the_yamls_compose(name, part):
    node = composed("train", [f"dataset={name}"])["dataset"][name]
    assert node["_target_"] == "guie.datasets.uned.uned" and node.get("part", "train") == (part or "train")
