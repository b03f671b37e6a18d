"""All three kinds of margin in one: multiplied angle, added angle, subtracted cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from guie.heads.centres import class_centres
from guie.heads.fused import Rule
from guie.heads.margin import check_range, checked_rule, margin_loss
from guie.heads.reduction import Reduction
from guie.types import Batch, Loss, Output


class CombinedMargin(nn.Module):
    """Combined margin (Deng et al., CVPR 2019, eq. 4): logits scale * (cos(m1 * angle + m2) - m3).

    (1, m, 0) is ArcFace, (1, 0, m) CosFace; the paper's best two are (1, 0.3, 0.2) and (0.9, 0.4, 0.15).
    Other parameters as in `ArcFace`.
    """

    def __init__(  # noqa: PLR0913
        self,
        scale: float = 30.0,
        m1: float = 1.0,
        m2: float = 0.3,
        m3: float = 0.2,
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
        check_range("m1", m1, 0.5, 4, "(1 is none)")
        check_range("m2", m2, 0, math.pi / 2, "radians")
        check_range("m3", m3, 0, 2, "")
        self.rule = checked_rule(Rule(Combined(m1, m2, m3), scale, label_smoothing, chunk))
        self.reduction = Reduction(focal, per_domain)
        self.weight = class_centres((num_classes, embed_dim), init, centres)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean loss; logs `loss`, `accuracy` without margin and mean `target_cosine`."""
        return margin_loss(output.raw, self.weight, batch, self.rule, self.reduction)


@dataclass(frozen=True)
class Combined:
    """cos(m1 * angle + m2) - m3 as far as that angle stays below pi.

    From the angle t where it is pi, the cosine minus what ArcFace subtracts there in first order,
    (pi - t) * sin(t), and m3: as `Angular` where m1 is 1.
    """

    m1: float
    m2: float
    m3: float

    def __call__(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and slopes; the slope is bounded where the target is at angle 0 or pi."""
        sine = (1 - cosine * cosine).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
        angle = self.m1 * torch.atan2(sine, cosine) + self.m2
        last = min((math.pi - self.m2) / self.m1, math.pi)
        beyond = cosine <= math.cos(last)
        lost = (math.pi - last) * math.sin(last)
        value = torch.where(beyond, cosine - lost, angle.cos()) - self.m3
        slope = torch.where(beyond, torch.ones_like(cosine), self.m1 * angle.sin() / sine)
        return value, slope
