import io
import json
import pickle
import tarfile

import pytest

from guie.config.compose import composed
from guie.datasets import tar as module
from guie.datasets.tar import tar
from guie.errors import UserError


def write(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shard(number):
    return [
        member
        for i in range(4)
        for member in [
            (f"{number:04d}{i}.cls", f"{i % 2 + 2 * number}\n".encode()),
            (f"{number:04d}{i}.jpg", f"picture {number} {i}".encode()),
            (
                f"{number:04d}{i}.json",
                json.dumps({"label": "other", "sku": 100 + i, "name": f"s{i}"}).encode(),
            ),
        ]
    ]


@pytest.fixture
def raw(tmp_path):
    for number in range(3):
        write(tmp_path / "shards" / f"shop-{number:06d}.tar", shard(number))
    return tmp_path


def test_pictures_stay_inside_and_have_the_label_of_their_key(raw):
    found = tar("shards/shop-*.tar", "packaged", "train", data_root=str(raw))
    assert len(found) == 12 and found.label_names == list("012345")
    row = found.row(5)
    assert (row.file, row.entry, row.label) == ("shop-000001.tar", "00011.jpg", "3")
    assert found.read(5) == b"picture 1 1"
    assert pickle.loads(pickle.dumps(found)).read(11) == b"picture 2 3"
    again = tar("shards/shop-*.tar", "packaged", "train", data_root=str(raw))
    assert again.fingerprint() == found.fingerprint()


def test_the_list_is_read_once_and_again_when_an_archive_changes(raw, monkeypatch):
    pattern = "shards/shop-*.tar"
    first = tar(pattern, data_root=str(raw))
    with monkeypatch.context() as patch:
        patch.setattr(module, "pictures", None)
        assert tar(pattern, data_root=str(raw)).fingerprint() == first.fingerprint()
    write(raw / "shards" / "shop-000002.tar", shard(7))
    assert tar(pattern, data_root=str(raw)).fingerprint() != first.fingerprint()


def test_classes_are_held_out_by_share_and_seed(raw):
    found = tar("shards/*.tar", test_classes=0.5, data_root=str(raw))
    train, test = found.split("train").label_names, found.split("test").label_names
    assert len(train) == len(test) == 3 and not set(train) & set(test)
    assert tar("shards/*.tar", test_classes=0.0, data_root=str(raw)).split("test").label_names == []


@pytest.mark.parametrize(("key", "labels"), [("sku", ["100", "101", "102", "103"]), ("label", ["other"])])
def test_a_label_key_is_a_key_of_the_json(raw, key, labels):
    assert tar("shards/*.tar", label_key=key, data_root=str(raw)).label_names == labels


def test_without_cls_the_label_of_the_json_counts(tmp_path):
    members = [("a/x.1/0.seg.PNG", b"p"), ("a/x.1/0.json", b'{"label": 7}'), ("a/x.1/._0.jpg", b"")]
    write(tmp_path / "x.tgz", [*members, ("a/x.1/readme.txt", b"no picture")], "w:gz")
    found = tar("x.tgz", data_root=str(tmp_path))
    assert found.row(0).entry == "a/x.1/0.seg.PNG" and found.label_names == ["7"]
    assert found.read(0) == b"p"


@pytest.mark.parametrize(
    ("members", "key", "message"),
    [
        (
            [("1.jpg", b"")],
            None,
            r"x\.tar: no label for '1', which has jpg; accepted: 'label' in 1\.json, or 1\.cls",
        ),
        ([("1.jpg", b""), ("1.cls", b"3")], "sku", r"which has cls, jpg; accepted: 'sku' in 1\.json"),
        ([("1.jpg", b""), ("1.json", b'{"label": [1]}')], None, r"no label for '1'"),
        ([("1.jpg", b""), ("2.jpg", b""), ("1.cls", b"3")], None, r"no label for '1', which has jpg"),
        (
            [("1.jpg", b""), ("1.json", b"{")],
            None,
            r"member '1\.json': Expecting .*; accepted: a JSON object",
        ),
        ([("1.jpg", b""), ("1.cls", b"\xff")], None, r"member '1\.cls': byte 0 is not UTF-8"),
        (
            [("1.jpg", b""), ("1.png", b"")],
            None,
            r"'1' has 2 pictures \(1\.jpg, 1\.png\); accepted: one per key",
        ),
        ([("1.txt", b"")], None, r"no picture in 1 archives; accepted: \.jpg"),
        ([("1.jpg", b""), ("1.cls", b"a"), ("1.jpg", b"")], None, r"member '1\.jpg' for the second time"),
        ([("../1.jpg", b""), ("../1.cls", b"a")], None, r"member '\.\./1\.jpg' leaves the archive"),
        ([("1.jpg", b""), ("1.cls", b" ")], None, r"empty labels at"),
    ],
)
def test_mistakes_name_the_archive_and_the_member(tmp_path, members, key, message):
    write(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match=message):
        tar("x.tar", label_key=key, data_root=str(tmp_path))
    assert not list(tmp_path.glob(".guie/*.parquet"))


def test_half_an_archive_is_refused(raw):
    path = raw / "shards" / "shop-000001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"shop-000001\.tar: .*; accepted: the complete archive \(download"):
        tar("shards/*.tar", data_root=str(raw))


def test_a_pattern_must_find_archives(raw):
    with pytest.raises(
        UserError, match=r"dataset\.tar\.pattern: nothing at .*none\*; accepted: a glob pattern"
    ):
        tar("none*", data_root=str(raw))
    (raw / "shards" / "readme").touch()
    with pytest.raises(
        UserError, match=r"finds .*readme; accepted: names that end in \.tar, \.tar\.gz, \.tgz"
    ):
        tar("shards/*", data_root=str(raw))


def test_the_yaml_composes(raw):
    cfg = composed("train", ["dataset=tar", "dataset.tar.pattern=shards/*.tar"])
    assert cfg["dataset"]["tar"]["_target_"] == "guie.datasets.tar.tar"
