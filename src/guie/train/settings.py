"""How to train, as a config says it: the group `trainer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guie.errors import UserError


@dataclass(frozen=True)
class Settings:
    """How long, how fast and with what care to train. Config group `trainer`.

    `batch_size` counts all ranks and micro-batches; `accumulate` cuts a rank's share into that many.
    `max_steps` ends earlier than `epochs`. `warmup` is a share of all steps. `clip_norm` 0 does not clip;
    `ema_decay` 0 keeps no average. `eval_every` and `save_every` count epochs (0: only at the end),
    `save_steps` adds checkpoints every so many steps. `monitor` names the measurement that finds the best.
    With `cache_features`, `mixup_alpha` above 0 blends two pictures' features and their losses by a share
    from Beta(alpha, alpha), at a step with probability `mixup_p`, until the part `mixup_until` of all steps.
    `refit_shrinkage` above 0 refits the neck in closed form after the last step (`models.refit`), which
    serves unseen classes; 0 leaves it as trained.
    """

    epochs: int = 10
    max_steps: int | None = None
    batch_size: int = 128
    accumulate: int = 1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    final_lr: float = 0.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    freeze_backbone: bool = False
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
        rules: list[tuple[str, bool, str]] = [
            ("epochs", self.epochs >= 1, "1 or more"),
            ("max_steps", self.max_steps is None or self.max_steps >= 1, "1 or more, or null"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("accumulate", self.accumulate >= 1, "1 or more"),
            ("schedule", self.schedule in ("cosine", "linear", "constant"), "cosine, linear, constant"),
            ("warmup", 0 <= self.warmup < 1, "a share of all steps, 0 <= warmup < 1"),
            ("clip_norm", self.clip_norm >= 0, "0 (off) or more"),
            ("ema_decay", 0 <= self.ema_decay < 1, "0 (off) <= ema_decay < 1"),
            (
                "cache_features",
                self.freeze_backbone or not self.cache_features,
                "false, or freeze_backbone=true",
            ),
            ("cache_views", self.cache_views >= 1, "1 or more"),
            ("mixup_alpha", self.mixup_alpha >= 0, "0 (off) or more"),
            (
                "mixup_alpha",
                self.cache_features or not self.mixup_alpha,
                "0 (off), or more with cache_features=true",
            ),
            ("mixup_p", 0 < self.mixup_p <= 1, "0 < mixup_p <= 1"),
            ("mixup_until", 0 < self.mixup_until <= 1, "0 < mixup_until <= 1, a part of all steps"),
            ("save_steps", self.save_steps is None or self.save_steps >= 1, "1 or more, or null"),
            ("keep", self.keep >= 1, "1 or more"),
            ("refit_shrinkage", self.refit_shrinkage >= 0, "0 (off) or more"),
            ("log_every", self.log_every >= 1, "1 or more"),
        ]
        for name, holds, accepted in rules:
            if not holds:
                raise UserError(f"trainer.{name}: {getattr(self, name)!r}; accepted: {accepted}")
        return self

    def num_steps(self, steps_per_epoch: int) -> int:
        """Return after how many optimiser steps training ends."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)
