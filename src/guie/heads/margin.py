"""Heads with a margin between classes: weights, checks and logged values around the fused loss.

Each keeps one weight row per class (or K rows), reads `Output.raw` and `Batch.labels`, and computes in the
dtype of its weights (float32, or float64 after `.double()`) whatever autocast says. The loss is the mean
over the batch, so that DDP's mean of gradients equals one process with the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from guie.errors import UserError
from guie.heads.centres import class_centres
from guie.heads.fused import Additive, Angular, Rule, margin_softmax
from guie.heads.labels import check_labels
from guie.heads.margin_by import Margins
from guie.heads.reduction import Reduction
from guie.types import Batch, Loss, Output


class ArcFace(nn.Module):
    """Additive angular margin (Deng et al., CVPR 2019, eq. 3): logits scale * cos(angle + margin).

    `margin` in radians, with easy_margin False; `margin_by` names what changes it by class or epoch, in order
    (`heads.margin_by`). `chunk` forms at most so many classes at a time to bound memory (null: the buffer of
    B x C is dropped where it outgrows the weights). `init`: "xavier" uniform, or "uniform" within
    1 / sqrt(D); `centres` is a file of vectors instead, which stay as they are (`heads.centres`). `focal` is
    the exponent of the focal factor, `per_domain` a `heads.reduction.PerDomain` or null.
    """

    def __init__(  # noqa: PLR0913
        self,
        scale: float = 30.0,
        margin: float = 0.5,
        label_smoothing: float = 0.0,
        chunk: int | None = None,
        init: Literal["xavier", "uniform"] = "xavier",
        margin_by: Mapping[str, Any] | None = None,
        centres: str | None = None,
        focal: float = 0.0,
        per_domain: Any = None,
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        check_range("margin", margin, 0, math.pi / 2, "radians (0.5 is usual)")
        self.rule = checked_rule(Rule(Angular(margin), scale, label_smoothing, chunk))
        self.margins, self.reduction = Margins(margin, margin_by), Reduction(focal, per_domain)
        self.weight = class_centres((num_classes, embed_dim), init, centres)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean loss; logs `loss`, `accuracy` without margin and mean `target_cosine`."""
        rule = replace(self.rule, margin=Angular(self.margins(batch.labels)))
        return margin_loss(output.raw, self.weight, batch, rule, self.reduction)


class CosFace(nn.Module):
    """Additive cosine margin (Wang et al., CVPR 2018, eq. 4): logits scale * (cos - margin).

    `margin` 0 is the normalised softmax (NormFace). Other parameters as in `ArcFace`.
    """

    def __init__(  # noqa: PLR0913
        self,
        scale: float = 30.0,
        margin: float = 0.35,
        label_smoothing: float = 0.0,
        chunk: int | None = None,
        init: Literal["xavier", "uniform"] = "xavier",
        margin_by: Mapping[str, Any] | None = None,
        centres: str | None = None,
        focal: float = 0.0,
        per_domain: Any = None,
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        check_range("margin", margin, 0, 2, "")
        self.rule = checked_rule(Rule(Additive(margin), scale, label_smoothing, chunk))
        self.margins, self.reduction = Margins(margin, margin_by), Reduction(focal, per_domain)
        self.weight = class_centres((num_classes, embed_dim), init, centres)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean loss; logs `loss`, `accuracy` without margin and mean `target_cosine`."""
        rule = replace(self.rule, margin=Additive(self.margins(batch.labels)))
        return margin_loss(output.raw, self.weight, batch, rule, self.reduction)


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
        margin_by: Mapping[str, Any] | None = None,
        centres: str | None = None,
        focal: float = 0.0,
        per_domain: Any = None,
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        check_range("margin", margin, 0, math.pi / 2, "radians (0.5 is usual)")
        check_range("k", k, 1, 255, "sub-centres")
        self.rule = checked_rule(Rule(Angular(margin), scale, label_smoothing, chunk))
        self.margins, self.reduction = Margins(margin, margin_by), Reduction(focal, per_domain)
        self.weight = class_centres((k, num_classes, embed_dim), init, centres)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean loss; logs `loss`, `accuracy` without margin and mean `target_cosine`."""
        rule = replace(self.rule, margin=Angular(self.margins(batch.labels)))
        return margin_loss(output.raw, self.weight, batch, rule, self.reduction)


def margin_loss(raw: Tensor, weight: Tensor, batch: Batch, rule: Rule, reduction: Reduction) -> Loss:
    """Return the reduced fused losses of `raw` (B, D) against `weight` ((K,) C, D), with their scalars.

    Raises UserError for a label outside 0..C-1 (on a GPU: a device-side assertion, to spare a wait).
    """
    check_labels(batch.labels, weight.shape[-2])
    found = margin_softmax(raw.to(weight.dtype), weight, batch.labels, rule)
    loss = reduction(found.losses, batch.domains)
    measured = {"accuracy": found.correct.float().mean(), "target_cosine": found.cosine.mean()}
    return Loss(loss.total, loss.scalars | measured)


def checked_rule(rule: Rule) -> Rule:
    """Return `rule`, or raise UserError naming the parameter out of range."""
    check_range("scale", float(rule.scale), 1e-6, 1e4, "(30 to 64 is usual)")
    check_range("label_smoothing", rule.smoothing, 0, 1, "")
    if rule.chunk is not None:
        check_range("chunk", rule.chunk, 1, math.inf, "classes, or null for none")
    return rule


def check_range(name: str, value: float, low: float, high: float, unit: str) -> None:
    """Refuse a value of parameter `name` outside `low` to `high`."""
    if not low <= value <= high:
        raise UserError(f"head.{name}: {value} received; accepted: {low:g} to {high:.4g} {unit}".rstrip())
