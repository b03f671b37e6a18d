"""Partial FC of 10^6 classes x 512: private memory of each rank at its peak, against what it has to be.

    python benchmarks/sharded_head.py [ranks, 2 unless given] [classes, 10^6 unless given]

Each rank holds n = C / ranks rows, W = n x 512 x 4 bytes. With B pictures of all ranks its peak is in the
backward pass:

    weights              W
    gradient             W
    optimiser's state    0 with SGD without momentum, as here; W with momentum, 2 W with AdamW
    logits               B x n x 4 where every class counts (dropped where they outgrow W)
    drawn rows' gradient W x rate where classes are sampled; their copy and logits are gone by then
    scratch              16 MiB: a block of rows and logits while it is in cache, vectors, losses

It is the whole step that is measured: the loop's own engine with DDP, clipping on, weight decay off (SGD
makes a copy of W for it, AdamW for its own step where it is not fused). A thread reads the private pages of
/proc/self/smaps_rollup every few milliseconds; what the process held before the head was made is taken off.
Most of the time is the first weights, which every rank draws all. Peaks are MiB, seconds those of one thread.
"""

import os
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import timing  # noqa: F401  (sets one thread before torch is loaded)
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from guie.heads.sharded import PartialFC
from guie.train.distributed import Hardware, World
from guie.train.engine import Engine
from guie.train.optim import sgd
from guie.train.settings import Settings
from guie.train.task import Run, Task
from guie.types import Batch, Output

WIDTH, BATCH, STEPS, RATES = 512, 64, 2, (0.1, 1.0)
MIB = 1 << 20


class Project(nn.Module):
    """Vectors (B, 512) to vectors: the smallest embedder."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Linear(WIDTH, WIDTH)

    def forward(self, vectors: torch.Tensor) -> Output:
        """Return the projected vectors."""
        raw = self.neck(vectors)
        return Output(vectors, None, raw, nn.functional.normalize(raw, dim=1))


def private_mib() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


@contextmanager
def watched(peak: list[float]):
    """Append to `peak` the most private memory while the block lasts."""
    over, seen = threading.Event(), [private_mib()]

    def watch() -> None:
        while not over.wait(0.005):
            seen.append(private_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    over.set()
    thread.join()
    peak.append(max(seen))


def estimate_mib(classes: int, ranks: int, rate: float) -> float:
    rows = classes / ranks
    weights = rows * WIDTH * 4
    return (2 * weights + (weights * rate if rate < 1 else BATCH * rows * 4)) / MIB + 16


def engine_of(classes: int, world: World) -> Engine:
    torch.manual_seed(0)
    embedder, head = Project(), PartialFC(num_classes=classes, embed_dim=WIDTH)
    optimizer = sgd(lr=0.1, momentum=0, weight_decay=0, embedder=embedder, head=head)
    task = Task(embedder, head, optimizer, lambda start, stop: iter(()), steps_per_epoch=STEPS)
    return Engine(task, Settings(epochs=10, clip_norm=1.0), Hardware(), world, Run())


def steps(engine: Engine, classes: int, rate: float) -> float:
    """Take some steps; return the seconds of the last."""
    engine.task.head.sample_rate = rate
    share = BATCH // engine.world.size
    for _ in range(STEPS):
        start = time.perf_counter()
        rows = torch.arange(share)
        labels = torch.randint(0, classes, (share,))
        engine.advance(Batch(torch.randn(share, WIDTH), labels, torch.zeros_like(rows), rows))
        engine.require_finite()
    return time.perf_counter() - start


def rank(number: int, ranks: int, classes: int, folder: str) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=ranks)
    world = World(number, ranks)
    for rate in RATES:
        steps(engine_of(1000, world), 1000, rate)  # libraries and threads are there from now on
    before, peaks = private_mib(), []
    with watched(peaks):
        start = time.perf_counter()
        engine = engine_of(classes, world)
        made_s = time.perf_counter() - start
    seconds = []
    for rate in RATES:
        engine.task.optimizer.zero_grad(set_to_none=True)
        with watched(peaks):
            seconds.append(steps(engine, classes, rate))
    found = world.gather([peak - before for peak in peaks])
    if number == 0:
        _report(found, seconds, made_s, classes)


def _report(found: list[list[float]], seconds: list[float], made_s: float, classes: int) -> None:
    ranks = len(found)
    print(f"{classes} classes x {WIDTH}, batch {BATCH}, {ranks} rank(s); first weights {made_s:.0f} s")
    for i, rate in enumerate(RATES, start=1):
        seen, wanted = [peaks[i] for peaks in found], estimate_mib(classes, ranks, rate)
        each = ", ".join(f"{mib:.0f}" for mib in seen)
        print(
            f"| sharded | {ranks} rank(s), rate {rate} | estimate {wanted:.0f} MiB | seen {each} MiB "
            f"| {max(seen) / wanted:.3f} | {seconds[i - 1]:.1f} s a step |",
            flush=True,
        )


def main(ranks: int, classes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(rank, (ranks, classes, folder), nprocs=ranks)


if __name__ == "__main__":
    given = [int(float(word)) for word in sys.argv[1:]]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(*(given + [2, 1_000_000][len(given) :]))
