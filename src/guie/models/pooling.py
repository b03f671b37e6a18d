"""Pooling: a map (B, C, H, W) or tokens (B, T, C) to one vector (B, C).

`prefix` counts the tokens (CLS, registers) that are no patches; a vector (B, C) passes unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guie.errors import UserError


class GeM(nn.Module):
    """Generalised mean (Radenovic et al., PAMI 2018, eq. 3): mean of x ** p, to the power 1 / p.

    `p` 1 is the average, infinity the maximum; `learnable` trains it. Values are clamped at `eps` from
    below. Computed in at least float32.
    """

    def __init__(self, p: float = 3.0, learnable: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        if not (p > 0 and eps > 0):
            raise UserError(f"pool.p, pool.eps: {p}, {eps} received; accepted: above 0")
        self.eps = eps
        self.fixed = 0.0 if learnable else p
        self.p = nn.Parameter(torch.tensor([p]), requires_grad=learnable)

    def forward(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Return (B, C)."""
        if x.dim() == 2:
            return x
        cells = _cells(_at_least_float32(x), prefix).clamp_min(self.eps)
        if self.fixed == 1:
            return cells.mean(-1)
        if self.fixed == 3:  # a product is several times faster than pow
            return (cells * cells * cells).mean(-1).pow(1 / 3)
        return cells.pow(self.p).mean(-1).pow(1 / self.p)


class Average(nn.Module):
    """Mean over positions, in at least float32."""

    def forward(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Return (B, C)."""
        return x if x.dim() == 2 else _cells(_at_least_float32(x), prefix).mean(-1)


class CLS(nn.Module):
    """The first token."""

    def forward(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Return (B, C); raises UserError for a backbone without a class token."""
        if x.dim() == 2:
            return x
        if x.dim() != 3 or prefix < 1:
            raise UserError("pool: cls received, but the backbone has no class token; accepted: gem, average")
        return x[:, 0]


def _cells(x: Tensor, prefix: int) -> Tensor:
    """Return positions last: (B, C, H * W) or (B, C, T - prefix)."""
    return x.flatten(2) if x.dim() == 4 else x[:, prefix:].transpose(1, 2)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
