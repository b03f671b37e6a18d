"""Averages of the embedder's weights: what is evaluated and exported where one is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from guie.train.settings import Settings

Weight = Callable[[int], float]
"""The number of this update, from 1, to the weight of the present weights in the average."""


def ema_weight(update: int, decay: float) -> float:
    """Return 1 - decay; the decay grows as (1 + n) / (10 + n), so that the random start is forgotten."""
    return 1.0 - min(decay, (1 + update) / (10 + update))


def uniform_weight(update: int, first: int) -> float:
    """Return what makes the average the plain mean of the weights after the updates `first` to `update`."""
    return 1.0 / max(1, update - first + 1)


class Average:
    """Keep `average = (1 - weight) * average + weight * weights`; buffers are copied, not averaged.

    Weights that do not learn are left alone: the average of a constant is the constant. With `skip_backbone`
    the backbone is copied, too, so that only what stands behind it is averaged.
    """

    def __init__(self, module: nn.Module, weight: Weight, skip_backbone: bool = False) -> None:
        self.weight, self.num_updates = weight, 0
        self._live = dict(module.state_dict(keep_vars=True))
        self.average = {name: value.detach().clone() for name, value in self._live.items()}
        learned = {name for name, value in self._live.items() if isinstance(value, nn.Parameter)}
        self._averaged = [n for n in self._live if n in learned and not (skip_backbone and _of_backbone(n))]
        self._copied = [name for name in self._live if name not in set(self._averaged)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's present weights; call it after each optimiser step."""
        self.num_updates += 1
        learns = [name for name in self._averaged if self._live[name].requires_grad]
        live = [self._live[name].detach() for name in learns]
        torch._foreach_lerp_([self.average[name] for name in learns], live, self.weight(self.num_updates))
        for name in self._copied:
            self.average[name].copy_(self._live[name])

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor], num_updates: int) -> None:
        """Continue from a saved average."""
        for name, value in self.average.items():
            value.copy_(average[name])
        self.num_updates = num_updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Lend the averaged weights to the module for as long as the block lasts."""
        kept = {name: value.detach().clone() for name, value in self._live.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self._live.items():
            value.copy_(values[name])


def average_of(module: nn.Module, settings: Settings) -> Average | None:
    """Return the average that the settings ask for, None where they ask for none."""
    skip = not settings.average_backbone
    if settings.uniform_from is not None:
        return Average(module, partial(uniform_weight, first=settings.uniform_from), skip)
    if settings.ema_decay:
        return Average(module, partial(ema_weight, decay=settings.ema_decay), skip)
    return None


def _of_backbone(name: str) -> bool:
    return name.startswith("backbone.")
