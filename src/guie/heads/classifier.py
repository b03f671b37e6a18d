"""Plain softmax classifier on the embedding."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from guie.heads.margin import check_labels
from guie.types import Batch, Loss, Output


class Softmax(nn.Module):
    """Linear classifier with cross-entropy on `Output.raw`, in its own dtype under autocast too."""

    def __init__(
        self, label_smoothing: float = 0.0, bias: bool = True, *, num_classes: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.linear = nn.Linear(embed_dim, num_classes, bias=bias)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean cross-entropy; logs `loss` and `accuracy`. UserError for a label out of range."""
        check_labels(batch.labels, self.linear.out_features)
        with torch.autocast(output.raw.device.type, enabled=False):
            logits = self.linear(output.raw.to(self.linear.weight.dtype))
            total = functional.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
        return Loss(total, {"loss": total.detach(), "accuracy": accuracy})
