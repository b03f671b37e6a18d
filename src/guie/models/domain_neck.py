"""Necks with a part of the embedding for each domain (system B: modes tile and separate of `heads.domain`).

While training they give what a head needs that knows each picture's domain; in evaluation mode, where nobody
does, their own gate speaks: a linear classifier of domains on the pooled feature. The number of domains is a
config value, since an embedder is rebuilt from its config alone; the head compares it with the data's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.errors import UserError
from guie.models.pooling import at_least_float32
from guie.types import part_widths


class DomainTiles(nn.Module):
    """The embedding cut into a tile of unit length for each domain, as equal as they go.

    With `gate_range` r above 0 a tile's length in evaluation is 1 - r + r * (its domain's probability).
    `hidden` puts a layer of F numbers with tanh before each tile's own.
    """

    def __init__(
        self, domains: int, embed_dim: int = 64, hidden: bool = False, gate_range: float = 0.0, *, in_dim: int
    ) -> None:
        super().__init__()
        if not 0 <= gate_range <= 1:
            raise UserError(f"neck.gate_range: {gate_range} received; accepted: 0 (no gate) to 1")
        if not 1 <= domains <= embed_dim:
            raise UserError(f"neck.domains: {domains} received; accepted: 1 to {embed_dim} (embed_dim)")
        self.embed_dim, self.gate_range = embed_dim, gate_range
        widths = part_widths("tile", embed_dim, domains)
        self.projections = nn.ModuleList(_projection(in_dim, width, hidden) for width in widths)
        self.gate = nn.Linear(in_dim, domains) if gate_range else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D); in training mode with a gate (B, domains + D), its logits first."""
        tiles = [_unit(projection(x)) for projection in self.projections]
        if self.gate is None:
            return torch.cat(tiles, 1)
        logits = at_least_float32(self.gate(x))
        if self.training:
            return torch.cat([logits, *tiles], 1)
        lengths = 1 - self.gate_range + self.gate_range * logits.softmax(1)
        return torch.cat([tile * lengths[:, i, None] for i, tile in enumerate(tiles)], 1)


class DomainSeparate(nn.Module):
    """The domain's name in the first numbers, then the embedding by that domain's own projection.

    Evaluation: `gate_scale` at the position of the likeliest domain (`soft`: times each domain's
    probability), then its embedding at unit length. So pictures of two domains are never near each other.
    """

    def __init__(
        self,
        domains: int,
        embed_dim: int = 64,
        hidden: bool = False,
        gate_scale: float = 3.0,
        soft: bool = False,
        *,
        in_dim: int,
    ) -> None:
        super().__init__()
        if not 1 <= domains < embed_dim:
            raise UserError(
                f"neck.domains: {domains} received; accepted: 1 to {embed_dim - 1} (embed_dim - 1)"
            )
        if not gate_scale > 0:
            raise UserError(f"neck.gate_scale: {gate_scale} received; accepted: above 0 (3 is usual)")
        self.embed_dim, self.gate_scale, self.soft = embed_dim, gate_scale, soft
        widths = part_widths("separate", embed_dim, domains)
        self.projections = nn.ModuleList(_projection(in_dim, width, hidden) for width in widths)
        self.gate = nn.Linear(in_dim, domains)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D); in training mode (B, domains + domains * (D - domains)): logits, all projections."""
        logits = at_least_float32(self.gate(x))
        each = [at_least_float32(projection(x)) for projection in self.projections]
        if self.training:
            return torch.cat([logits, *each], 1)
        chosen = logits.argmax(1, keepdim=True)
        own = torch.stack(each, 1).gather(1, chosen[:, :, None].expand(-1, -1, each[0].shape[1]))[:, 0]
        named = logits.softmax(1) if self.soft else torch.zeros_like(logits).scatter(1, chosen, 1.0)
        return torch.cat([self.gate_scale * named, _unit(own)], 1)


def _projection(in_dim: int, width: int, hidden: bool) -> nn.Module:
    before = [nn.Linear(in_dim, in_dim), nn.Tanh()] if hidden else []
    return nn.Sequential(*before, nn.Linear(in_dim, width))


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(at_least_float32(x), dim=1)
