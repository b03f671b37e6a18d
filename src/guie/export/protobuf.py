"""Just enough of protobuf to read and seal an ONNX file: its outermost fields, without onnx or torch.

A message is its fields one after another, so what is written behind an ONNX file belongs to it. guie writes
its facts there, as the last entry of `metadata_props`: what lies before can be hashed, and is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

# https://protobuf.dev/programming-guides/encoding: the wire types of numbers and of what has a length.
_NUMBER, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2  # onnx.proto: ModelProto, StringStringEntryProto


class Entry(NamedTuple):
    """One entry of `metadata_props`; in the file it begins at byte `start`."""

    start: int
    key: str
    value: str


def append_metadata(path: Path, key: str, value: str) -> None:
    """Write an entry of `metadata_props` behind an ONNX file."""
    inside = b"".join(_field(number, text.encode()) for number, text in ((_KEY, key), (_VALUE, value)))
    with path.open("ab") as file:
        file.write(_field(_METADATA_PROPS, inside))


def metadata(path: Path) -> list[Entry]:
    """Return the entries of an ONNX file; ValueError where it is none, or is cut short."""
    found = []
    with path.open("rb") as file:
        for start, number, length in _fields(file, os.fstat(file.fileno()).st_size):
            if number == _METADATA_PROPS:
                found.append(_entry(start, file, length))
    return found


def _entry(start: int, file: BinaryIO, length: int) -> Entry:
    texts = {}
    for _, number, size in _fields(file, file.tell() + length):
        texts[number] = file.read(size).decode()
    return Entry(start, texts.get(_KEY, ""), texts.get(_VALUE, ""))


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (where a field begins, its number, the bytes that it has from here on) up to byte `end`."""
    while (start := file.tell()) < end:
        tag = _number(file)
        length = _length(file, tag & 7)
        content = file.tell()
        if content + length > end or not tag >> 3:
            raise ValueError(f"no ONNX file, or one cut short at byte {start}")
        yield start, tag >> 3, length
        file.seek(content + length)


def _length(file: BinaryIO, kind: int) -> int:
    if kind == _LENGTH:
        return _number(file)
    if kind == _NUMBER:
        _number(file)
        return 0
    if kind in (_FIXED32, _FIXED64):
        return 4 if kind == _FIXED32 else 8
    raise ValueError(f"no ONNX file: a field of kind {kind} at byte {file.tell()}")


def _number(file: BinaryIO) -> int:
    """Read seven bits of each byte, the lowest first; the last byte is below 128."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError(f"no ONNX file, or one cut short at byte {file.tell()}")


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
