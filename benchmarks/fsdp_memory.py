"""A transformer of 100 M parameters with AdamW: private memory of each rank, cut by FSDP and copied by DDP.

    python benchmarks/fsdp_memory.py [ranks, 2 unless given] [blocks of width 768, 14 unless given]

With P parameters of 4 bytes a rank holds, between steps, weights, gradient and two moments: 16 P bytes with
DDP (whose buckets are the gradients), 16 P / ranks with FSDP. Read from the private pages of
/proc/self/smaps_rollup after two steps of the loop's own engine on one picture for each rank, so that
activations are small; the peak, read by a thread every few milliseconds, is that of building and stepping.
"""

import os
import sys
import tempfile

import timing  # noqa: F401  (sets one thread before torch is loaded)
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.multiprocessing as multiprocessing
from sharded_head import private_mib, watched
from torch import nn

from guie.train.distributed import Hardware, World
from guie.train.engine import Engine
from guie.train.optim import adamw
from guie.train.settings import Settings
from guie.train.task import Run, Task
from guie.types import Batch, Loss, Output

WIDTH, TOKENS, STEPS = 768, 4, 2
MIB = 1 << 20


class Tower(nn.Module):
    """Tokens (B, T, 768) to vectors (B, 768) through blocks of a vision transformer."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.backbone = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 12, 4 * WIDTH, 0.0, batch_first=True) for _ in range(depth)
        )

    def forward(self, tokens: torch.Tensor) -> Output:
        """Return the mean of the tokens."""
        for block in self.backbone:
            tokens = block(tokens)
        raw = tokens.mean(1)
        return Output(raw, None, raw, nn.functional.normalize(raw, dim=1))


class Pull(nn.Module):
    """A head without weights."""

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean of the vectors' squares."""
        return Loss(output.raw.square().mean())


def engine_of(depth: int, shard: str, world: World) -> Engine:
    torch.manual_seed(0)
    embedder, head = Tower(depth), Pull()
    optimizer = adamw(embedder=embedder, head=head, fused=True)
    task = Task(embedder, head, optimizer, lambda start, stop: iter(()), steps_per_epoch=STEPS)
    return Engine(task, Settings(epochs=10, clip_norm=1.0), Hardware(shard=shard), world, Run())


def steps(engine: Engine) -> None:
    row = torch.zeros(1, dtype=torch.int64)
    for _ in range(STEPS):
        engine.advance(Batch(torch.randn(1, TOKENS, WIDTH), row, row, row))
        engine.require_finite()


def rank(number: int, ranks: int, depth: int, shard: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{shard}", rank=number, world_size=ranks)
    world = World(number, ranks)
    steps(engine_of(2, shard, world))  # libraries are there from now on
    before, peak = private_mib(), []
    with watched(peak):
        engine = engine_of(depth, shard, world)
        steps(engine)
    found = world.gather((private_mib() - before, peak[0] - before))
    if number == 0:
        numbers = sum(p.numel() for p in engine.trained.parameters())
        wanted = 16 * numbers / MIB / (ranks if shard == "fsdp" else 1)
        seen, peaks = (", ".join(f"{mib:.0f}" for mib in column) for column in zip(*found, strict=True))
        held = f"held {seen} MiB of {wanted:.0f} | peak {peaks} MiB"
        print(f"| {shard} | {numbers / 1e6:.1f} M parameters | {ranks} ranks | {held} |", flush=True)
    dist.destroy_process_group()


def main(ranks: int, depth: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for shard in ("none", "fsdp"):
            multiprocessing.spawn(rank, (ranks, depth, shard, folder), nprocs=ranks)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # the C library gives back what torch has freed
    main(*(given + [2, 14][len(given) :]))
