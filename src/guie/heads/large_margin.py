"""Large-margin softmax: the angle to the target is multiplied, lengths are kept."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from guie.errors import UserError
from guie.heads.centres import initial_weight
from guie.heads.classifier import classified
from guie.heads.labels import check_labels
from guie.heads.margin import check_range
from guie.heads.reduction import Reduction
from guie.types import Batch, Loss, Output


class LSoftmax(nn.Module):
    """Large-margin softmax (Liu et al., ICML 2016, eq. 4-6) on `Output.raw`: logits |w| |x| cos, no bias.

    The target's cos(t) becomes psi(t) = (-1)^k * cos(margin * t) - 2k for t in [k, k + 1] * pi / margin, in
    parts of 1 to `beta` with cos(t) (their way to train it): `beta` * `decay`^step, never below `least_beta`.
    `margin` is 2, 3 or 4. Keeps a few B x C buffers.
    """

    def __init__(  # noqa: PLR0913
        self,
        margin: int = 2,
        beta: float = 100.0,
        decay: float = 0.99,
        least_beta: float = 0.0,
        label_smoothing: float = 0.0,
        focal: float = 0.0,
        per_domain: Any = None,
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        if margin not in (2, 3, 4):
            raise UserError(f"head.margin: {margin} received; accepted: 2, 3, 4 (times the angle)")
        check_range("beta", beta, 0, 1e6, "(100 is usual)")
        check_range("decay", decay, 0, 1, "")
        check_range("least_beta", least_beta, 0, beta, "")
        check_range("label_smoothing", label_smoothing, 0, 1, "")
        self.margin, self.beta, self.decay, self.least_beta = margin, beta, decay, least_beta
        self.mixed_in = beta
        self.label_smoothing = label_smoothing
        self.reduction = Reduction(focal, per_domain)
        self.weight = nn.Parameter(initial_weight((num_classes, embed_dim), "xavier"))

    def at_step(self, step: int, steps: int, steps_per_epoch: int) -> None:
        """Take the beta of `step`."""
        del steps, steps_per_epoch
        self.mixed_in = max(self.least_beta, self.beta * self.decay**step)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean loss; logs `loss` and `accuracy` (the target with its margin)."""
        check_labels(batch.labels, len(self.weight))
        with torch.autocast(output.raw.device.type, enabled=False):
            raw = output.raw.to(self.weight.dtype)
            logits = raw @ self.weight.t()
            own = logits.gather(1, batch.labels[:, None])[:, 0]
            lengths = raw.norm(dim=1) * self.weight[batch.labels].norm(dim=1)
            target = (self.mixed_in * own + lengths * self._psi(own / lengths.clamp_min(1e-12))) / (
                1 + self.mixed_in
            )
            with_margin = logits.scatter(1, batch.labels[:, None], target[:, None])
            return classified(with_margin, batch.labels, batch.domains, self.reduction, self.label_smoothing)

    def _psi(self, cosine: Tensor) -> Tensor:
        """Return psi (B,) of cosines (B,), by the polynomials of cos(m * t), which need no angle."""
        square = cosine * cosine
        multiplied = {
            2: 2 * square - 1,
            3: (4 * square - 3) * cosine,
            4: (8 * square - 8) * square + 1,
        }[self.margin]
        edges = [math.cos(j * math.pi / self.margin) for j in range(1, self.margin)]
        k = sum((cosine.detach() <= edge).to(cosine.dtype) for edge in edges)
        return (1 - 2 * (k % 2)) * multiplied - 2 * k
