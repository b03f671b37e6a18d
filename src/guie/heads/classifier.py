"""Plain softmax classifiers: on the embedding, and what they share with those on the feature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.heads.labels import check_labels
from guie.heads.margin import check_range
from guie.heads.reduction import Reduction
from guie.types import Batch, Loss, Output


class Softmax(nn.Module):
    """Linear classifier with cross-entropy on `Output.raw`, in its own dtype under autocast too.

    `focal` is the exponent of the focal factor, `per_domain` a `heads.reduction.PerDomain` or null.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        bias: bool = True,
        focal: float = 0.0,
        per_domain: Any = None,
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        check_range("label_smoothing", label_smoothing, 0, 1, "")
        self.label_smoothing = label_smoothing
        self.reduction = Reduction(focal, per_domain)
        self.linear = nn.Linear(embed_dim, num_classes, bias=bias)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean cross-entropy; logs `loss` and `accuracy`. UserError for a label out of range."""
        check_labels(batch.labels, self.linear.out_features)
        with torch.autocast(output.raw.device.type, enabled=False):
            logits = self.linear(output.raw.to(self.linear.weight.dtype))
            return classified(logits, batch.labels, batch.domains, self.reduction, self.label_smoothing)


def classified(
    logits: Tensor, targets: Tensor, domains: Tensor, reduction: Reduction, smoothing: float = 0.0
) -> Loss:
    """Return the reduced cross-entropy of `logits` (B, C) against `targets` (B,); logs `accuracy`, too."""
    losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    loss = reduction(losses, domains)
    accuracy = (logits.detach().argmax(1) == targets).float().mean()
    return Loss(loss.total, {**loss.scalars, "accuracy": accuracy})
