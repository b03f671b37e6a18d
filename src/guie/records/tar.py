"""Tar archives by member name: memory-mapped, indexed once, checked as a whole when opened.

Nothing is ever unpacked to a path. An archive that could escape when others unpack it (absolute names, `..`,
links) is refused all the same: it is not what a data set is published as.
"""

from __future__ import annotations

import io
import mmap
import os
import tarfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from guie.errors import UserError
from guie.records.unpacked import DAMAGED, unpacked

TAR_ENDS = (".tar", ".tar.gz", ".tgz")
_GZIP = b"\x1f\x8b\x08"
_BLOCK = tarfile.BLOCKSIZE
_BATCH = 4096  # headers whose checksums are computed at once
_FILE, _FOLDER, _EXTENDED = b"0\0", b"5", b"x"
# what an extended header may say that changes where a member is or what it is called
_TELLING = (b"path=", b"size=", b"GNU.", b"SCHILY.", b"hdrcharset=", b"charset=")
_ACCEPTED = "accepted: the complete archive (download it again)"


class BadArchive(UserError):
    """An archive, or one member, is not what it should be; names both in one line."""


class Member(NamedTuple):
    """A plain file of an archive: `size` bytes from byte `start` of the (unpacked) archive."""

    name: str
    start: int
    size: int


class TarArchive:
    """Random access to the plain files of one archive, plain or gzip (recognised by its content).

    `archive.read(name)` returns a member's bytes; `archive.members()` yields all of them in order; `len` and
    `in` work. 24 bytes are kept for each member, whatever the length of its name. A gzip archive is unpacked
    into an unnamed temporary file by each process that opens it: plain archives are faster. Picklable: the
    copy opens the archive again.

    Raises:
        UserError: the archive cannot be opened.
        BadArchive: it is cut short, or has a member twice, a link, a device, or a name that leaves it.

    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._map = _mapped(self.path)
        members = list(self.members())
        keys = np.array([_key(member.name) for member in members], np.uint64)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._starts = np.array([member.start for member in members], np.int64)[order]
        self._sizes = np.array([member.size for member in members], np.int64)[order]
        twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if len(twice):
            name = members[order[twice[0] + 1]].name
            raise BadArchive(f"{self.path}: member {name!r} for the second time; accepted: each name once")

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return TarArchive, (self.path,)

    def read(self, name: str) -> bytes:
        """Return the bytes of member `name`; KeyError where there is none."""
        at = self._find(name)
        if at is None:
            raise KeyError(name)
        start = int(self._starts[at])
        return self._map[start : start + int(self._sizes[at])]

    def members(self) -> Iterator[Member]:
        """Yield the members in the archive's order; names are not kept, so the headers are read again."""
        usual = _usual_members(self._map)
        return _walk(self.path, self._map) if usual is None else iter(usual)

    def _find(self, name: str) -> int | None:
        at = int(np.searchsorted(self._keys, _key(name)))
        return at if at < len(self._keys) and self._keys[at] == _key(name) else None


def _key(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))


def _usual_members(content: mmap.mmap | bytes) -> list[Member] | None:
    """Read the headers that writers of data sets make: plain files and folders with short names.

    Several times as fast as tarfile. Returns None for anything else, a mistake included: `_walk` decides.
    """
    members: list[Member] = []
    headers: list[bytes] = []
    at, extended = 0, False
    try:
        while (header := content[at : at + _BLOCK])[:1] != b"\0":
            headers.append(header)
            if len(headers) == _BATCH:
                _check_sums(headers)
                headers.clear()
            kind, size = header[156:157], _number(header[124:136])
            at += _BLOCK
            if kind == _EXTENDED and not extended:
                if any(word in content[at : at + size] for word in _TELLING):
                    return None
            elif kind in _FILE:
                members.append(Member(_usual_name(header), at, size))
            elif kind != _FOLDER or size:
                return None
            extended = kind == _EXTENDED
            at += -(-size // _BLOCK) * _BLOCK
        _check_sums(headers)
    except (ValueError, IndexError):  # a number or a name of another form, or the end of what is there
        return None
    return members if header == bytes(_BLOCK) and not extended else None


def _number(field: bytes) -> int:
    """Return an octal number, blanks or NUL behind it; ValueError for other ways to write one."""
    return int(field.rstrip(b" \0"), 8)


def _usual_name(header: bytes) -> str:
    """Return the name in a header; ValueError where it needs a closer look."""
    name = header[:100].split(b"\0", 1)[0].decode()
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{header[345:500].split(bytes(1), 1)[0].decode()}/{name}"
    if not name or name.endswith("/") or _leaves(name):
        raise ValueError(name)
    return name


def _check_sums(headers: list[bytes]) -> None:
    """Raise ValueError unless the bytes of each header, the sum's own as blanks, have the sum it states."""
    data = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, _BLOCK)
    found = data.sum(1, dtype=np.uint32) - data[:, 148:156].sum(1, dtype=np.uint32) + 8 * ord(" ")
    if found.tolist() != [_number(header[148:156]) for header in headers]:
        raise ValueError("a checksum is wrong")


def _leaves(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return name.startswith(("/", "\\")) or ".." in parts or parts[0][1:2] == ":"


def _walk(path: Path, content: mmap.mmap | bytes) -> Iterator[Member]:
    """Yield the plain files from header to header; folders are passed over."""
    file: Any = io.BytesIO(content) if isinstance(content, bytes) else content
    file.seek(0)
    last = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
                last = info.name
                if not info.isdir():
                    yield _checked(path, info, len(content))
            end = archive.offset
    except (tarfile.TarError, ValueError) as error:  # ValueError: a seek beyond the end of the mapping
        where = f" after member {last!r}" if last else ""
        raise BadArchive(f"{path}: no whole tar archive{where} ({error}); {_ACCEPTED}") from None
    # tarfile takes a damaged header, and the end of a file that is cut between members, for the end
    if content[end : end + _BLOCK] != bytes(_BLOCK):
        fault = "truncated" if end >= len(content) else f"damaged at byte {end}"
        raise BadArchive(f"{path}: {fault} after member {last!r}; {_ACCEPTED}")


def _checked(path: Path, info: tarfile.TarInfo, size: int) -> Member:
    if info.issym() or info.islnk():
        fault = f"is a link to {info.linkname!r}; accepted: plain files"
    elif not info.isreg() or info.issparse():
        fault = "is no plain file; accepted: plain files"
    elif _leaves(info.name):
        fault = "leaves the archive; accepted: relative names without '..'"
    elif not _is_text(info.name):
        fault = "has a name that is not UTF-8; accepted: UTF-8"
    elif info.offset_data + info.size > size:
        fault = f"is cut short; {_ACCEPTED}"
    else:
        return Member(info.name, info.offset_data, info.size)
    raise BadArchive(f"{path}: member {info.name!r} {fault}")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mapped(path: Path) -> mmap.mmap | bytes:
    """Map the archive, unpacked when it is gzip; an empty file cannot be mapped and is empty bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_GZIP))
            file.seek(0)
            if head == _GZIP:
                return _unpacked(path, file)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if head else b""
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; accepted: a readable tar archive") from None


def _unpacked(path: Path, file: IO[bytes]) -> mmap.mmap | bytes:
    try:
        return unpacked(file)
    except DAMAGED as error:
        raise BadArchive(f"{path}: damaged gzip data ({error}); {_ACCEPTED}") from None
