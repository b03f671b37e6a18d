"""Members of tar archives by name; archives that are damaged or could do harm are refused in one line."""

import gzip
import io
import pickle
import tarfile

import pytest

from guie.errors import UserError
from guie.images import BadImage
from guie.records import tar as module
from guie.records.pictures import Pictures
from guie.records.tar import BadArchive, TarArchive

LONG = "deep/" * 40 + "a.jpg"
CONTENT = {"a.jpg": b"first", "b/c d.jpg": b"x" * 1500, "b/é.png": b"", LONG: b"far away", "./e.jpg": b"dot"}


def write(path, content=None, form=tarfile.PAX_FORMAT, infos=(), mode="w"):
    with tarfile.open(path, mode, format=form) as archive:
        folder = tarfile.TarInfo("b")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in (CONTENT if content is None else content).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in infos:
            archive.addfile(info, io.BytesIO(b"y" * info.size))
    return path


def special(name, kind=tarfile.REGTYPE, target="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz"])
def test_members_are_read_by_name_in_any_order(tmp_path, form, name):
    archive = TarArchive(write(tmp_path / name, form=form, mode="w" if name == "x.tar" else "w:gz"))
    assert len(archive) == len(CONTENT) and LONG in archive and "b" not in archive
    assert {key: archive.read(key) for key in reversed(CONTENT)} == CONTENT
    assert [member.name for member in archive.members()] == list(CONTENT)
    assert [member.size for member in archive.members()] == [len(data) for data in CONTENT.values()]
    with pytest.raises(KeyError, match="none"):
        archive.read("none.jpg")


def test_a_gzip_archive_is_recognised_by_its_content(tmp_path):
    write(tmp_path / "x.tgz", mode="w:gz").rename(tmp_path / "x.tar")
    assert TarArchive(tmp_path / "x.tar").read("a.jpg") == b"first"


def test_a_copy_by_pickle_opens_the_archive_again(tmp_path):
    archive = pickle.loads(pickle.dumps(TarArchive(write(tmp_path / "x.tar"))))
    assert archive.read(LONG) == b"far away"
    assert len(pickle.dumps(archive)) < 500


def test_an_archive_without_members_is_empty(tmp_path):
    assert len(TarArchive(write(tmp_path / "x.tar", {}))) == 0


def test_every_length_of_a_cut_archive_is_refused(tmp_path):
    whole = write(tmp_path / "whole.tar").read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    path = tmp_path / "cut.tar"
    for length in [0, 1, 511, *range(512, end + 1, 512), *range(700, end, 1024)]:
        path.write_bytes(whole[:length])
        with pytest.raises(BadArchive, match=r"^[^\n]*cut\.tar: [^\n]*download it again\)$"):
            TarArchive(path)
    path.write_bytes(whole[: end + 512])
    assert len(TarArchive(path)) == len(CONTENT)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_cut_gzip_archive_is_refused(tmp_path, share):
    whole = write(tmp_path / "x.tgz", mode="w:gz").read_bytes()
    (tmp_path / "x.tgz").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BadArchive, match=r"x\.tgz: damaged gzip data \(.*\); accepted: the complete"):
        TarArchive(tmp_path / "x.tgz")


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = write(tmp_path / "x.tar", {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"})
    content = bytearray(path.read_bytes())
    header = content.index(b"b.jpg")
    content[header + 1] ^= 1
    path.write_bytes(content)
    with tarfile.open(path) as archive:  # the reason for the check
        assert archive.getnames() == ["b", "a.jpg"]
    with pytest.raises(
        BadArchive, match=rf"x\.tar: damaged at byte {header} after member 'a\.jpg'; accepted"
    ):
        TarArchive(path)


def both_ways(path):
    """Return the members by the fast way (None where it gives up) and by tarfile (the mistake's text)."""
    content = path.read_bytes()
    try:
        walked = list(module._walk(path, content))
    except BadArchive as error:
        walked = str(error)
    return module._usual_members(content), walked


def usual(path, form, mtime=0, names=("a.jpg", "shop/0/b.cls", "é.json")):
    with tarfile.open(path, "w", format=form) as archive:
        folder = special("shop", tarfile.DIRTYPE)
        for info in (folder, *(special(name, size=number * 400) for number, name in enumerate(names))):
            info.mtime = mtime
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return path


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("mtime", [0, 1700000000.25])
def test_usual_archives_are_read_the_fast_way(tmp_path, form, mtime):
    names = ["a.jpg", "shop/0/b.cls", "c.json"] + ["d/" * 40 + "e" * 90] * (form == tarfile.USTAR_FORMAT)
    fast, walked = both_ways(usual(tmp_path / "x.tar", form, mtime, names))
    assert fast == walked and [member.name for member in fast] == names


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_left_to_tarfile(tmp_path, form):
    fast, walked = both_ways(usual(tmp_path / "x.tar", form, names=["a.jpg", LONG]))
    assert fast is None and [member.name for member in walked] == ["a.jpg", LONG]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_no_changed_byte_of_a_header_makes_the_fast_way_differ(tmp_path, form):
    path = usual(tmp_path / "x.tar", form, 1700000000.25 if form == tarfile.PAX_FORMAT else 0)
    whole = path.read_bytes()
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    refused = 0
    for at in (header + place for header in headers[1:4] for place in range(512)):
        if whole[at] == 0 and at % 13:  # most of a header is empty: some of it is enough
            continue
        for value in (0, ord("1"), whole[at] ^ 128):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            fast, walked = both_ways(path)
            assert fast is None or fast == walked
            refused += isinstance(walked, str)
    assert refused


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (special("a.jpg", size=3), r"member 'a\.jpg' for the second time; accepted: each name once"),
        (
            special("l.jpg", tarfile.SYMTYPE, "a.jpg"),
            r"member 'l\.jpg' is a link to 'a\.jpg'; accepted: plain",
        ),
        (special("l.jpg", tarfile.LNKTYPE, "a.jpg"), r"member 'l\.jpg' is a link to 'a\.jpg'"),
        (special("f.jpg", tarfile.FIFOTYPE), r"member 'f\.jpg' is no plain file"),
        (special("/etc/x.jpg"), r"member '/etc/x\.jpg' leaves the archive; accepted: relative names"),
        (special("../x.jpg"), r"member '\.\./x\.jpg' leaves the archive"),
        (special("a/../../x.jpg"), r"member 'a/\.\./\.\./x\.jpg' leaves"),
        (special("a\\..\\x.jpg"), r"member '.*' leaves the archive"),
        (special("C:\\x.jpg"), r"member '.*' leaves the archive"),
    ],
)
def test_what_could_do_harm_is_refused_with_archive_and_member(tmp_path, info, message):
    path = write(tmp_path / "x.tar", infos=[info], form=tarfile.GNU_FORMAT)
    with pytest.raises(BadArchive, match=rf"^[^\n]*x\.tar: {message}"):
        TarArchive(path)


def test_a_name_that_is_not_text_is_refused(tmp_path):
    path = write(tmp_path / "x.tar", infos=[special("\udcff.jpg")], form=tarfile.GNU_FORMAT)
    with pytest.raises(BadArchive, match="has a name that is not UTF-8"):
        TarArchive(path)


@pytest.mark.parametrize(
    "content",
    [b"<html>not found</html>" * 100, b"", gzip.compress(b"")],
    ids=["a page of the web", "nothing", "gzip of nothing"],  # gzip holds the time, ids must not
)
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(BadArchive, match=r"x\.tar: no whole tar archive \(.*\); accepted"):
        TarArchive(tmp_path / "x.tar")


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.tar: No such file or directory; accepted: a readable tar"):
        TarArchive(tmp_path / "x.tar")


def test_pictures_read_members_where_the_file_is_an_archive(tmp_path):
    write(tmp_path / "x.TAR")
    write(tmp_path / "y.tgz", mode="w:gz")
    pictures = pickle.loads(pickle.dumps(Pictures(tmp_path, max_open=1)))
    for file in ("x.TAR", "y.tgz", "x.TAR"):
        assert pictures.read(file, LONG) == b"far away"
    with pytest.raises(UserError, match=r"x\.TAR: no member 'z\.jpg'; accepted: a name that the archive has"):
        pictures.read("x.TAR", "z.jpg")
    with pytest.raises(BadImage, match=r"z\.tar: No such file"):
        pictures.read("z.tar", "a.jpg")
    (tmp_path / "x2.tar").write_bytes((tmp_path / "x.TAR").read_bytes()[:600])
    with pytest.raises(BadImage, match=r"x2\.tar: .*accepted: the complete archive"):
        pictures.read("x2.tar", "a.jpg")
