"""Parameters of which each rank holds other rows: what has to be done once for all of them together.

A head marks such a parameter by an attribute `shard` with `start`, `stop` and `total`: its rows among all.
FSDP makes of a parameter, its gradient and its state DTensors (`train.fsdp`). Either gradient is that of the
whole batch already, so nobody averages it; its length counts every shard once; a checkpoint holds all rows,
so that another number of ranks can cut them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from guie.errors import UserError
from guie.train.distributed import World

_SENT_BYTES = 64 << 20  # in one message: all that is held beside a shard and the whole


def sharded_names(module: nn.Module) -> list[str]:
    """Return the names of the module's parameters that are cut over ranks."""
    return [name for name, parameter in module.named_parameters() if _is_cut(parameter)]


def by_fsdp(value: Any) -> bool:
    """Return whether `value` is a DTensor (whose module takes half a second to import)."""
    return hasattr(value, "to_local")


def local(value: Any) -> Tensor:
    """Return this rank's rows of a DTensor, in its memory; any other tensor as it is."""
    return value.to_local() if by_fsdp(value) else value


def whole_norms(norms: Sequence[Tensor], parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return L2 norms (), one of each parameter: those of shards become those of all their rows."""
    whole = list(norms)
    cut = [i for i, parameter in enumerate(parameters) if _is_cut(parameter)]
    if cut:
        squares = torch.stack([whole[i] for i in cut]).square()
        dist.all_reduce(squares)
        for i, square in zip(cut, squares, strict=True):
            whole[i] = square.sqrt()
    return whole


def scaler(module: nn.Module, device: torch.device, enabled: bool) -> torch.amp.GradScaler:
    """Return a gradient scaler; where there are shards, one whose ranks skip the same steps."""
    if not (enabled and sharded_names(module)):
        return torch.amp.GradScaler(device.type, enabled=enabled)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler(device.type)


def whole_weights(
    module: nn.Module, world: World, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the state dict (or `weights` cut like it), on rank 0 with every row of its shards.

    All ranks must ask for it together.
    """
    live = _parameters(module)
    values = module.state_dict() if weights is None else weights
    return {name: _whole(value, live.get(name), world) for name, value in values.items()}


def own_weights(module: nn.Module, weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return `weights` with this rank's rows of what is cut; UserError where not all rows are given."""
    live = _parameters(module)
    for name, value in weights.items():
        shape = _whole_shape(live.get(name, value))
        if name in live and _is_cut(live[name]) and tuple(value.shape) != shape:
            has = f"the checkpoint has {tuple(value.shape)}, the model {shape}"
            raise UserError(f"checkpoint: {part}.{name}: {has}, cut over {dist.get_world_size()} ranks")
    return {name: _own(value, live.get(name)) for name, value in weights.items()}


def whole_state(optimizer: Optimizer, world: World) -> dict[str, Any]:
    """Return the optimiser's state, on rank 0 with every row of what belongs to shards."""
    return _changed(optimizer.state_dict(), optimizer, lambda value, of: _whole(value, of, world))


def own_state(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimiser's whole state with only this rank's rows of what belongs to shards."""
    return _changed(state, optimizer, _own)


def _changed(
    state: Mapping[str, Any], optimizer: Optimizer, change: Callable[[Tensor, Tensor | None], Tensor]
) -> dict[str, Any]:
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    changed = {
        i: {key: change(v, parameters.get(i)) if isinstance(v, Tensor) else v for key, v in entries.items()}
        for i, entries in state["state"].items()
    }
    return {**state, "state": changed}


def _whole(value: Any, parameter: Tensor | None, world: World) -> Tensor:
    """Return on rank 0 all rows of what is shaped like a shard; anything else as it is."""
    if by_fsdp(value):
        every: Tensor = value.full_tensor()
        return every.cpu() if world.is_main else value
    shard = _shard(parameter)
    if parameter is None or shard is None or value.shape != parameter.shape:
        return value
    bounds = world.gather((shard.start, shard.stop))
    if not world.is_main:
        for piece in _pieces(value.detach()):
            dist.send(piece.cpu().contiguous(), 0)
        return value
    whole = torch.empty(_whole_shape(parameter), dtype=value.dtype)
    whole[shard.start : shard.stop] = value.detach()
    for rank, (start, stop) in enumerate(bounds[1:], start=1):
        for piece in _pieces(whole[start:stop]):
            dist.recv(piece, rank)
    return whole


def _own(value: Tensor, parameter: Tensor | None) -> Tensor:
    shard = _shard(parameter)
    if parameter is None or not _is_cut(parameter) or tuple(value.shape) != _whole_shape(parameter):
        return value
    if shard is None:
        return _own_rows(value, parameter)
    return value[shard.start : shard.stop].clone()


def _own_rows(value: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    # Nothing is sent: every rank has read the whole, of which the clone keeps no more than its rows.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).clone()


def _pieces(rows: Tensor) -> Iterator[Tensor]:
    each = max(1, _SENT_BYTES // max(1, rows[:1].numel() * rows.element_size()))
    return iter(rows.split(each))


def _whole_shape(parameter: Tensor) -> tuple[int, ...]:
    shard = _shard(parameter)
    return tuple(parameter.shape) if shard is None else (shard.total, *parameter.shape[1:])


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(remove_duplicate=False))


def _shard(parameter: Tensor | None) -> Any:
    return getattr(parameter, "shard", None)


def _is_cut(parameter: Tensor) -> bool:
    return by_fsdp(parameter) or _shard(parameter) is not None
