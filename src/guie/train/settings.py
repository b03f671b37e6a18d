"""How to train, as a config says it: the group `trainer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from guie.errors import UserError
from guie.train.schedule import Schedule, Shape

Rule = tuple[str, bool, str]


@dataclass(frozen=True)
class Settings:
    """How long, how fast and with what care to train. Config group `trainer`.

    `batch_size` counts all ranks and micro-batches; `accumulate` cuts a rank's share into that many.
    `max_steps` ends earlier than `epochs`. `clip_norm` 0 does not clip. `eval_every` and `save_every` count
    epochs (0: only at the end), `save_steps` adds checkpoints every so many steps. `monitor` names the
    measurement that finds the best.
    Rates: `schedule` and what shapes it are those of `Schedule`; `warmup` is a share of all steps, which
    `warmup_epochs` replaces; `final_lr` is a share of the base rate, `milestones` count epochs.
    Averages: `ema_decay` above 0 keeps a moving one, `uniform_from` the plain mean of the weights after that
    step and each later one; with `average_backbone=false` only of what stands behind the backbone.
    Freezing: `freeze_backbone` for the whole run, `unfreeze_at` until that part of all steps is done (then
    the backbone's rate warms up over the part `unfreeze_warmup`); `freeze_head` locks the head, with
    `unfreeze_at` from there on; `freeze_until` stops the layers before the first whose weights' names contain
    this pattern (`layer3`, `blocks.6.`).
    With `cache_features`, `mixup_alpha` above 0 blends two pictures' features and their losses by a share
    from Beta(alpha, alpha), at a step with probability `mixup_p`, until the part `mixup_until` of all steps.
    `refit_shrinkage` above 0 refits the neck in closed form after the last step (`models.refit`), which
    serves unseen classes; 0 leaves it as trained.
    """

    epochs: int = 10
    max_steps: int | None = None
    batch_size: int = 128
    accumulate: int = 1
    schedule: Shape = "cosine"
    warmup: float = 0.05
    warmup_epochs: float | None = None
    warmup_from: float | None = None
    warmup_prefix: bool = False
    final_lr: float = 0.0
    per_epoch: bool = False
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    power: float = 0.9
    momentum_range: tuple[float, float] | None = None
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    uniform_from: int | None = None
    average_backbone: bool = True
    freeze_backbone: bool = False
    unfreeze_at: float = 0.0
    unfreeze_warmup: float = 0.05
    freeze_head: bool = False
    freeze_until: str | None = None
    cache_features: bool = False
    cache_views: int = 1
    mixup_alpha: float = 0.0
    mixup_p: float = 0.5
    mixup_until: float = 0.9
    freeze_bn: bool = False
    sync_bn: bool = False
    eval_every: int = 1
    save_every: int = 1
    save_steps: int | None = None
    keep: int = 2
    monitor: str = "mP@5"
    refit_shrinkage: float = 0.0
    log_every: int = 10

    def check(self) -> Settings:
        """Return the settings; raises UserError naming the first that cannot be."""
        rules = [*self._rules_of_length(), *self._rules_of_rates(), *self._rules_of_parts()]
        for name, holds, accepted in rules:
            if not holds:
                raise UserError(f"trainer.{name}: {getattr(self, name)!r}; accepted: {accepted}")
        return self

    def num_steps(self, steps_per_epoch: int) -> int:
        """Return after how many optimiser steps training ends."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def pace(self, steps_per_epoch: int) -> Schedule:
        """Return what the base rates are multiplied by at each step."""
        steps = self.num_steps(steps_per_epoch)
        epochs = self.warmup_epochs
        return Schedule(
            steps,
            steps_per_epoch,
            self.schedule,
            round(self.warmup * steps) if epochs is None else round(epochs * steps_per_epoch),
            self.warmup_from,
            self.warmup_prefix,
            self.final_lr,
            self.per_epoch,
            self.milestones,
            self.gamma,
            self.power,
            self.momentum_range,
        )

    def unfreeze_step(self, steps: int) -> int:
        """Return at which of `steps` the backbone begins to learn."""
        return round(self.unfreeze_at * steps)

    def _rules_of_length(self) -> list[Rule]:
        return [
            ("epochs", self.epochs >= 1, "1 or more"),
            ("max_steps", self.max_steps is None or self.max_steps >= 1, "1 or more, or null"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("accumulate", self.accumulate >= 1, "1 or more"),
            ("save_steps", self.save_steps is None or self.save_steps >= 1, "1 or more, or null"),
            ("keep", self.keep >= 1, "1 or more"),
            ("log_every", self.log_every >= 1, "1 or more"),
        ]

    def _rules_of_rates(self) -> list[Rule]:
        start, pair, shapes = self.warmup_from, self.momentum_range, get_args(Shape)
        cycles = self.schedule == "one_cycle" and len(pair or ()) == 2
        return [
            ("schedule", self.schedule in shapes, ", ".join(shapes)),
            ("warmup", 0 <= self.warmup < 1, "a share of all steps, 0 <= warmup < 1"),
            ("warmup_epochs", (self.warmup_epochs or 0) >= 0, "0 or more, or null"),
            ("warmup_from", start is None or 0 <= start <= 1, "a share of the base rate, or null"),
            ("milestones", bool(self.milestones) or self.schedule != "step", "one or more epochs"),
            ("gamma", 0 < self.gamma <= 1, "0 < gamma <= 1"),
            ("power", self.power > 0, "above 0"),
            ("momentum_range", pair is None or cycles, "[low, high] with schedule=one_cycle, or null"),
            ("clip_norm", self.clip_norm >= 0, "0 (off) or more"),
        ]

    def _rules_of_parts(self) -> list[Rule]:
        cached, uniform, waits = self.cache_features, self.uniform_from, self.unfreeze_at > 0
        return [
            ("ema_decay", 0 <= self.ema_decay < 1, "0 (off) <= ema_decay < 1"),
            ("uniform_from", uniform is None or uniform >= 1, "1 or more, or null"),
            ("uniform_from", uniform is None or not self.ema_decay, "null, or ema_decay=0"),
            ("unfreeze_at", 0 <= self.unfreeze_at < 1, "a part of all steps, 0 (off) <= unfreeze_at < 1"),
            ("unfreeze_at", not (waits and self.freeze_backbone), "0 (off), or freeze_backbone=false"),
            ("unfreeze_warmup", 0 <= self.unfreeze_warmup < 1, "a part of all steps, 0 to 1"),
            ("cache_features", self.freeze_backbone or not cached, "false, or freeze_backbone=true"),
            ("cache_views", self.cache_views >= 1, "1 or more"),
            ("mixup_alpha", self.mixup_alpha >= 0, "0 (off) or more"),
            ("mixup_alpha", cached or not self.mixup_alpha, "0 (off), or more with cache_features=true"),
            ("mixup_p", 0 < self.mixup_p <= 1, "0 < mixup_p <= 1"),
            ("mixup_until", 0 < self.mixup_until <= 1, "0 < mixup_until <= 1, a part of all steps"),
            ("refit_shrinkage", self.refit_shrinkage >= 0, "0 (off) or more"),
        ]
