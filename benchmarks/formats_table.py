"""Every format and precision of one model: speed, start-up, memory, size, parity, and what mP@5 it keeps.

    python benchmarks/formats_table.py                     # ViT-B/32 with random weights: speed and parity
    python benchmarks/formats_table.py RUN [--pictures N]  # a run on shared_multidomain: and mP@5 of grocery
    python benchmarks/formats_table.py --formats onnx --precisions fp32 int8

Files are loaded by the bundle's loader, on one core. `images/s`: a batch of 8 pictures of 224 x 224 by CPU
seconds, the median of seven, files in turn (`eager` is the evaluation in float32). `start-up s`: CPU seconds
of a fresh process from nothing to its first vector, `MiB` its peak. `least cosine`: with the evaluation.
GUIE_SHARED names the shared folder; int8 is calibrated on 64 of its training pictures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import cpu_seconds, spread  # isort: skip  (first: it sets one thread)
import numpy as np
from bar11_export import eager, pictures, vit_b_32

from guie import images
from guie.datasets.manifest import Manifest
from guie.datasets.shared import shared_multidomain
from guie.errors import UserError
from guie.export import runtime
from guie.export.formats import FORMATS, writer
from guie.export.source import Request, Source, evaluating
from guie.metrics import hits
from guie.search.exact import Exact
from guie.types import Side, Truth

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
BATCH, REPEATS, CALIBRATION = 8, 7, 64
HEAD = "| format | precision | images/s | start-up s | MiB | file MB | least cosine | mP@5 |"

STARTED = """
import json, resource, sys
import numpy as np
sys.path.append(sys.argv[1])  # behind the packages that its modules are named after
import runtime
vectors = runtime.load(sys.argv[2])(np.zeros((1, 3, 224, 224), np.uint8))
used = resource.getrusage(resource.RUSAGE_SELF)
with open("/proc/self/status") as status:  # ru_maxrss would be that of the process that started this one
    kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(json.dumps([used.ru_utime + used.ru_stime, kib / 1024]))
"""


def files(source: Source, wanted: list[tuple[str, str]], seen: list[np.ndarray], folder: Path) -> dict:
    """Write what can be written; name what is refused, and why."""
    made = {}
    for format, precision in wanted:
        inside = folder / f"{format}_{precision}"
        inside.mkdir()
        request, path = Request(precision, calibration=seen), inside / f"model{FORMATS[format].suffix}"
        try:
            with evaluating(source) as still:
                writer(format).write(still, request, path, {"format": format, **request.told()})
            made[format, precision] = path
        except UserError as refused:
            print(f"{format} {precision} is refused: {refused}", file=sys.stderr)
    return made


def started(path: Path) -> tuple[float, float]:
    """Return CPU seconds and peak MiB of a process from nothing to the first vector: the second of two."""
    place = str(Path(runtime.__file__).parent)
    command = [sys.executable, "-c", STARTED, place, str(path)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, mib = json.loads(done.stdout.splitlines()[-1])
    return seconds, mib


def speeds(runs: dict) -> dict:
    """Return images per CPU second of each, all in turn."""
    shown = pictures(BATCH)
    for run in runs.values():
        run(shown)
    times: dict = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            times[name].append(cpu_seconds(lambda run=run: run(shown)))
    return {name: BATCH / spread(found).median for name, found in times.items()}


def decoded(manifest: Manifest, rows: np.ndarray) -> list[np.ndarray]:
    return [images.decode(manifest.read(row)) for row in rows]


def grocery(manifest: Manifest, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that ask and those that answer, the first `most` of each; who has no match asks not."""
    found = np.char.startswith(manifest.files.astype(str), "grocery/")
    splits = manifest.splits.astype(str)
    asking, answering = (np.flatnonzero(found & (splits == name))[:most] for name in ("query", "index"))
    return asking[np.isin(manifest.labels[asking], manifest.labels[answering])], answering


def precision_at_5(vectors: np.ndarray, labels: np.ndarray, asking: int) -> float:
    """Return mP@5 of the first `asking` rows among the others."""
    ranking = Exact().index(Side(vectors[asking:])).search(Side(vectors[:asking]), 5)
    truth = Truth(labels[:asking], labels[asking:], np.full(asking, -1))
    return float(hits.guie_precision(hits.find_hits(ranking.ids, truth)).mean())


def one_by_one(run, shown: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([run(picture.transpose(2, 0, 1)[None]) for picture in shown])


def table(source: Source, made: dict, judged: tuple | None) -> None:
    embedder = next(iter(source.embedders.values()))
    runs = {("eager", "fp32"): lambda shown: eager(embedder, shown)}
    runs |= {name: runtime.load(path) for name, path in made.items()}
    faster = speeds(runs)
    shown, labels, asking = judged or ([p.transpose(1, 2, 0) for p in pictures(BATCH)], None, 0)
    expected = one_by_one(runs["eager", "fp32"], shown)
    print(f"{HEAD}\n|---|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        found = one_by_one(run, shown)
        cosine = float((found * expected).sum(1).min())
        score = "-" if labels is None else f"{precision_at_5(found, labels, asking):.4f}"
        seconds, mib, size = ("-", "-", "-")
        if path := made.get(name):
            seconds, mib = (f"{value:.3g}" for value in started(path))
            size = f"{sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6:.1f}"
        cells = [*name, f"{faster[name]:.3g}", seconds, mib, size, f"{cosine:.5f}", score]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="?")
    parser.add_argument("--pictures", type=int, help="of grocery, each of queries and index; all if not said")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # OpenVINO takes as many threads as cores
    wanted = [(format, precision) for format in options.formats for precision in options.precisions]
    with tempfile.TemporaryDirectory() as name:
        if options.run is None:
            source, judged = Source({"": vit_b_32()}), None
            seen = [picture.transpose(1, 2, 0) for picture in pictures(CALIBRATION)]
        else:
            from guie import assembly

            root = Path(os.environ.get("GUIE_SHARED", "../shared")) / "data"
            manifest = shared_multidomain(str(root), data_root=name)
            source = Source({"": assembly.trained_embedder(Path(options.run))[0].cpu().eval()})
            asking, answering = grocery(manifest, options.pictures)
            rows = np.concatenate([asking, answering])
            judged = decoded(manifest, rows), manifest.labels[rows], len(asking)
            training = np.flatnonzero(manifest.splits.astype(str) == "train")
            drawn = np.random.default_rng(0).choice(training, min(CALIBRATION, len(training)), replace=False)
            seen = decoded(manifest, drawn)
        table(source, files(source, wanted, seen, Path(name)), judged)


if __name__ == "__main__":
    main()
