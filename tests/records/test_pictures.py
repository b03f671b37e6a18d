"""A picture's bytes by name: files and records, and names that must not leave the root."""

import pickle
from pathlib import Path

import pytest
import tfrecord

from guie.errors import UserError
from guie.images import BadImage
from guie.records import pictures as module
from guie.records.pictures import Pictures


def write_shard(path: Path, key: str, count: int = 3) -> None:
    writer = tfrecord.TFRecordWriter(str(path))
    for number in range(count):
        writer.write({key: (f"{path.name} {number}".encode(), "byte"), "label": (number, "int")})
    writer.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.jpg").write_bytes(b"plain")
    write_shard(folder / "a.tfrec", "image/encoded")
    write_shard(folder / "b.tfrec", "image_bytes")
    write_shard(folder / "none.tfrec", "something")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return folder


def test_files_and_records_are_read_by_name(root: Path) -> None:
    pictures = Pictures(root)
    assert pictures.read("sub/a.jpg") == b"plain"
    assert pictures.read("sub/a.jpg", "") == b"plain"
    assert pictures.read("a.tfrec", "2") == b"a.tfrec 2"
    assert pictures.read("b.tfrec", "0") == b"b.tfrec 0"


@pytest.mark.parametrize("entry", [None, "0"])
@pytest.mark.parametrize(
    "file",
    ["../secret.jpg", "sub/../../secret.jpg", "/etc/passwd", "sub\\..\\..\\secret.jpg", "a\0.jpg", ".."],
)
def test_a_name_that_leaves_the_root_is_refused(root: Path, file: str, entry: str | None) -> None:
    with pytest.raises(UserError, match="accepted: a relative path without"):
        Pictures(root).read(file, entry)


@pytest.mark.parametrize("entry", [None, "0"])
def test_a_link_that_leaves_the_root_is_refused(root: Path, entry: str | None) -> None:
    (root / "link.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "folder").symlink_to(root.parent)
    for file in ("link.jpg", "folder/secret.jpg"):
        with pytest.raises(UserError, match="is a link to"):
            Pictures(root).read(file, entry)


def test_without_the_check_the_secret_would_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pictures, "_path", lambda self, file: self.root / file)
    assert Pictures(root).read("../secret.jpg") == b"secret"


def test_a_link_inside_the_root_and_a_linked_root_are_fine(root: Path) -> None:
    (root / "link.jpg").symlink_to(root / "sub" / "a.jpg")
    (root.parent / "elsewhere").symlink_to(root)
    assert Pictures(root).read("link.jpg") == b"plain"
    assert Pictures(root.parent / "elsewhere").read("sub/a.jpg") == b"plain"


@pytest.mark.parametrize(
    ("file", "entry", "reason"),
    [
        ("gone.jpg", None, "gone.jpg: No such file"),
        ("sub", None, "sub: Is a directory"),
        ("gone.tfrec", "0", "gone.tfrec: No such file"),
        ("sub", "0", "sub: No such file"),
        ("none.tfrec", "1", r"record 1 has keys \['label', 'something'\]; a picture is in image/encoded or"),
        ("sub/a.jpg", "0", "record 0 at byte 0: truncated"),
    ],
)
def test_what_is_missing_or_damaged_is_a_bad_image(
    root: Path, file: str, entry: str | None, reason: str
) -> None:
    with pytest.raises(BadImage, match=reason):
        Pictures(root).read(file, entry)


def test_a_damaged_record_is_a_bad_image_and_its_neighbours_are_not(root: Path) -> None:
    data = bytearray((root / "a.tfrec").read_bytes())
    data[data.find(b"a.tfrec 1")] ^= 1
    (root / "a.tfrec").write_bytes(data)
    with pytest.raises(BadImage, match=r"record 1 at byte \d+: .*checksum"):
        Pictures(root).read("a.tfrec", "1")
    assert Pictures(root).read("a.tfrec", "2") == b"a.tfrec 2"


@pytest.mark.parametrize("entry", ["-1", "1.5", "one", "٣", "3"])
def test_an_entry_that_cannot_exist_is_a_user_error(root: Path, entry: str) -> None:
    with pytest.raises(UserError, match="accepted"):
        Pictures(root).read("a.tfrec", entry)


def test_only_the_last_shards_stay_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = module.TFRecordFile
    monkeypatch.setattr(module, "TFRecordFile", lambda path, **k: opened.append(path.name) or real(path, **k))
    for name in "cd":
        write_shard(root / f"{name}.tfrec", "image_bytes")
    pictures = Pictures(root, max_open=2)
    for name in "aabacabd":
        assert pictures.read(f"{name}.tfrec", "1") == f"{name}.tfrec 1".encode()
    assert opened == [f"{name}.tfrec" for name in "abcbd"]
    assert len(pictures._open) == 2


def test_a_worker_gets_its_own_files(root: Path) -> None:
    pictures = Pictures(root, max_open=5)
    pictures.read("a.tfrec", "0")
    copy = pickle.loads(pickle.dumps(pictures))
    assert not copy._open
    assert pictures._open
    assert copy.read("a.tfrec", "1") == b"a.tfrec 1"
    assert copy.max_open == 5
