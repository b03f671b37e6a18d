"""Which process of how many this is, on what device, and how the processes agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from guie.errors import UserError
from guie.launch import placement

T = TypeVar("T")


@dataclass(frozen=True)
class Hardware:
    """How the arithmetic is done. Config group `hw`.

    `precision` auto is bf16 on a GPU that has it, else fp32; native is bf16 also on a processor that
    multiplies it itself (AVX-512 bf16, AMX: twice as fast as fp32, where emulation would be slower).
    `shard` says what each of several processes holds: none, the whole model (DDP); fsdp, a part of every
    weight, gradient and optimiser state (`train.fsdp`).
    `workers` decode pictures (None: one per core that is left). `threads` are torch's on the CPU (None:
    torch's own choice).
    """

    precision: Literal["auto", "native", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = False
    compile: bool = False
    tf32: bool = True
    shard: Literal["none", "fsdp"] = "none"
    workers: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class World:
    """One process among `size`; rank 0 writes files."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    waiting: Any = None  # the group in which the ranks wait for what rank 0 does alone, however long

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files and speaks."""
        return self.rank == 0

    def any(self, flag: int) -> int:
        """Return the largest `flag` of all ranks: they stop together or not at all."""
        if self.size == 1:
            return flag
        shared = torch.tensor([flag])  # on the CPU, so that asking does not wait for the GPU
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` averaged over ranks."""
        if self.size == 1:
            return values
        shared = values.clone()
        dist.all_reduce(shared)
        return shared / self.size

    def gather(self, value: Any) -> list[Any]:
        """Return each rank's `value`, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and return its result everywhere; its UserError is raised everywhere, too."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except UserError as error:
                outcome[1] = str(error)
        dist.broadcast_object_list(outcome, src=0, group=self.waiting)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]

    def on_main_first(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank, on rank 0 before the others: it makes the cache that they then open."""
        made: list[T] = []
        self.on_main(lambda: made.append(work()))  # an error of rank 0 is everybody's: nobody waits for ever
        return made[0] if self.is_main else work()


@contextmanager
def world(device: str = "auto", timeout_s: float = 1800.0) -> Iterator[World]:
    """Join the processes that torchrun, srun or `launch.*` started (`launch.placement`), or be alone.

    `device` is auto, cpu or cuda; each process takes the GPU of its local rank.
    Raises UserError where cuda is asked for and absent.
    """
    place = placement()
    chosen = pick_device(device, place.local_rank)
    if place.size == 1:
        yield World(device=chosen)
        return
    # Control messages stay on gloo: they must not wait for the GPU's queue.
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    where = f"tcp://{place.meeting}" if place.meeting else "env://"
    limit = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, where, limit, world_size=place.size, rank=place.rank)
    try:
        waiting = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        yield World(place.rank, place.size, chosen, waiting)
    finally:
        dist.destroy_process_group()


def pick_device(device: str, local_rank: int = 0) -> torch.device:
    """Return the torch device meant by auto, cpu or cuda."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device: '{device}'; accepted: auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: 'cuda', but torch finds no GPU; accepted here: auto, cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    index = _gpu_of(local_rank, torch.cuda.device_count())
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _gpu_of(local_rank: int, visible: int) -> int:
    """Return the GPU of a process: the only one where it sees one (SLURM's --gpus-per-task), else its own."""
    mates = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if mates > visible or (visible > 1 and local_rank >= visible):
        num = max(mates, local_rank + 1)
        raise UserError(f"launch: {num} processes on a machine with {visible} GPUs; accepted: one for each")
    return local_rank if visible > 1 else 0


def precision(wanted: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast type meant by auto, native, fp32, bf16 or fp16; None is full precision."""
    if wanted in ("auto", "native"):
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        on_cpu = wanted == "native" and device.type == "cpu" and cpu_has_bf16()
        return torch.bfloat16 if on_gpu or on_cpu else None
    accepted = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if wanted not in accepted:
        raise UserError(f"hw.precision: '{wanted}'; accepted: auto, native, {', '.join(accepted)}")
    return accepted[wanted]


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the processor says (on Linux) that it multiplies bf16 itself."""
    try:
        words = set(cpuinfo.read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16"})


def replicate(module: nn.Module, here: World, static: bool = True, apart: Sequence[str] = ()) -> nn.Module:
    """Wrap `module` so that its gradients are averaged over ranks; alone it is returned as it is.

    `static`: every step uses the same parameters, which lets torch overlap more; torch allows that only
    where no step accumulates several backward passes. The parameters named `apart` are each rank's own.
    Buffers that a part of `module` lists in `equal_buffers` are the same on all ranks by what they are filled
    with, so rank 0 does not send them at each forward pass, as it does statistics.
    """
    shared = [p for name, p in module.named_parameters() if name not in apart]
    if here.size == 1 or not any(p.requires_grad for p in shared):
        return module
    unsent = [*apart, *_equal_buffers(module)]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, unsent)
    return nn.parallel.DistributedDataParallel(
        module, static_graph=static, find_unused_parameters=not static, gradient_as_bucket_view=True
    )


def _equal_buffers(module: nn.Module) -> list[str]:
    parts = module.named_modules()
    return [f"{name}.{own}".lstrip(".") for name, part in parts for own in getattr(part, "equal_buffers", ())]
