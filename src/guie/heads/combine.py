"""A sum of heads, each by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from guie.errors import UserError
from guie.types import Batch, Loss, Output


class Weighted(nn.Module):
    """Sum of named heads, each times its weight (1 where `weights` does not name it).

    Scalars of a head are logged as `<name>/<scalar>`; the sum as `loss`; accuracy of the first that has one.
    """

    def __init__(self, heads: dict[str, Any], weights: dict[str, float] | None = None) -> None:
        super().__init__()
        self.weights = dict(weights or {})
        unknown = sorted(set(self.weights) - set(heads))
        if unknown or not heads:
            raise UserError(f"head.weights: {', '.join(unknown) or 'no head'}; accepted: {', '.join(heads)}")
        self.heads = nn.ModuleDict(heads)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the weighted sum of the heads' losses."""
        losses = {name: head(output, batch) for name, head in self.heads.items()}
        total = sum(self.weights.get(name, 1.0) * loss.total for name, loss in losses.items())
        scalars = {
            f"{name}/{key}": value for name, loss in losses.items() for key, value in loss.scalars.items()
        }
        accuracies = [loss.scalars["accuracy"] for loss in losses.values() if "accuracy" in loss.scalars]
        if accuracies:
            scalars["accuracy"] = accuracies[0]
        return Loss(total, {"loss": total.detach(), **scalars})
