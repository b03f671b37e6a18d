"""Exponential moving average of the embedder's weights: what is evaluated and exported when it is on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Keep `average = decay * average + (1 - decay) * weights`; buffers are copied, not averaged.

    The decay grows as (1 + n) / (10 + n) until it reaches `decay`, so that the random start is forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._live = dict(module.state_dict(keep_vars=True))
        self.average = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's present weights; call it after each optimiser step."""
        self.num_updates += 1
        weight = 1.0 - min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        learned = [name for name, value in self._live.items() if isinstance(value, nn.Parameter)]
        live = [self._live[name].detach() for name in learned]
        torch._foreach_lerp_([self.average[name] for name in learned], live, weight)
        for name in self._live.keys() - set(learned):
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
