"""AdaCos: a normalised softmax whose scale is a number to find, not to tune."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from guie.errors import UserError
from guie.heads.centres import class_centres
from guie.heads.fused import Additive, Rule, margin_softmax
from guie.heads.labels import check_labels
from guie.heads.margin import check_range, checked_rule, margin_loss
from guie.heads.pairs import num_ranks, of_all_ranks
from guie.heads.reduction import Reduction
from guie.types import Batch, Loss, Output

_HIDDEN = 64.0  # how far below 0 the target's logit is put to leave the sum over classes: e^-64
_LEAST = 0.01  # of the scale: it would fall below 0 where all other classes lie opposite


class AdaCos(nn.Module):
    """Adaptively scaled cosines (Zhang et al., CVPR 2019): logits scale * cos, without margin.

    The fixed scale is log(C - 1) / cos(theta_zero), sqrt(2) * log(C - 1) at the paper's pi / 4. The `dynamic`
    one begins there, and each training batch makes the next: log(mean over the batch of the sum over the
    other classes of exp(scale * cos)) / cos(min(theta_zero, median angle to the target)). The batch is that
    of all ranks, which so keep one scale; they must hold equally many pictures. Of an even number the lower
    of the two middle angles is the median. Where a step calls the head several times (micro-batches, mixup,
    prefixes of `Matryoshka`), each call makes a scale of its own from the one before the step, and the step
    leaves their mean. Other parameters as in `ArcFace`.
    """

    def __init__(  # noqa: PLR0913
        self,
        dynamic: bool = True,
        theta_zero: float = 0.7853981633974483,
        label_smoothing: float = 0.0,
        chunk: int | None = None,
        init: Literal["xavier", "uniform"] = "xavier",
        centres: str | None = None,
        focal: float = 0.0,
        per_domain: Any = None,
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        if num_classes < 3:
            raise UserError(f"head: AdaCos with {num_classes} classes; accepted: 3 or more, or head=normface")
        check_range("theta_zero", theta_zero, 0, 1.5, "radians (pi / 4 is the paper's)")
        self.dynamic, self.theta_zero = dynamic, theta_zero
        first = math.log(num_classes - 1) / math.cos(theta_zero)
        self.rule = checked_rule(Rule(Additive(0.0), first, label_smoothing, chunk))
        self.register_buffer("scale", torch.tensor(first))
        # Not in the state dict: they begin anew with each step.
        self.register_buffer("before", torch.tensor(first), False)
        self.register_buffer("calls", torch.zeros(()), False)
        self.reduction = Reduction(focal, per_domain)
        self.weight = class_centres((num_classes, embed_dim), init, centres)

    def at_step(self, step: int, steps: int, steps_per_epoch: int) -> None:
        """Begin a step: its calls start from the scale that is there."""
        del step, steps, steps_per_epoch
        self.get_buffer("calls").zero_()

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean loss at the scale that this batch makes; logs what `ArcFace` does, and `scale`."""
        scale = self.get_buffer("scale").clone()  # the backward pass reads it, maybe after the next batch
        if self.dynamic and self.training:
            check_labels(batch.labels, len(self.weight))
            scale = self._moved(output.raw.detach(), batch.labels)
        rule = replace(self.rule, scale=scale)
        loss = margin_loss(output.raw, self.weight, batch, rule, self.reduction)
        return Loss(loss.total, {**loss.scalars, "scale": scale})

    @torch.no_grad()
    def _moved(self, raw: Tensor, labels: Tensor) -> Tensor:
        """Return the scale () that this call makes, and take it into the mean of the step's calls."""
        scale, before, calls = (self.get_buffer(name) for name in ("scale", "before", "calls"))
        before.copy_(torch.where(calls == 0, scale, before))
        found = self._next_scale(raw, labels, before).to(scale.dtype)
        calls += 1
        scale.lerp_(found, 1 / calls)
        return found

    def _next_scale(self, raw: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        hidden = Rule(_Hidden(scale), scale, chunk=self.rule.chunk)
        found = margin_softmax(raw.to(self.weight.dtype), self.weight, labels, hidden)
        columns = torch.stack([found.losses - _HIDDEN, found.cosine], 1)
        others, cosines = (of_all_ranks(columns) if num_ranks() > 1 else columns).unbind(1)
        log_mean = others.logsumexp(0) - math.log(len(others))
        angle = cosines.acos().median().clamp_max(self.theta_zero)
        return (log_mean / angle.cos()).clamp_min(_LEAST)


class _Hidden:
    """A margin that takes the target out of the softmax: its logit is -64, whatever its cosine."""

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale

    def __call__(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and slopes."""
        return torch.full_like(cosine, -_HIDDEN) / self.scale, torch.zeros_like(cosine)
