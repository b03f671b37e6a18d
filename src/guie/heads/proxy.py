"""Proxy-anchor loss: one learned vector per class stands for its pictures and is compared with the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.errors import UserError
from guie.heads.labels import check_labels
from guie.heads.pairs import gathered, log_one_plus_sum
from guie.types import Batch, Loss, Output


class ProxyAnchor(nn.Module):
    """Proxy-anchor loss (Kim et al., CVPR 2020, eq. 4) on `Output.z`, over the batch of all ranks.

    `weight` (C, D) holds the proxies, drawn as the paper's code draws them (normal, Kaiming's fan-out); the
    paper lets them learn 100 times as fast as the backbone: `optim.head_lr_factor=100`. Keeps two B x C
    buffers.
    """

    def __init__(self, margin: float = 0.1, alpha: float = 32.0, *, num_classes: int, embed_dim: int) -> None:
        super().__init__()
        if not 0 <= margin < 2:
            raise UserError(f"head.margin: {margin} received; accepted: 0 <= margin < 2 (0.1 is usual)")
        if not alpha > 0:
            raise UserError(f"head.alpha: {alpha} received; accepted: above 0 (32 is usual)")
        self.margin, self.alpha = margin, alpha
        weight = torch.empty(num_classes, embed_dim)
        self.weight = nn.Parameter(nn.init.kaiming_normal_(weight, mode="fan_out"))

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the loss; logs `loss` and `accuracy` by nearest proxy. UserError for an unknown label."""
        with torch.autocast(output.z.device.type, enabled=False):
            z, columns = gathered(output.z, batch.labels)
            labels = columns[:, 0]
            check_labels(labels, len(self.weight))
            cosines = functional.normalize(self.weight, dim=1) @ z.to(self.weight.dtype).t()
            total = self._loss(cosines, labels)
        accuracy = (cosines.detach().argmax(0) == labels).float().mean()
        return Loss(total, {"loss": total.detach(), "accuracy": accuracy})

    def _loss(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """Return eq. 4 of cosines (C, B): pull over classes that the batch holds, push over all."""
        own = torch.arange(len(cosines), device=labels.device)[:, None] == labels[None, :]
        pull = log_one_plus_sum(-self.alpha * (cosines - self.margin), own).sum()
        push = log_one_plus_sum(self.alpha * (cosines + self.margin), ~own)
        return pull / own.any(1).sum() + push.mean()
