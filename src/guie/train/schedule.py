"""Learning rate and momentum as pure functions of the step: a resumed run needs no state for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "linear", "constant", "step", "exponential", "poly", "one_cycle"]

ONE_CYCLE_START = 1 / 25


@dataclass(frozen=True)
class Schedule:
    """What the base rates are multiplied by at each of `steps` steps.

    Warm-up rises linearly to 1: from 1 / warmup_steps at step 0, or from `warmup_from`. Then `cosine`,
    `linear` and `poly` (1 - progress)^power fall from 1 towards `final`, reached at `steps` (one past the
    end); with `warmup_prefix` the fall is as long as the whole run and its end cuts it off (timm's
    CosineLRScheduler with t_initial = epochs). `step` multiplies by `gamma` at each of `milestones` (epochs),
    `exponential` by gamma every epoch. `one_cycle` (Smith 2018; torch's OneCycleLR with two phases) rises for
    warmup_steps from `warmup_from` (1/25 if None) by half a cosine and falls by another to `final` at the
    last step, while momentum falls from the higher to the lower of `momentum_range` and rises again. With
    `per_epoch` all keep the value of the epoch's beginning, as schedulers do that are stepped once an epoch.
    """

    steps: int
    steps_per_epoch: int = 1
    shape: Shape = "cosine"
    warmup_steps: int = 0
    warmup_from: float | None = None
    warmup_prefix: bool = False
    final: float = 0.0
    per_epoch: bool = False
    milestones: Sequence[float] = ()
    gamma: float = 0.1
    power: float = 0.9
    momentum_range: Sequence[float] | None = None

    def factor(self, step: int) -> float:
        """Return what the base rate is multiplied by at `step` (0 .. steps - 1)."""
        now, end, rise = self._clock(step)
        if self.shape == "one_cycle":
            start = ONE_CYCLE_START if self.warmup_from is None else self.warmup_from
            return one_cycle(now, end, rise, (start, 1.0, self.final))
        if now < rise:
            return warmup(now, rise, self.warmup_from)
        if self.shape in ("step", "exponential"):
            epoch = now if self.per_epoch else step / self.steps_per_epoch
            passed = sum(epoch >= milestone for milestone in self.milestones)
            return self.gamma ** (passed if self.shape == "step" else epoch)
        length = end if self.warmup_prefix else end - rise
        return self.final + (1.0 - self.final) * self._falling(min(1.0, (now - rise) / max(1, length)))

    def momentum(self, step: int) -> float | None:
        """Return the momentum (Adam's first beta) at `step`, None where the optimiser keeps its own."""
        if self.shape != "one_cycle" or self.momentum_range is None:
            return None
        low, high = sorted(self.momentum_range)
        return one_cycle(*self._clock(step), (high, low, high))

    def _clock(self, step: int) -> tuple[float, float, float]:
        """Return now, the end and the end of warm-up, in steps or in epochs."""
        if not self.per_epoch:
            return step, self.steps, self.warmup_steps
        length = self.steps_per_epoch
        return step // length, self.steps / length, self.warmup_steps / length

    def _falling(self, progress: float) -> float:
        if self.shape == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        exponent = {"constant": 0.0, "linear": 1.0}.get(self.shape, self.power)
        return (1.0 - progress) ** exponent


def warmup(now: float, rise: float, start: float | None = None) -> float:
    """Return the factor before `rise`: (now + 1) / rise, or the line from `start` at 0 to 1 at `rise`."""
    if start is None:
        return min(1.0, (now + 1) / rise)
    return start + (1.0 - start) * now / rise


def one_cycle(now: float, end: float, rise: float, values: tuple[float, float, float]) -> float:
    """Return half a cosine from values[0] to values[1] at rise - 1, another to values[2] at end - 1."""
    peak = max(0.0, rise - 1)
    if now < peak:
        return _between(values[0], values[1], now / peak)
    return _between(values[1], values[2], min(1.0, (now - peak) / max(1e-9, end - 1 - peak)))


def _between(start: float, stop: float, share: float) -> float:
    return stop + (start - stop) * 0.5 * (1.0 + math.cos(math.pi * share))
