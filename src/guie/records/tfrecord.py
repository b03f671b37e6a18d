"""TFRecord files by record number: memory-mapped, checked, without protobuf and without an index file.

A record is `length uint64 | masked CRC32C of the length | payload | masked CRC32C of the payload`, little
endian; the payload is usually a serialised `tf.train.Example`.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from crc32c import crc32c

from guie.errors import UserError
from guie.records.unpacked import DAMAGED, unpacked

Feature = list[bytes] | list[int] | list[float]

_LENGTH_BYTES = 12  # before the payload: length and its CRC
_FRAME_BYTES = 16  # around the payload
_TAG_1, _TAG_2 = 0x0A, 0x12  # protobuf: field 1 and field 2, each with a length in front
_READ_LENGTH = struct.Struct("<Q").unpack_from
_READ_HEADER = struct.Struct("<QI").unpack_from
_READ_CRC = struct.Struct("<I").unpack_from


class BadRecord(UserError):
    """A TFRecord file, or one record, is not what it says; names file, record number and byte offset."""


class TFRecordFile:
    """Random access to the records of one file, plain or gzip (recognised by its content).

    `len(file)` records; `file[i]` is the i-th Example as `{key: list of bytes, int or float}`;
    `file.payload(i)` its bytes. A gzip file is unpacked into an unnamed temporary file. Picklable: the
    copy opens the file again. Raises UserError when the file cannot be opened and BadRecord when lengths
    do not fit the file or (with `verify`) a checksum is wrong.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True):
        self.path = Path(path)
        self.verify = verify
        self._map = _mapped(self.path)
        self._starts = self._index()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Feature]:
        payload = self.payload(index)
        try:
            return parse_example(payload)
        except ValueError as error:
            raise self._bad(index, int(self._starts[index]), str(error)) from None

    def __iter__(self) -> Iterator[dict[str, Feature]]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.path, self.verify)

    def payload(self, index: int) -> bytes:
        """Return the bytes of record `index` (0-based). Raises IndexError, and BadRecord as the class."""
        if not 0 <= index < len(self._starts):
            raise IndexError(f"{self.path}: record {index}; accepted: 0..{len(self._starts) - 1}")
        start = int(self._starts[index])
        header = self._map[start : start + _LENGTH_BYTES]
        length, length_crc = _READ_HEADER(header)
        end = start + _LENGTH_BYTES + length
        payload = self._map[start + _LENGTH_BYTES : end]  # copied once, then checked and parsed in cache
        if self.verify:
            if _masked(crc32c(header[:8])) != length_crc:
                raise self._bad(index, start, "the length's checksum is wrong")
            if _masked(crc32c(payload)) != _READ_CRC(self._map, end)[0]:
                raise self._bad(index, start, "the payload's checksum is wrong")
        return payload

    def _index(self) -> np.ndarray:
        """Return (N,) int64 offsets of the records by hopping from length to length."""
        data, size, at = self._map, len(self._map), 0
        starts: list[int] = []
        add, last = starts.append, size - _FRAME_BYTES
        while at <= last:
            add(at)
            at += _READ_LENGTH(data, at)[0] + _FRAME_BYTES
        if at != size:
            raise self._first_fault(starts, size)
        return np.array(starts, dtype=np.int64)

    def _first_fault(self, starts: list[int], size: int) -> BadRecord:
        """Name the record where hopping went wrong: a damaged length may show only records later."""
        for index, start in enumerate(starts):
            length, crc = _READ_HEADER(self._map, start)
            if _masked(crc32c(self._map[start : start + 8])) != crc:
                return self._bad(index, start, f"the length {length} has a wrong checksum")
            if start + length + _FRAME_BYTES > size:
                return self._bad(index, start, f"length {length} does not fit the file of {size} bytes")
        at = starts[-1] + _READ_LENGTH(self._map, starts[-1])[0] + _FRAME_BYTES if starts else 0
        return self._bad(len(starts), at, f"truncated: {size - at} bytes left, a record has at least 16")

    def _bad(self, index: int, offset: int, reason: str) -> BadRecord:
        return BadRecord(f"{self.path}: record {index} at byte {offset}: {reason}")


def parse_example(data: bytes) -> dict[str, Feature]:
    """Return the features of a serialised `tf.train.Example`; raises ValueError when it is not one.

    Lists may be packed or not; unknown fields are skipped; of a repeated key the last one counts.
    """
    result: dict[str, Feature] = {}
    try:
        if _add_usual_features(result, data):
            return result
        result.clear()
        for number, begin, end in _fields(data, 0, len(data)):
            if number == 1:
                for entry, start, stop in _fields(data, begin, end):
                    if entry == 1:
                        _add_feature(result, data, start, stop)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a tf.train.Example: {error}") from None
    return result


def _add_usual_features(result: dict[str, Feature], data: bytes) -> bool:
    """Read the one layout that writers make: no unknown field, short keys, each before its value.

    Twice as fast as the general way. Returns False, with `result` in any state, when it meets another
    layout: each length must lead to the same end as the one around it.
    """
    end = len(data)
    if end == 0 or data[0] != _TAG_1:
        return end == 0
    length, at = _varint(data, 1)
    if at + length != end:
        return False
    while at < end:
        if data[at] != _TAG_1:
            return False
        length = data[at + 1]
        at += 2
        if length > 127:
            length, at = _varint(data, at - 1)
        stop = at + length
        if stop > end or not _add_usual_feature(result, data, at, stop):
            return False
        at = stop
    return True


def _add_usual_feature(result: dict[str, Feature], data: bytes, at: int, stop: int) -> bool:
    key_end = at + 2 + data[at + 1]
    if data[at] != _TAG_1 or data[at + 1] > 127 or key_end + 4 > stop or data[key_end] != _TAG_2:
        return False
    key = data[at + 2 : key_end].decode()
    length, at = data[key_end + 1], key_end + 2
    if length > 127:
        length, at = _varint(data, key_end + 1)
    if at + length != stop:
        return False
    tag, length, at = data[at], data[at + 1], at + 2
    if length > 127:
        length, at = _varint(data, at - 1)
    if at + length != stop or tag not in _LIST_TAGS:
        return False
    result[key] = _LIST_TAGS[tag](data, at, stop)
    return True


def _add_feature(result: dict[str, Feature], data: bytes, begin: int, end: int) -> None:
    """Read one entry of the map: key (field 1) and Feature (field 2)."""
    key, value = "", None
    for number, start, stop in _fields(data, begin, end):
        if number == 1:
            key = data[start:stop].decode()
        elif number == 2:
            value = (start, stop)
    result[key] = []
    if value is not None:
        for kind, start, stop in _fields(data, *value):
            if kind in _LISTS:
                result[key] = _LISTS[kind](data, start, stop)


def _bytes_list(data: bytes, begin: int, end: int) -> list[bytes]:
    if begin < end and data[begin] == _TAG_1:  # usually one
        length, at = data[begin + 1], begin + 2
        if length > 127:
            length, at = _varint(data, begin + 1)
        if at + length == end:
            return [data[at:end]]
    return [data[start:stop] for number, start, stop in _fields(data, begin, end) if number == 1]


def _float_list(data: bytes, begin: int, end: int) -> list[float]:
    values: list[float] = []
    for number, start, stop in _fields(data, begin, end):
        if number == 1:
            if (stop - start) % 4:
                raise ValueError(f"not a tf.train.Example: {stop - start} bytes of packed floats")
            values += struct.unpack_from(f"<{(stop - start) // 4}f", data, start)
    return values


def _int64_list(data: bytes, begin: int, end: int) -> list[int]:
    if end - begin == 3 and data[begin] == _TAG_1 and data[begin + 1] == 1 and data[begin + 2] < 128:
        return [data[begin + 2]]  # one small number
    values: list[int] = []
    for number, at, stop in _fields(data, begin, end):
        while number == 1 and at < stop:
            value, at = _varint(data, at)
            values.append(value - (1 << 64) if value >= 1 << 63 else value)
    return values


_LISTS: dict[int, Callable[[bytes, int, int], Feature]] = {1: _bytes_list, 2: _float_list, 3: _int64_list}
_LIST_TAGS = {field << 3 | 2: read for field, read in _LISTS.items()}


def _fields(data: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    """Return (field number, begin, end) of each field's value in one protobuf message."""
    found = []
    while at < end:
        tag = data[at]
        at += 1
        if tag > 127:
            tag, at = _varint(data, at - 1)
        wire = tag & 7
        if wire == 2:  # bytes, strings, messages, packed numbers
            length = data[at]
            at += 1
            if length > 127:
                length, at = _varint(data, at - 1)
        else:
            length = _scalar_bytes(data, at, wire)
        begin, at = at, at + length
        if at > end:
            raise ValueError(f"not a tf.train.Example: a field ends {at - end} bytes too far")
        found.append((tag >> 3, begin, at))
    return found


def _scalar_bytes(data: bytes, at: int, wire: int) -> int:
    if wire == 0:
        return _varint(data, at)[1] - at
    if wire in (1, 5):
        return 8 if wire == 1 else 4
    raise ValueError(f"not a tf.train.Example: wire type {wire}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the base-128 number at `at` and the offset behind it; written out for up to 3 bytes."""
    first = data[at]
    if first < 128:
        return first, at + 1
    second = data[at + 1]
    if second < 128:
        return first - 128 + (second << 7), at + 2
    third = data[at + 2]
    if third < 128:
        return first + (second << 7) + (third << 14) - 16_512, at + 3
    return _long_varint(data, at)


def _long_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ValueError("not a tf.train.Example: a number longer than 10 bytes")


def _masked(crc: int) -> int:
    """Return the CRC as TFRecord stores it (tensorflow/core/lib/hash/crc32c.h: Mask)."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def _mapped(path: Path) -> mmap.mmap | bytes:
    """Map the file, unpacked when it is gzip; an empty file cannot be mapped and is empty bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(_LENGTH_BYTES)
            if not _is_gzip(head):
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if head else b""
            file.seek(0)
            return _unpacked(path, file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; accepted: a readable TFRecord file") from None


def _is_gzip(head: bytes) -> bool:
    """Tell gzip from a plain record whose length happens to begin with the same three bytes."""
    if head[:3] != b"\x1f\x8b\x08":
        return False
    return len(head) < _LENGTH_BYTES or _masked(crc32c(head[:8])) != _READ_CRC(head, 8)[0]


def _unpacked(path: Path, file: IO[bytes]) -> mmap.mmap | bytes:
    try:
        return unpacked(file)
    except DAMAGED as error:
        raise BadRecord(f"{path}: record 0 at byte 0: damaged gzip data: {error}") from None


def _opened(path: Path, verify: bool) -> TFRecordFile:
    return TFRecordFile(path, verify=verify)
