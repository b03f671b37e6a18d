import shutil

import pytest
import tfrecord

from guie.config.compose import composed
from guie.datasets.products10k import products10k
from guie.errors import UserError

TRAIN = "name,class,group\n0.jpg,0,0\n1.jpg,0,0\n200.jpg,9690,359\n"
TEST = "name,class,Usage\n0.jpg,0,Public\n7.jpg,9690,Private\n"


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "test_kaggletest.csv").write_text(TEST)
    return tmp_path


def write_shard(path, labels):
    writer = tfrecord.TFRecordWriter(str(path))
    for label in labels:
        writer.write({"image/encoded": (b"\xff\xd8", "byte"), "image/class/label": (label, "int")})
    writer.close()


def test_both_lists_are_read(raw):
    found = products10k(str(raw), data_root="elsewhere")
    assert found.files.tolist() == ["train/0.jpg", "train/1.jpg", "train/200.jpg", "test/0.jpg", "test/7.jpg"]
    assert found.splits.tolist() == ["train"] * 3 + ["test"] * 2
    assert found.label_names == ["0", "9690"] and found.domain_names == ["packaged"]
    assert found.table["group"].to_pylist() == ["0", "0", "359", "0", "359"]


def test_as_a_gallery_the_test_pictures_search_those_of_train(raw):
    found = products10k(str(raw), gallery=True, data_root="elsewhere")
    assert found.splits.tolist() == ["index"] * 3 + ["query"] * 2


def test_shards_are_listed_record_by_record(tmp_path):
    write_shard(tmp_path / "guie-products10k-train-00-2.tfrec", [1000, 10690])
    write_shard(tmp_path / "guie-products10k-train-01-1.tfrec", [1000])
    write_shard(tmp_path / "guie-products10k-valid-00-1.tfrec", [1000])
    found = products10k(str(tmp_path), data_root="elsewhere")
    assert [found.place(row) for row in range(len(found))] == [
        ("guie-products10k-train-00-2.tfrec", "0"),
        ("guie-products10k-train-00-2.tfrec", "1"),
        ("guie-products10k-train-01-1.tfrec", "0"),
    ]
    assert found.label_names == ["1000", "10690"] and set(found.splits) == {"train"}
    assert found.read(0) == b"\xff\xd8"


def test_shards_that_tensorflow_wrote_are_listed(shared, tmp_path):
    for shard in (shared / "formats" / "tfrecords").glob("guie-products10k-*.tfrec"):
        shutil.copy(shard, tmp_path)
    found = products10k(str(tmp_path), data_root="elsewhere")
    assert len(found) == 24 + 16
    assert found.row(0).label == "1011" and found.read(0).startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: (raw / "test_kaggletest.csv").unlink(), r"test_kaggletest\.csv: missing"),
        (lambda raw: (raw / "train.csv").write_text(TRAIN + "3.jpg,1\n"), r"train\.csv: line 5: 2 values"),
        (lambda raw: (raw / "train.csv").write_text("name,label\n"), r"train\.csv: no column 'class'"),
        (lambda raw: (raw / "train.csv").write_text(TRAIN + "0.jpg,1,1\n"), r"1 pictures listed twice"),
        (
            lambda raw: write_shard(raw / "guie-products10k-train-00-7097.tfrec", [1000]),
            r"train-00-7097\.tfrec: 1 records; accepted: 7097, as its name says",
        ),
        (
            lambda raw: write_shard(raw / "guie-glr2021-train-00-2.tfrec", [1000, 10691]),
            r"train-00-2\.tfrec: record 1 has label 10691; accepted: 1000\.\.10690",
        ),
        (
            lambda raw: (raw / "guie-products10k-train-00-7.tfrec").write_bytes(b"\x10" + bytes(20)),
            r"train-00-7\.tfrec: record 0 at byte 0",
        ),
    ],
)
def test_mistakes_name_the_file_and_the_line(raw, change, message):
    change(raw)
    with pytest.raises(UserError, match=message):
        products10k(str(raw), data_root="elsewhere")


def test_shards_cannot_be_a_gallery(tmp_path):
    write_shard(tmp_path / "guie-products10k-train-00-1.tfrec", [1000])
    with pytest.raises(UserError, match=r"dataset\.products10k\.gallery: true for the shards .* no test"):
        products10k(str(tmp_path), gallery=True, data_root="elsewhere")


@pytest.mark.parametrize(("name", "gallery"), [("products10k", False), ("products10k_retrieval", True)])
def test_the_yamls_compose(name, gallery):
    node = composed("train", [f"dataset={name}"])["dataset"][name]
    assert node["_target_"] == "guie.datasets.products10k.products10k"
    assert node["gallery"] is gallery
