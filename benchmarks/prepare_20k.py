"""guie-prepare against decoding every record and writing a PNG, from TFRecord and from folders.

The reference is what the field's repositories do to be able to train: one process reads each record (or
file), decodes it with Pillow and writes it anew as PNG; it checks no sum, finds no copies, makes no counts.
Ours is the whole command on all cores, its start included. Wall time, so run it on an idle machine; CPU
seconds, children included, stand beside. The number of rows is checked to be equal first.

    python benchmarks/prepare_20k.py [count] [width height quality]
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from timing import Ratio, report, spread  # isort: skip  (first: it sets one thread)
import tfrecord
from bench_pictures import jpegs
from PIL import Image
from pyarrow import parquet

NUM_CLASSES, NUM_SHARDS, REPEATS = 100, 4, 3


class Cost(NamedTuple):
    """Seconds of one run, and what it left: rows and bytes."""

    wall_s: float
    cpu_s: float
    rows: int
    size: int


def write(folder: Path, pictures: list[bytes], count: int) -> None:
    """Write `count` pictures as shards and as a folder per class; a note behind each makes it its own."""
    (folder / "shards").mkdir()
    writers = [tfrecord.TFRecordWriter(str(folder / "shards" / f"a-{i}.tfrec")) for i in range(NUM_SHARDS)]
    for number in range(count):
        data = pictures[number % len(pictures)] + f"{number:09d}".encode()
        label = number % NUM_CLASSES
        example = {"image/encoded": (data, "byte"), "image/class/label": (label, "int")}
        writers[number * NUM_SHARDS // count].write(example)
        path = folder / "raw" / f"{label:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for writer in writers:
        writer.close()


def records(folder: Path) -> Iterator[tuple[str, bytes]]:
    for shard in sorted(folder.glob("shards/*.tfrec")):
        for number, record in enumerate(tfrecord.tfrecord_loader(str(shard), None)):
            yield f"{record['image/class/label'][0]:03d}/{shard.stem}-{number}", record["image/encoded"]


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted((folder / "raw").glob("*/*.jpg")):
        yield f"{path.parent.name}/{path.stem}", path.read_bytes()


def reference(source: Callable[[Path], Iterator[tuple[str, bytes]]], folder: Path, out: Path) -> int:
    """Decode each picture and write it as PNG; return how many."""
    rows = 0
    for name, data in source(folder):
        path = out / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(bytes(data))).convert("RGB").save(path)
        rows += 1
    return rows


def ours(arguments: list[str], folder: Path, out: Path) -> int:
    """Run the command; return the rows of its manifest."""
    places = [f"out={out}", f"data_root={folder / 'data'}"]
    command = [sys.executable, "-m", "guie.cli.prepare", *arguments, *places]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return parquet.ParquetFile(out / "manifest.parquet").metadata.num_rows


def cost(work: Callable[[Path], int], out: Path) -> Cost:
    wall, cpu = time.perf_counter(), os.times()
    rows = work(out)
    wall, done = time.perf_counter() - wall, os.times()
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    return Cost(wall, sum(done[:4]) - sum(cpu[:4]), rows, size)


def compare_preparing(folder: Path, what: str, source: Callable, arguments: list[str]) -> None:
    def peer(out: Path) -> int:
        return reference(source, folder, out)

    def mine(out: Path) -> int:
        return ours(arguments, folder, out)

    pairs = [(cost(peer, folder / "png"), cost(mine, folder / "out")) for _ in range(REPEATS)]
    for theirs, own in pairs:
        assert theirs.rows == own.rows, (theirs.rows, own.rows)
    theirs, own = pairs[-1]
    wall: Ratio = spread([a.wall_s / b.wall_s for a, b in pairs])
    cpu: Ratio = spread([a.cpu_s / b.cpu_s for a, b in pairs])
    named = f"preparing {own.rows:,} pictures from {what}, {os.cpu_count()} cores"
    report("prepare", f"{named}: wall time", wall, 1)
    report("prepare", f"{named}: CPU seconds", cpu, 1)
    sizes = f"{theirs.size / 1e6:,.0f} MB of PNG, {own.size / 1e6:,.1f} MB of manifest and page"
    print(f"    reference {theirs.wall_s:.1f} s, ours {own.wall_s:.1f} s; it leaves {sizes}", flush=True)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    width, height, quality = map(int, sys.argv[2:5]) if len(sys.argv) > 4 else (160, 120, 85)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, jpegs(200, width, height, quality), count)
        compare_preparing(folder, "TFRecord", records, ["dataset=tfrecord", f"raw={folder}/shards/*.tfrec"])
        compare_preparing(folder, "folders", files, ["dataset=folder", f"raw={folder / 'raw'}"])


if __name__ == "__main__":
    main()
