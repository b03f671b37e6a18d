"""A large manifest: seconds to open it after the first time, and private bytes per row of a loader's worker.

The rows are made up (a folder of landmarks, 20 pictures of each). A forked worker makes batches of rows by
the sampler and looks their files up, as a training run's workers do; before and after, the private pages of
/proc/self/smaps are added up. Left out is the mapping of the Arrow copy, printed beside: its pages are the
file's own in the page cache, one set for all processes, "private" only while no other has touched them.

    python benchmarks/manifest_rows.py [rows, 10^7 unless given]
"""

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from guie.data.sampling import Shuffled
from guie.datasets.manifest import Manifest, open_manifest

ASK_SECONDS, ASK_BYTES = 1.0, 10.0
BATCH, STEPS = 256, 200


def made(path: Path, rows: int) -> None:
    """Write a manifest whose ids are random: they compress as little as real ones."""
    random = np.random.default_rng(0)
    schema = pa.schema([("file", pa.string()), ("label", pa.string()), ("domain", pa.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 1_000_000):
            numbers = np.arange(start, min(start + 1_000_000, rows))
            ids = [f"{i:016x}" for i in random.integers(0, 2**63, len(numbers)).tolist()]
            files = [f"train/{i[0]}/{i[1]}/{i[2]}/{i}.jpg" for i in ids]
            labels = pa.array(numbers // 20).cast(pa.string())
            columns = [pa.array(files), labels, pa.repeat("landmark", len(files))]
            writer.write_table(pa.table(columns, schema=schema))


def private_bytes() -> tuple[int, int]:
    """Return the bytes that are this process's alone: its memory, and pages of the mapped Arrow copy."""
    own, mapped, of_copy = 0, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            of_copy = words[-1].endswith(".arrow")
        elif words[0].startswith("Private_"):
            own, mapped = own + int(words[1]) * (not of_copy), mapped + int(words[1]) * of_copy
    return 1024 * own, 1024 * mapped


def work(manifest: Manifest, sampler: Shuffled, answers: multiprocessing.SimpleQueue) -> None:
    """Put what one worker comes to hold while it looks up the rows of some steps."""
    before = private_bytes()
    for step in range(STEPS):
        for row in sampler.batch(step):
            manifest.place(int(row))
    answers.put([after - start for after, start in zip(private_bytes(), before, strict=True)])


def main() -> None:
    rows = int(float(sys.argv[1])) if len(sys.argv) > 1 else 10_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        made(path, rows)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            manifest = open_manifest(path, folder, "made-up")
            seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        labels, domains = manifest.labels, manifest.domains  # the parent's, shared with every worker
        print(f"{rows:,} rows, {manifest.num_classes:,} classes, {path.stat().st_size >> 20} MiB of parquet")
        print(f"first open {seconds[0]:.2f} s; class ids {time.perf_counter() - began:.2f} s")
        print(f"later opens {seconds[1]:.3f} and {seconds[2]:.3f} s; asked: below {ASK_SECONDS:.0f} s")
        sampler = Shuffled(labels=labels, domains=domains, batch_size=BATCH, seed=0)
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        worker = context.Process(target=work, args=(manifest, sampler, answers))
        worker.start()
        held, mapped = answers.get()
        worker.join()
        print(f"a forked worker: {held / rows:.2f} private bytes a row; asked: below {ASK_BYTES:.0f}")
        print(f"({held / 2**20:.1f} MiB in all; {mapped / rows:.1f} a row are pages of the mapped copy)")


if __name__ == "__main__":
    main()
