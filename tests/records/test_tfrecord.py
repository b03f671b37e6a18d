"""TFRecord files: equal to what other writers mean, and refused where they are damaged."""

import gzip
import hashlib
import json
import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tfrecord
from tfrecord import example_pb2

from guie.errors import UserError
from guie.records import tfrecord as reader
from guie.records.tfrecord import BadRecord, TFRecordFile, parse_example

PICTURE = bytes(range(256)) * 30


def record(number: int) -> dict[str, tuple[object, str]]:
    return {
        "image/encoded": (PICTURE[: 17 * number], "byte"),
        "label": (number, "int"),
        "numbers": ([-1, 0, 127, 128, 300, -(2**63), 2**63 - 1, number], "int"),
        "scores": ([0.5, -1.25, float(number)], "float"),
        "tags": ([b"a", b"", b"ccc" * number], "byte"),
        "a rather long key " * 8: (number, "int"),
    }


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.tfrec"
    writer = tfrecord.TFRecordWriter(str(path))
    for number in range(40):
        writer.write(record(number))
    writer.close()
    return path


def framed(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    masked = tfrecord.TFRecordWriter.masked_crc
    return length + masked(length) + payload + masked(payload)


def test_records_read_as_the_tfrecord_package_wrote_them(shard: Path) -> None:
    file = TFRecordFile(shard)
    assert len(file) == 40
    for number in [39, 0, 17, *range(40)]:
        example = file[number]
        assert example["label"] == [number]
        for key, (value, _) in record(number).items():
            assert example[key] == (value if isinstance(value, list) else [value]), key


def test_records_read_as_the_tfrecord_package_reads_them(shard: Path) -> None:
    for ours, theirs in zip(TFRecordFile(shard), tfrecord.tfrecord_loader(str(shard), None), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["image/encoded"][0] == theirs["image/encoded"]
        np.testing.assert_array_equal(ours["numbers"], theirs["numbers"])
        np.testing.assert_array_equal(np.float32(ours["scores"]), theirs["scores"])


def test_the_shared_shards_hold_what_is_expected(shared: Path) -> None:
    folder = shared / "formats" / "tfrecords"
    expected = json.loads((folder / "expected.json").read_text())
    for name, facts in expected.items():
        file = TFRecordFile(folder / name)
        assert len(file) == facts["records"], name
        for example, (label, digest) in zip(file, facts["label_and_sha256_16"], strict=True):
            picture = next(v for k, v in example.items() if k in ("image/encoded", "image_bytes", "image"))
            labels = [v for k, v in example.items() if "label" in k or "class" in k]
            assert hashlib.sha256(picture[0]).hexdigest()[:16] == digest, name
            assert [label] in labels, name


def test_the_shared_framing_vectors_hold(shared: Path) -> None:
    vectors = json.loads((shared / "reference" / "public_test_vectors.json").read_text())["tfrecord_framing"]
    file = TFRecordFile(shared / vectors["file"])
    assert [file.payload(i).decode() for i in range(len(file))] == vectors["records"]


@pytest.mark.parametrize("name", ["a.tfrec.gz", "renamed.tfrec"])
def test_gzip_is_recognised_by_its_content(shard: Path, name: str) -> None:
    packed = shard.parent / name
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    assert list(TFRecordFile(packed)) == list(TFRecordFile(shard))


def test_a_record_whose_length_looks_like_gzip_is_a_record(tmp_path: Path) -> None:
    payload = bytes(0x088B1F)
    path = tmp_path / "a.tfrec"
    path.write_bytes(framed(payload))
    assert path.read_bytes()[:3] == b"\x1f\x8b\x08"
    assert TFRecordFile(path).payload(0) == payload


@pytest.mark.parametrize("keep", [10, 200, -4])
def test_damaged_gzip_is_refused(shard: Path, keep: int) -> None:
    packed = shard.parent / "a.gz"
    packed.write_bytes(gzip.compress(shard.read_bytes())[:keep])
    with pytest.raises(BadRecord, match=r"a\.gz: record 0 at byte 0: damaged gzip data"):
        TFRecordFile(packed)


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    for name, data in (("a", b""), ("b", gzip.compress(b""))):
        (tmp_path / name).write_bytes(data)
        assert len(TFRecordFile(tmp_path / name)) == 0


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(UserError, match=r"nowhere\.tfrec: No such file.*accepted: a readable TFRecord file"):
        TFRecordFile("nowhere.tfrec")


@pytest.mark.parametrize("index", [-1, 40, 1000])
def test_a_record_that_is_not_there_is_an_index_error(shard: Path, index: int) -> None:
    with pytest.raises(IndexError, match=rf"record {index}; accepted: 0\.\.39"):
        TFRecordFile(shard)[index]


def starts(shard: Path) -> list[int]:
    found, at, data = [], 0, shard.read_bytes()
    while at < len(data):
        found.append(at)
        at += struct.unpack_from("<Q", data, at)[0] + 16
    return found


@pytest.mark.parametrize("place", ["payload", "payload crc", "length crc"])
def test_a_flipped_bit_names_file_record_and_offset(shard: Path, place: str) -> None:
    start, end = starts(shard)[5:7]
    data = bytearray(shard.read_bytes())
    data[{"payload": start + 40, "payload crc": end - 2, "length crc": start + 9}[place]] ^= 4
    shard.write_bytes(data)
    file = TFRecordFile(shard)
    kind = "length" if place == "length crc" else "payload"
    with pytest.raises(
        BadRecord, match=rf"a\.tfrec: record 5 at byte {start}: the {kind}'s checksum is wrong"
    ):
        file[5]
    assert file[4]["label"] == [4]
    assert file[6]["label"] == [6]


def test_every_flipped_payload_bit_of_a_record_is_noticed(shard: Path) -> None:
    start, end = starts(shard)[1:3]
    original = shard.read_bytes()
    for at in range(start + 12, end, 3):
        data = bytearray(original)
        data[at] ^= 1 << at % 8
        shard.write_bytes(data)
        with pytest.raises(BadRecord):
            TFRecordFile(shard)[1]


def test_without_the_check_a_flipped_bit_passes(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(shard.read_bytes())
    data[starts(shard)[5] - 6] ^= 4
    shard.write_bytes(data)
    TFRecordFile(shard, verify=False).payload(4)
    monkeypatch.setattr(reader, "crc32c", lambda _: 0)
    with pytest.raises(BadRecord):
        TFRecordFile(shard).payload(0)


def test_a_damaged_length_is_named_where_it_is(shard: Path) -> None:
    start = starts(shard)[7]
    data = bytearray(shard.read_bytes())
    data[start] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BadRecord, match=rf"record 7 at byte {start}: the length \d+ has a wrong checksum"):
        TFRecordFile(shard)


def test_a_length_beyond_the_file_is_an_error_not_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrec"
    length = struct.pack("<Q", 3_000_000_000)
    path.write_bytes(framed(b"x") + length + tfrecord.TFRecordWriter.masked_crc(length) + b"tiny")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadRecord, match="record 1 at byte 17: length 3000000000 does not fit the file of 33"):
        TFRecordFile(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_every_truncation_is_noticed(shard: Path) -> None:
    data, whole = shard.read_bytes()[:3000], set(starts(shard))
    for size in range(1, len(data), 13):
        if size in whole:
            continue
        shard.write_bytes(data[:size])
        with pytest.raises(
            BadRecord, match=r"a\.tfrec: record \d+ at byte \d+: (truncated|length \d+ does not)"
        ):
            TFRecordFile(shard)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrec"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    with pytest.raises(BadRecord, match="record 0 at byte 0"):
        TFRecordFile(path)


def test_a_copy_in_another_process_reads_the_same(shard: Path) -> None:
    file = TFRecordFile(shard, verify=False)
    copy = pickle.loads(pickle.dumps(file))
    assert list(copy) == list(file)
    assert copy.verify is False


def example(**features: example_pb2.Feature) -> bytes:
    message = example_pb2.Example(features=example_pb2.Features(feature=features))
    return message.SerializeToString()


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def entry(key: bytes, feature: bytes) -> bytes:
    return field(1, field(1, key) + field(2, feature))


def by_protobuf(data: bytes) -> dict[str, list]:
    message = example_pb2.Example.FromString(data)
    return {
        key: list(getattr(feature, feature.WhichOneof("kind")).value) if feature.WhichOneof("kind") else []
        for key, feature in message.features.feature.items()
    }


PACKED = field(1, varint(5) + varint(-7) + varint(300))
UNPACKED = b"".join(varint(1 << 3) + varint(value) for value in (5, -7, 300))
FLOATS = struct.pack("<3f", 0.5, -2, 8)
LAYOUTS = {
    "packed int64": field(1, entry(b"k", field(3, PACKED))),
    "unpacked int64": field(1, entry(b"k", field(3, UNPACKED))),
    "both mixed": field(1, entry(b"k", field(3, PACKED + UNPACKED))),
    "packed float": field(1, entry(b"k", field(2, field(1, FLOATS)))),
    "unpacked float": field(
        1, entry(b"k", field(2, b"".join(b"\x0d" + FLOATS[i : i + 4] for i in (0, 4, 8))))
    ),
    "value before key": field(1, field(1, field(2, field(3, PACKED)) + field(1, b"k"))),
    "no value": field(1, field(1, field(1, b"k"))),
    "empty feature": field(1, entry(b"k", b"")),
    "empty list": field(1, entry(b"k", field(1, b""))),
    "empty bytes": field(1, entry(b"k", field(1, field(1, b"")))),
    "empty key": field(1, entry(b"", field(1, field(1, b"x")))),
    "repeated key": field(1, entry(b"k", field(3, PACKED)) + entry(b"k", field(1, field(1, b"x")))),
    "unknown fields": varint(9 << 3) + b"\x05" + field(1, field(7, b"?") + entry(b"k", field(3, PACKED))),
    "unknown fixed fields": varint(9 << 3 | 1) + bytes(8) + varint(9 << 3 | 5) + bytes(4),
    "two features messages": field(1, entry(b"a", field(3, PACKED)))
    + field(1, entry(b"b", field(3, PACKED))),
    "no features": b"",
    "long key": field(1, entry(b"k" * 200, field(3, PACKED))),
    "one big number": field(1, entry(b"k", field(3, field(1, varint(200))))),
    "one small number": field(1, entry(b"k", field(3, field(1, varint(100))))),
    "big": field(1, entry(b"k", field(1, field(1, bytes(3_000_000))))),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_reads_as_protobuf_reads_it(name: str) -> None:
    assert parse_example(LAYOUTS[name]) == by_protobuf(LAYOUTS[name])


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_usual_and_the_general_way_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = parse_example(LAYOUTS[name])
    monkeypatch.setattr(reader, "_add_usual_features", lambda result, data: False)
    assert parse_example(LAYOUTS[name]) == fast


def test_numbers_of_every_length_are_read() -> None:
    for shift in range(64):
        for value in {1 << shift, (1 << shift) - 1, (1 << shift) + 1}:
            data = varint(value)
            assert reader._varint(data, 0) == (value & (1 << 64) - 1, len(data))


def test_random_examples_read_as_protobuf_reads_them() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        features = {
            "b": example_pb2.Feature(bytes_list={"value": [rng.bytes(rng.integers(400)) for _ in range(3)]}),
            "i": example_pb2.Feature(int64_list={"value": rng.integers(-(2**62), 2**62, rng.integers(5))}),
            "f": example_pb2.Feature(float_list={"value": rng.normal(size=rng.integers(50))}),
            "o" * int(rng.integers(1, 140)): example_pb2.Feature(bytes_list={"value": [rng.bytes(200)]}),
        }
        data = example(**features)
        assert parse_example(data) == by_protobuf(data)


def test_damaged_messages_are_value_errors_and_nothing_else() -> None:
    rng = np.random.default_rng(4)
    data = LAYOUTS["both mixed"] + LAYOUTS["packed float"] + LAYOUTS["unknown fields"]
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(data))] = rng.integers(256)
        try:
            parse_example(bytes(damaged[: rng.integers(1, len(data) + 1)]))
        except ValueError as error:
            assert "not a tf.train.Example" in str(error)


def test_a_record_that_is_no_example_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrec"
    path.write_bytes(framed(b"\xff\xff not protobuf"))
    with pytest.raises(BadRecord, match=r"a\.tfrec: record 0 at byte 0: not a tf\.train\.Example"):
        TFRecordFile(path)[0]


def test_reading_needs_no_protobuf() -> None:
    code = (
        "import guie.records.tfrecord, sys; print('google.protobuf' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
