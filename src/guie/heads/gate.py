"""The classifier that chooses views at inference: linear, on the backbone's own feature."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from guie.heads.classifier import classified
from guie.heads.labels import check_labels
from guie.heads.margin import check_range
from guie.heads.reduction import Reduction
from guie.types import Batch, Loss, Output


class Gate(nn.Module):
    """One linear layer with bias on `Output.feature` (B, F), whatever the neck; cross-entropy.

    Its state dict is `weight` (C, F) and `bias` (C,), row c for class c in the manifest's order (a run's
    labels.parquet): for guie130k the eleven classes of `datasets.guie130k.CLASSES`, 0..10. Drawn as
    `torch.nn.Linear` draws.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        focal: float = 0.0,
        per_domain: Any = None,
        *,
        num_classes: int,
        feature_dim: int,
    ) -> None:
        super().__init__()
        check_range("label_smoothing", label_smoothing, 0, 1, "")
        self.label_smoothing = label_smoothing
        self.reduction = Reduction(focal, per_domain)
        bound = 1 / math.sqrt(feature_dim)
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound))

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean cross-entropy; logs `loss` and `accuracy`. UserError for a label out of range."""
        check_labels(batch.labels, len(self.weight))
        with torch.autocast(output.feature.device.type, enabled=False):
            logits = functional.linear(output.feature.to(self.weight.dtype), self.weight, self.bias)
            return classified(logits, batch.labels, batch.domains, self.reduction, self.label_smoothing)
