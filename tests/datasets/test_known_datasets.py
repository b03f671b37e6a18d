import hashlib
import json

import numpy as np
import pytest

from guie.datasets.folder import folder, held_out
from guie.datasets.omniglot import omniglot, omniglot_one_shot, one_shot_runs
from guie.datasets.shared import shared_multidomain
from guie.datasets.table import csv
from guie.datasets.tfrecord import tfrecord
from guie.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_a_folder_per_class_holds_classes_out_by_share_and_seed(tmp_path):
    touch(
        tmp_path, *(f"p/c{c}/{i}.jpg" for c in range(10) for i in range(2)), "p/c0/notes.txt", "p/loose.jpg"
    )
    manifest = folder("p", domain="d", test_classes=0.3, data_root=str(tmp_path))
    assert len(manifest) == 20 and manifest.num_classes == 10 and manifest.domain_names == ["d"]
    train, test = manifest.split("train"), manifest.split("test")
    assert not set(train.label_names) & set(test.label_names) and len(test.label_names) == 3
    other = folder("p", test_classes=0.3, seed=1, data_root=str(tmp_path)).split("test").label_names
    assert other != test.label_names


def test_folders_named_after_splits_are_splits(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/deep/2.png", "test/a/3.png")
    manifest = folder(str(tmp_path), data_root="elsewhere")
    assert manifest.splits.tolist() == ["test", "train", "train"]
    assert manifest.label_names == ["a", "b"] and manifest.labels.tolist() == [0, 0, 1]


def test_folder_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"dataset.folder.root: no folder"):
        folder("nowhere", data_root=str(tmp_path))
    with pytest.raises(UserError, match=r"dataset.folder.root: no picture"):
        folder(str(tmp_path), data_root="")
    with pytest.raises(UserError, match=r"dataset.folder.test_classes: 1.5"):
        folder(str(tmp_path), test_classes=1.5, data_root="")


def test_a_held_out_label_stays_held_out_when_others_come():
    few = held_out([f"c{i}" for i in range(100)], 0.2, 0)
    more = held_out([f"c{i}" for i in range(110)], 0.2, 0)
    assert len(few) == 20 and len(few & more) >= 15


def test_two_columns_are_enough(tmp_path):
    (tmp_path / "list.csv").write_text("picture,sku\nx/a.jpg,1\nx/b.jpg,2\n")
    manifest = csv(
        "list.csv", file_column="picture", label_column="sku", split="test", data_root=str(tmp_path)
    )
    assert manifest.root == tmp_path and manifest.splits.tolist() == ["test", "test"]
    with pytest.raises(UserError, match=r"dataset.csv.split: 'tests'; accepted: train"):
        csv("list.csv", split="tests", data_root=str(tmp_path))


def test_no_shard_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"dataset.tfrecord.pattern: nothing at .*\*.tfrec; accepted: a glob"):
        tfrecord("x/*.tfrec", data_root=str(tmp_path))


def test_tfrecord_shards_give_the_labels_and_bytes_that_tensorflow_wrote(shared, tmp_path):
    place = shared / "formats" / "tfrecords"
    manifest = tfrecord(f"{place}/*tf*rec*", data_root=str(tmp_path))
    expected = json.loads((place / "expected.json").read_text())
    wanted = [
        tuple(map(str, pair)) for name in sorted(expected) for pair in expected[name]["label_and_sha256_16"]
    ]
    found = [
        (manifest.row(i).label, hashlib.sha256(manifest.read(i)).hexdigest()[:16])
        for i in range(len(manifest))
    ]
    assert found == wanted
    again = tfrecord(f"{place}/*tf*rec*", data_root=str(tmp_path))
    assert again.fingerprint() == manifest.fingerprint()


def test_a_record_without_a_label_is_named(shared, tmp_path):
    with pytest.raises(UserError, match=r"record 0 has keys .*class_id.*; accepted: a label in sku"):
        tfrecord(f"{shared}/formats/tfrecords/sop*", label_key="sku", data_root=str(tmp_path))


def test_the_shared_protocol_has_the_published_counts_and_keeps_labels_apart(shared, tmp_path):
    manifest = shared_multidomain(str(shared / "data"), data_root=str(tmp_path))
    counts = {split: len(manifest.split(split)) for split in ("train", "query", "index")}
    assert counts == {"train": 11188, "query": 2207, "index": 4784}
    assert len(manifest.domain_names) == 6
    tested = set(manifest.split("query", "index").label_names)
    assert not tested & set(manifest.split("train").label_names)
    assert len(shared_multidomain(str(shared / "data"), ["logo"], data_root=str(tmp_path))) == 1908


def test_omniglot_trains_on_small1_alone(shared, tmp_path):
    manifest = omniglot(str(shared / "data" / "omniglot"), data_root=str(tmp_path))
    train, test = manifest.split("train"), manifest.split("test")
    assert len({name.split("/")[0] for name in train.label_names}) == 5
    assert not set(train.label_names) & set(test.label_names)
    assert len(train) + len(test) == 4840


def test_omniglot_has_the_twenty_official_runs(shared):
    root = shared / "data" / "omniglot"
    runs = one_shot_runs(root)
    assert len(runs) == 20
    for run in runs:
        assert len(run.training) == len(run.test) == len(set(run.training)) == 20
        assert sorted(run.answers) == run.training
        assert all((root / file).is_file() for file in run.training + run.test)
    manifest = omniglot_one_shot(str(root), data_root="")
    assert len(manifest) == 800 and manifest.num_classes == 400
    assert (np.bincount(manifest.labels) == 2).all()


def test_a_run_that_names_a_picture_it_does_not_have_is_refused(tmp_path):
    touch(tmp_path, "one_shot_runs/run01/training/class01.png", "one_shot_runs/run01/test/item01.png")
    lines = tmp_path / "one_shot_runs" / "run01" / "class_labels.txt"
    lines.write_text("run01/test/item01.png run01/training/class02.png\n")
    with pytest.raises(
        UserError, match=r"class_labels.txt: line 'run01/test/item01.png run01/training/class02"
    ):
        one_shot_runs(tmp_path)
    with pytest.raises(UserError, match=r"omniglot root: no "):
        one_shot_runs(tmp_path / "none")
