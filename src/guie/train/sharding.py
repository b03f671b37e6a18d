"""Parameters of which each rank holds other rows: what has to be done once for all of them together.

A head marks such a parameter by an attribute `shard` with `start`, `stop` and `total`: its rows among all.
Its gradient is that of the whole batch already, so nobody averages it; a length counts every shard once; a
checkpoint holds the whole, so that another number of ranks can cut it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from guie.errors import UserError
from guie.train.world import World

_SENT_BYTES = 64 << 20  # at once: all that is held beside a shard and the whole


def is_sharded(parameter: Tensor) -> bool:
    """Return whether other ranks hold other rows of this parameter."""
    return hasattr(parameter, "shard")


def sharded_names(module: nn.Module) -> list[str]:
    """Return the names of the module's parameters that are cut over ranks."""
    return [name for name, parameter in module.named_parameters() if is_sharded(parameter)]


def whole_norms(norms: Sequence[Tensor], parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the L2 norms () of the parameters' gradients, those of shards taken over all ranks."""
    whole = list(norms)
    cut = [i for i, parameter in enumerate(parameters) if is_sharded(parameter)]
    if cut:
        squares = torch.stack([whole[i] for i in cut]).square()
        dist.all_reduce(squares)
        for i, norm in zip(cut, squares.sqrt(), strict=True):
            whole[i] = norm
    return whole
