"""One embedder whose looks a classifier chooses for each picture, as a file holds it: see `guie.views.Gate`.

TorchScript compiles all of this. A look here is a module: (B,3,H,W) uint8 to raw vectors (B,D) and features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.views import Gating


class Gated(nn.Module):
    """Pictures as high as wide by `square`, all others by `other`: (B,3,H,W) uint8 to (B,D), unit length."""

    def __init__(self, square: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.square, self.other = square, other

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors."""
        if images.size(2) == images.size(3):
            return self.square(images)
        return self.other(images)


class Chosen(nn.Module):
    """The looks that are chosen by the feature of the first: (B,3,H,W) uint8 to (B,D) of unit length.

    Each picture passes only through its own looks; with `masked` all pass through all and what was not
    chosen is dropped, for formats whose programs cannot depend on values.
    """

    def __init__(self, looks: Sequence[nn.Module], gating: Gating, summed: str, *, masked: bool) -> None:
        super().__init__()
        others = [number for number in gating.asked if number != gating.first]
        self.first = looks[gating.first]
        self.others = nn.ModuleList([looks[number] for number in others])
        self.choice = gating.choice
        self.order: Tensor
        self.register_buffer("order", torch.tensor([gating.first, *others]))
        self.unit, self.masked = summed == "unit", masked

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors."""
        raw, feature = self.first(images)
        chosen = self.choice(feature)[:, self.order]
        sums = self.kept(raw, chosen[:, 0])
        for number, look in enumerate(self.others):
            mine = chosen[:, number + 1]
            if self.masked:
                sums = sums + self.kept(look(images)[0], mine)
            else:
                rows = mine.nonzero()[:, 0]
                if rows.size(0) > 0:
                    sums = sums.index_add(0, rows, self.vector(look(images[rows])[0]))
        return functional.normalize(sums, dim=1)

    def vector(self, raw: Tensor) -> Tensor:
        """Return what is summed of raw vectors."""
        return functional.normalize(raw, dim=1) if self.unit else raw

    def kept(self, raw: Tensor, mine: Tensor) -> Tensor:
        """Return what is summed, zero in the rows that are not `mine` (B,) bool."""
        return self.vector(raw).masked_fill(~mine[:, None], 0.0)
