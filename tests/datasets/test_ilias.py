import io
import json
import tarfile

import pytest

from guie.config.compose import composed
from guie.datasets.ilias import ilias
from guie.errors import UserError

CORE = {
    "bold_bimp_000/query/Q000_00": [[10, 20, 30, 40]],
    "bold_bimp_000/pos/P000_00": [[318, 91, 182, 190]],
    "bold_bimp_000/pos/P000_01": [[5, 50, 10, 10], [100, 0, 20, 30]],
    "zippy_zootlenibble_999/query/Q999_00": [[0, 0, 5, 5]],
    "zippy_zootlenibble_999/pos/P999_04": None,
}
BOXES = ["10,20,30,40", "318,91,182,190", "5,0,115,60", "0,0,5,5", None]


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_distractors(path):
    write_tar(path, [("3/0a1.jpg", b"a"), ("3/0a1.json", b"{}"), ("3/0a2.jpg", b"b")])


@pytest.fixture
def portal(tmp_path):
    for name, boxes in CORE.items():
        path = tmp_path / "ilias_core" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        if boxes:
            text = "".join(" ".join(map(str, box)) + "\n" for box in boxes)
            path.with_name(f"{path.stem}_bbox.txt").write_text(text)
        path.with_name(f"{path.stem}_url.txt").write_text("https://example.org\n")
    (tmp_path / "ilias_core/bold_bimp_000/query/T000.txt").write_text("a blue bird of clay")
    write_distractors(tmp_path / "yfcc100m" / "yfcc100m_0000.tar")
    return tmp_path


@pytest.fixture
def shards(tmp_path):
    members = {"queries-img": [], "db": []}
    for name, boxes in CORE.items():
        kind = "queries-img" if "/query/" in name else "db"
        members[kind].append((f"{name}.jpg", name.encode()))
        if boxes:
            members[kind].append((f"{name}.bbox.json", json.dumps(boxes).encode()))
    for kind, content in members.items():
        write_tar(tmp_path / f"ilias-core-{kind}-000000.tar", content)
    write_distractors(tmp_path / "mini_ilias_yfcc100m-000000.tar")
    return tmp_path


@pytest.mark.parametrize("release", ["portal", "shards"])
def test_both_releases_give_the_same_pictures(request, release):
    raw = request.getfixturevalue(release)
    found = ilias(str(raw), data_root="elsewhere")
    rows = {}
    for i in range(len(found)):
        row, box = found.row(i), found.table["box"][i].as_py()
        rows[found.read(i).decode()] = (row.label, row.split, box)
    expected = {
        name: (name.split("/")[0], "query" if "/query/" in name else "index", box)
        for name, box in zip(CORE, BOXES, strict=True)
    }
    assert rows == expected | {name: ("distractor", "index", None) for name in "ab"}
    assert found.domain_names == ["instance"]
    assert len(ilias(str(raw), distractors=False, data_root="elsewhere")) == len(CORE)


def test_mistakes_are_named(portal):
    (portal / "ilias_core/bold_bimp_000/pos/P000_01_bbox.txt").write_text("1 2 3\n")
    with pytest.raises(
        UserError, match=r"P000_01_bbox\.txt: \[\['1', '2', '3'\]\]; accepted: one or more boxes"
    ):
        ilias(str(portal), data_root="elsewhere")
    (portal / "ilias_core/bold_bimp_000/pos/P000_01_bbox.txt").unlink()
    (portal / "ilias_core/bold_bimp_000/pos/photo.jpg").touch()
    with pytest.raises(UserError, match=r"ilias_core: 'bold_bimp_000/pos/photo\.jpg'; accepted: names like"):
        ilias(str(portal), data_root="elsewhere")


def test_half_a_shard_is_refused(shards):
    path = shards / "mini_ilias_yfcc100m-000000.tar"
    path.write_bytes(path.read_bytes()[:1600])
    with pytest.raises(UserError, match=r"mini_ilias_yfcc100m-000000\.tar: .*accepted: the complete archive"):
        ilias(str(shards), data_root="elsewhere")
    write_tar(
        shards / "ilias-core-db-000000.tar",
        [("a_000/pos/P000_00.jpg", b""), ("a_000/pos/P000_00.bbox.json", b"[[")],
    )
    with pytest.raises(UserError, match=r"member 'a_000/pos/P000_00\.bbox\.json': Expecting value"):
        ilias(str(shards), distractors=False, data_root="elsewhere")


def test_what_was_not_downloaded_is_named(shards):
    (shards / "mini_ilias_yfcc100m-000000.tar").unlink()
    with pytest.raises(
        UserError, match=r"no yfcc100m/\*\.tar and no mini.*; accepted: some of them, or distr"
    ):
        ilias(str(shards), data_root="elsewhere")
    (shards / "ilias-core-db-000000.tar").unlink()
    with pytest.raises(UserError, match=r"no pos/P000_00\.jpg of any object; accepted: ilias_core/, or"):
        ilias(str(shards), distractors=False, data_root="elsewhere")


@pytest.mark.parametrize("name", ["ilias", "ilias_core"])
def test_the_yamls_compose(name):
    node = composed("train", [f"dataset={name}"])["dataset"][name]
    assert node["_target_"] == "guie.datasets.ilias.ilias"
