"""Pooling: a map (B, C, H, W) or tokens (B, T, C) to one vector (B, C).

`prefix` counts the tokens (CLS, registers) that are no patches; a vector (B, C) passes unchanged.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.errors import UserError


class GeM(nn.Module):
    """Generalised mean (Radenovic et al., PAMI 2018, eq. 3): mean of x ** p, to the power 1 / p.

    `p` 1 is the average, infinity the maximum; `learnable` trains it. Values are clamped at `eps` from
    below. `eval_p` replaces a fixed p outside training. `per_stage`: of a backbone with several `stages`
    each has its own p. Computed in at least float32.
    """

    eval_p: Tensor | None

    def __init__(
        self,
        p: float = 3.0,
        learnable: bool = False,
        eps: float = 1e-6,
        eval_p: float | None = None,
        per_stage: bool = False,
    ) -> None:
        super().__init__()
        if not (p > 0 and eps > 0 and (eval_p is None or eval_p > 0)):
            raise UserError(
                f"pool.p, pool.eps, pool.eval_p: {p}, {eps}, {eval_p} received; accepted: above 0"
            )
        if learnable and eval_p is not None:
            raise UserError(f"pool.eval_p: {eval_p} received with pool.learnable=true; accepted: null")
        self.eps = eps
        self.per_stage = per_stage
        self.fixed = 0.0 if learnable else p
        self.fixed_in_evaluation = self.fixed if eval_p is None else eval_p
        self.p = nn.Parameter(torch.tensor([p]), requires_grad=learnable)
        # Among the weights, so that two spaces that differ in it have two names.
        self.register_buffer("eval_p", None if eval_p is None else torch.tensor([eval_p]))

    def forward(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Return (B, C)."""
        if x.dim() == 2:
            return x
        fixed = self.fixed if self.training else self.fixed_in_evaluation
        cells = _cells(at_least_float32(x), prefix).clamp_min(self.eps)
        if fixed == 1:
            return cells.mean(-1)
        if fixed == 3:  # a product is several times faster than pow
            return (cells * cells * cells).mean(-1).pow(1 / 3)
        p = self.p if self.training or self.eval_p is None else self.eval_p
        return cells.pow(p).mean(-1).pow(1 / p)


class Average(nn.Module):
    """Mean over positions (of tokens: over patches), in at least float32."""

    def forward(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Return (B, C)."""
        return x if x.dim() == 2 else _cells(at_least_float32(x), prefix).mean(-1)


class SPoC(nn.Module):
    """Sum over positions (Babenko and Lempitsky, ICCV 2015, without centring), in at least float32.

    The average times the number of positions: the same direction, so the same after L2 where nothing but a
    linear map without bias follows; a bias or a larger picture tells them apart.
    """

    def forward(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Return (B, C)."""
        return x if x.dim() == 2 else _cells(at_least_float32(x), prefix).sum(-1)


class MAC(nn.Module):
    """Maximum over positions (Tolias et al., ICLR 2016, section 3.1), in at least float32."""

    def forward(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Return (B, C)."""
        return x if x.dim() == 2 else _cells(at_least_float32(x), prefix).amax(-1)


class RMAC(nn.Module):
    """Sum of the unit maxima of regions of `levels` sizes (Tolias et al., ICLR 2016, section 4.1).

    At level l regions are squares of side 2 min(H, W) / (l + 1), l along the short side; along the long side
    there are as many as overlap by nearest to 0.4 at level 1, and l - 1 more. In at least float32.
    """

    def __init__(self, levels: int = 3) -> None:
        super().__init__()
        if levels < 1:
            raise UserError(f"pool.levels: {levels} received; accepted: 1 or more (3 is usual)")
        self.levels = levels

    def forward(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Return (B, C); raises UserError for tokens."""
        if x.dim() == 2:
            return x
        if x.dim() == 3:
            raise UserError("pool: rmac received, but the backbone gives tokens; accepted: gem, average, mac")
        x = at_least_float32(x)
        parts = [x[:, :, y : y + side, z : z + side] for y, z, side in self._regions(*x.shape[2:])]
        return torch.stack([functional.normalize(part.amax((2, 3)), dim=1) for part in parts]).sum(0)

    def _regions(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Return (top, left, side) of each region."""
        short, long = min(height, width), max(height, width)
        more = _wanted_along(short, long)
        found = []
        for level in range(1, self.levels + 1):
            side = max(1, 2 * short // (level + 1))
            along_short, along_long = _starts(short, side, level), _starts(long, side, level + more - 1)
            rows, columns = (along_short, along_long) if height <= width else (along_long, along_short)
            found += [(top, left, side) for top in rows for left in columns]
        return found


class CLS(nn.Module):
    """The first token."""

    def forward(self, x: Tensor, prefix: int = 0) -> Tensor:
        """Return (B, C); raises UserError for a backbone without a class token."""
        if x.dim() == 2:
            return x
        if x.dim() != 3 or prefix < 1:
            raise UserError("pool: cls received, but the backbone has no class token; accepted: gem, average")
        return x[:, 0]


class PerStage(nn.ModuleList):
    """One copy of a pooling for each map of a backbone with several stages."""


def for_stages(pool: nn.Module, count: int) -> nn.Module:
    """Return `pool`, or where its `per_stage` says so one copy for each of `count` maps."""
    if count > 1 and getattr(pool, "per_stage", False):
        return PerStage(copy.deepcopy(pool) for _ in range(count))
    return pool


def pooled(pool: nn.Module, found: Tensor | list[Tensor], prefix: int) -> Tensor:
    """Return (B, F) of what a backbone gives: one map, tokens or vector, or the maps of several stages."""
    if isinstance(found, Tensor):
        return pool(found, prefix)
    pools = list(pool) if isinstance(pool, PerStage) else [pool] * len(found)
    return torch.cat([one(stage, prefix) for one, stage in zip(pools, found, strict=True)], dim=1)


def _cells(x: Tensor, prefix: int) -> Tensor:
    """Return positions last: (B, C, H * W) or (B, C, T - prefix)."""
    return x.flatten(2) if x.dim() == 4 else x[:, prefix:].transpose(1, 2)


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x`, half precision raised."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _wanted_along(short: int, long: int, overlap: float = 0.4) -> int:
    """Return how many squares of the short side along the long one overlap by nearest to `overlap`."""
    if long == short:
        return 1
    return min(range(2, 8), key=lambda count: abs(1 - (long - short) / (count - 1) / short - overlap))


def _starts(length: int, side: int, count: int) -> list[int]:
    """Return where `count` windows of `side` begin, evenly over `length`."""
    return [(length - side) * i // max(1, count - 1) for i in range(count)] if count > 1 else [0]
