"""Heads with a margin between classes: weights, checks and logged values around the fused loss.

Each keeps one weight row per class (or K rows), reads `Output.raw` and `Batch.labels`, and computes in the
dtype of its weights (float32, or float64 after `.double()`) whatever autocast says. The loss is the mean
over the batch, so that DDP's mean of gradients equals one process with the whole batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from guie.errors import UserError
from guie.heads.fused import Additive, Angular, Rule, margin_softmax
from guie.types import Batch, Loss, Output


class ArcFace(nn.Module):
    """Additive angular margin (Deng et al., CVPR 2019, eq. 3): logits scale * cos(angle + margin).

    `margin` in radians, with easy_margin False. `chunk` forms at most so many classes at a time to bound
    memory (null: the buffer of B x C is dropped where it outgrows the weights). `init`: "xavier" uniform, or
    "uniform" within 1 / sqrt(D).
    """

    def __init__(
        self,
        scale: float = 30.0,
        margin: float = 0.5,
        label_smoothing: float = 0.0,
        chunk: int | None = None,
        init: Literal["xavier", "uniform"] = "xavier",
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        _check_range("margin", margin, 0, math.pi / 2, "radians (0.5 is usual)")
        self.rule = checked_rule(Rule(Angular(margin), scale, label_smoothing, chunk))
        self.weight = nn.Parameter(initial_weight((num_classes, embed_dim), init))

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean loss; logs `loss`, `accuracy` without margin and mean `target_cosine`."""
        return margin_loss(output.raw, self.weight, batch.labels, self.rule)


class CosFace(nn.Module):
    """Additive cosine margin (Wang et al., CVPR 2018, eq. 4): logits scale * (cos - margin).

    `margin` 0 is the normalised softmax (NormFace). Other parameters as in `ArcFace`.
    """

    def __init__(
        self,
        scale: float = 30.0,
        margin: float = 0.35,
        label_smoothing: float = 0.0,
        chunk: int | None = None,
        init: Literal["xavier", "uniform"] = "xavier",
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        _check_range("margin", margin, 0, 2, "")
        self.rule = checked_rule(Rule(Additive(margin), scale, label_smoothing, chunk))
        self.weight = nn.Parameter(initial_weight((num_classes, embed_dim), init))

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean loss; logs `loss`, `accuracy` without margin and mean `target_cosine`."""
        return margin_loss(output.raw, self.weight, batch.labels, self.rule)


class SubCenterArcFace(nn.Module):
    """ArcFace with `k` centres per class, the nearest one counting (Deng et al., ECCV 2020).

    Lets a class of several looks, or with wrong labels, keep more than one centre. Weights (k, C, D).
    """

    def __init__(  # noqa: PLR0913
        self,
        k: int = 3,
        scale: float = 30.0,
        margin: float = 0.5,
        label_smoothing: float = 0.0,
        chunk: int | None = None,
        init: Literal["xavier", "uniform"] = "xavier",
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        _check_range("margin", margin, 0, math.pi / 2, "radians (0.5 is usual)")
        _check_range("k", k, 1, 255, "sub-centres")
        self.rule = checked_rule(Rule(Angular(margin), scale, label_smoothing, chunk))
        self.weight = nn.Parameter(initial_weight((k, num_classes, embed_dim), init))

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean loss; logs `loss`, `accuracy` without margin and mean `target_cosine`."""
        return margin_loss(output.raw, self.weight, batch.labels, self.rule)


def margin_loss(raw: Tensor, weight: Tensor, labels: Tensor, rule: Rule) -> Loss:
    """Return the mean fused loss of `raw` (B, D) against `weight` ((K,) C, D), with its scalars.

    Raises UserError for a label outside 0..C-1 (on a GPU: a device-side assertion, to spare a wait).
    """
    check_labels(labels, weight.shape[-2])
    found = margin_softmax(raw.to(weight.dtype), weight, labels, rule)
    total = found.losses.mean()
    scalars: dict[str, float | Tensor] = {
        "loss": total.detach(),
        "accuracy": found.correct.float().mean(),
        "target_cosine": found.cosine.mean(),
    }
    return Loss(total, scalars)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels (B,) outside 0..num_classes-1."""
    inside = ((labels >= 0) & (labels < num_classes)).all()
    message = f"labels: {{}} received; accepted: 0..{num_classes - 1} (the head has {num_classes} classes)"
    if labels.is_cuda:
        torch._assert_async(inside, message.format("a value out of range"))
    elif not inside:
        raise UserError(message.format(f"{int(labels.min())}..{int(labels.max())}"))


def initial_weight(shape: tuple[int, ...], init: str) -> Tensor:
    """Return random rows (..., C, D), "xavier" uniform over (C, D) or "uniform" within 1 / sqrt(D)."""
    classes, width = shape[-2:]
    if init not in ("xavier", "uniform"):
        raise UserError(f"head.init: {init!r} received; accepted: xavier, uniform")
    bound = math.sqrt(6 / (classes + width)) if init == "xavier" else 1 / math.sqrt(width)
    return torch.empty(shape).uniform_(-bound, bound)


def checked_rule(rule: Rule) -> Rule:
    """Return `rule`, or raise UserError naming the parameter out of range."""
    _check_range("scale", rule.scale, 1e-6, 1e4, "(30 to 64 is usual)")
    _check_range("label_smoothing", rule.smoothing, 0, 1, "")
    if rule.chunk is not None:
        _check_range("chunk", rule.chunk, 1, math.inf, "classes, or null for none")
    return rule


def _check_range(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise UserError(f"head.{name}: {value} received; accepted: {low:g} to {high:.4g} {unit}".rstrip())
