"""Bar 3: TFRecord examples in random order against the `tfrecord` package in sequence and against webdataset.

Ours checks every CRC; the peers check none. Each side ends at the payloads in memory: picture, label and
name; the tar holds the same. Ours keeps the file mapped and indexed from one epoch to the next, as training
does; what making the index costs is the last line.

    python benchmarks/bar03_tfrecord.py
"""

import io
import tarfile
import tempfile
import time
import warnings
from pathlib import Path

from timing import compare, report  # isort: skip  (first: it sets one thread)
import numpy as np
import tfrecord
import webdataset
from bench_pictures import SMALL, jpegs

from guie.records.tfrecord import TFRecordFile


def write(folder: Path, records: list[tuple[bytes, int, str]]) -> tuple[Path, Path]:
    """Write the same records as TFRecord and as tar; return both paths."""
    shard, tar = folder / "a.tfrec", folder / "a.tar"
    writer = tfrecord.TFRecordWriter(str(shard))
    with tarfile.open(tar, "w") as archive:
        for number, (picture, label, name) in enumerate(records):
            writer.write(
                {"image": (picture, "byte"), "label": (label, "int"), "name": (name.encode(), "byte")}
            )
            for suffix, data in (("jpg", picture), ("cls", str(label).encode()), ("txt", name.encode())):
                member = tarfile.TarInfo(f"{number:07d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    writer.close()
    return shard, tar


def ours(file: TFRecordFile, order: list[int]) -> list[int]:
    return [len(file[index]["image"][0]) for index in order]


def sequence(shard: Path) -> list[int]:
    return [len(record["image"]) for record in tfrecord.tfrecord_loader(str(shard), None)]


def from_tar(tar: Path) -> list[int]:
    dataset = webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False)
    return [len(sample["jpg"]) for sample in dataset]


def check(shard: Path, tar: Path, order: list[int]) -> None:
    file = TFRecordFile(shard)
    theirs = list(tfrecord.tfrecord_loader(str(shard), None))
    archived = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert len(file) == len(theirs) == len(archived)
    for index in order:
        mine = file[index]
        assert mine["image"][0] == theirs[index]["image"] == archived[index]["jpg"]
        assert mine["label"][0] == theirs[index]["label"][0] == int(archived[index]["cls"])
        assert mine["name"][0] == theirs[index]["name"] == archived[index]["txt"]


def compare_reading(folder: Path, pictures: list[bytes], count: int) -> None:
    records = [(pictures[i % len(pictures)], i, f"picture-{i}") for i in range(count)]
    shard, tar = write(folder, records)
    order = np.random.default_rng(0).permutation(count).tolist()
    check(shard, tar, order)
    file = TFRecordFile(shard)
    kib = sum(map(len, pictures)) / len(pictures) / 1000
    what = f"{count} TFRecord examples of {kib:.0f} kB in random order, CRC checked, against"
    report(
        3, f"{what} tfrecord in sequence", compare(lambda: ours(file, order), lambda: sequence(shard)), 1.8
    )
    report(3, f"{what} webdataset", compare(lambda: ours(file, order), lambda: from_tar(tar)), 8)


def indexing_rate(folder: Path, count: int = 1_000_000) -> float:
    """Records per CPU second that the index of a file of small records takes."""
    path = folder / "many.tfrec"
    one = folder / "one.tfrec"
    writer = tfrecord.TFRecordWriter(str(one))
    writer.write({"label": (1, "int")})
    writer.close()
    path.write_bytes(one.read_bytes() * count)
    start = time.process_time()
    assert len(TFRecordFile(path)) == count
    return count / (time.process_time() - start)


def main() -> None:
    warnings.simplefilter("ignore")  # webdataset's advice about shards
    with tempfile.TemporaryDirectory() as name:
        compare_reading(Path(name), jpegs(50, 160, 120, 85), 4000)
        compare_reading(Path(name), jpegs(50, *SMALL), 1500)
        print(f"\nindex without index file: {indexing_rate(Path(name)) / 1e6:.2f} million records/s")


if __name__ == "__main__":
    main()
