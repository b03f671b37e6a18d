"""Weights, gradients and optimiser states cut over ranks (FSDP2), for towers that no device holds whole.

Each rank keeps a part of the rows of every parameter (`train.sharding` puts them together for a checkpoint);
a block's weights are whole only while it works. Averaging, clipping and steps are those of DDP but for
rounding. What stays to be held whole: on each rank, in host memory, the embedder while it is built; on rank
0, the weights while it evaluates, refits or saves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from guie.errors import UserError
from guie.train.distributed import Hardware, World
from guie.train.sharding import sharded_names
from guie.train.synced_bn import synchronise
from guie.types import Batch

_SENT_BYTES = 64 << 20  # in one message


def check(hardware: Hardware) -> None:
    """Raise UserError for what does not go with `hw.shard=fsdp`, named by its key."""
    if hardware.shard == "none":
        return
    if hardware.compile:
        raise UserError("hw.compile: true with hw.shard=fsdp; accepted: false, or hw.shard=none")
    if hardware.precision == "fp16":
        raise UserError("hw.precision: 'fp16' with hw.shard=fsdp; accepted: auto, native, fp32, bf16")


def cut(
    trained: Any, optimizer: Optimizer, dtype: torch.dtype | None, sync_bn: bool, world: World
) -> nn.Module:
    """Cut the parameters of `trained` (its `embedder` and `head`) over ranks; return the embedder's skeleton.

    The optimiser, which must not have stepped yet, gets the new parameters in place of the old. What a head
    has cut itself (partial FC) stays as it is. Matrices of blocks are gathered in `dtype`, which autocast
    would make of them (and keep them whole until the backward pass); the rest in its own type.

    Raises UserError for a parameter that is a single number.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    trained.to("cpu")  # what a rank has used before is on its device; blocks go there one by one, cut
    skeleton = _skeleton(trained.embedder)
    own = set(sharded_names(trained))
    _prepare({n: p for n, p in trained.named_parameters() if n not in own}, trained.buffers())
    if sync_bn:
        synchronise(trained)
    apart = {trained.get_parameter(name) for name in own}
    names = _names(optimizer, trained)
    for parameter in apart:
        parameter.data = parameter.data.to(world.device)
    rules: dict[str, Any] = {
        "mesh": init_device_mesh(world.device.type, (world.size,)),
        "ignored_params": apart,
    }
    policy = _policy(dtype)
    for block in blocks(getattr(trained.embedder, "backbone", trained.embedder)):
        fully_shard(block, mp_policy=policy, **rules)
    fully_shard(trained, **rules)
    for group, learn in zip(optimizer.param_groups, names, strict=True):
        group["params"] = [trained.get_parameter(name) for name in learn]
    return skeleton


class Cut:
    """Calls a cut model as DDP does a replicated one: with the buffers of rank 0.

    In `no_sync` no gradient is sent: those of micro-batches are kept whole until the last one.
    """

    def __init__(self, trained: Any) -> None:
        self._trained, self._shares = trained, True

    def __call__(self, batch: Batch) -> Any:
        """Return what the model returns."""
        if self._shares:
            _take_from_main(list(self._trained.buffers()))
        return self._trained(batch)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Keep each rank's gradients to itself for as long as the block lasts."""
        self._set(False)
        try:
            yield
        finally:
            self._set(True)

    def _set(self, shares: bool) -> None:
        self._shares = shares
        self._trained.set_requires_gradient_sync(shares)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network: two or more of one class in a list, each made of other modules.

    Where such lists hold one another (the stages of a ConvNeXt) it is the innermost that count.
    """
    found: list[nn.Module] = []
    for listed in network.modules():
        if isinstance(listed, nn.Sequential | nn.ModuleList):
            members = [child for child in listed.children() if any(True for _ in child.parameters())]
            alike = len({type(member) for member in members}) == 1
            if alike and len(members) > 1 and all(any(True for _ in m.children()) for m in members):
                found += members
    inside = set(found)
    return [block for block in found if not any(m in inside for m in block.modules() if m is not block)]


def filled(skeleton: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """Return an embedder with its own copy of `weights`, in evaluation mode."""
    made = copy.deepcopy(skeleton)
    made.load_state_dict({name: v.to(device, copy=True) for name, v in weights.items()}, assign=True)
    return made.to(device).eval()


def _skeleton(embedder: nn.Module) -> nn.Module:
    """Return a copy whose parameters take no memory; what FSDP has cut cannot be copied."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in embedder.parameters()}
    return copy.deepcopy(embedder, empty)


def _policy(dtype: torch.dtype | None) -> Any:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if dtype is None:
        return MixedPrecisionPolicy()
    if "param_dtype_override_fn" not in MixedPrecisionPolicy.__dataclass_fields__:
        has = f"hw.precision: bf16 with hw.shard=fsdp and torch {torch.__version__}"
        raise UserError(f"{has}; accepted: torch 2.15, or hw.precision=fp32")
    return MixedPrecisionPolicy(
        dtype, torch.float32, cast_forward_inputs=False, param_dtype_override_fn=_dtype_of_vectors
    )


def _dtype_of_vectors(parameter: Tensor) -> torch.dtype | None:
    """Return the type of biases, norms and scales of layers: their own, as under autocast."""
    return parameter.dtype if parameter.ndim < 2 else None


def _prepare(parameters: Mapping[str, nn.Parameter], buffers: Iterator[Tensor]) -> None:
    """Lay parameters out as FSDP wants them; every rank begins with those of rank 0."""
    for name, parameter in parameters.items():
        if parameter.ndim == 0:
            raise UserError(f"hw.shard: fsdp cannot cut {name}, a single number; accepted: none")
        parameter.data = parameter.data.contiguous()
    _take_from_main([*(parameter.detach() for parameter in parameters.values()), *buffers])


def _take_from_main(tensors: list[Tensor]) -> None:
    if tensors:
        dist._broadcast_coalesced(dist.distributed_c10d._get_default_group(), tensors, _SENT_BYTES, 0)


def _names(optimizer: Optimizer, module: nn.Module) -> list[list[str]]:
    """Return the names of each group's parameters; the optimiser lets go of them, to be freed."""
    assert not optimizer.state, "an optimiser that has stepped holds whole states"
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    names = [[known[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["params"] = []
    return names
