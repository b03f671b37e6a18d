"""Margins that are not one number: by the size of the class, by the epoch, or both, one after the other.

A head's `margin` stays a float and `margin_by` names what changes it, in order. So the same parts serve
ArcFace, CosFace and SubCenterArcFace, and `head.margin` means the same with and without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guie.errors import UserError
from guie.heads.labels import check_labels


class Margins(nn.Module):
    """The margin of each picture: `margin`, changed by each part of `by` in turn."""

    def __init__(self, margin: float, by: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.margin = margin
        self.by = nn.ModuleDict(dict(by or {}))

    def forward(self, labels: Tensor) -> float | Tensor:
        """Return one margin, or (B,) for `labels` (B,)."""
        margin: float | Tensor = self.margin
        for part in self.by.values():
            margin = part(margin, labels)
        return margin


class BySize(nn.Module):
    """margin * n^-power + floor for a class of n training pictures: rare classes get more.

    Dynamic margins (Ha et al., Google Landmark Recognition 2020, third place, arXiv 2010.05350): their
    a * n^-lambda + b, where a is the head's margin; 0.5, 0.25 and 0.05 are theirs.
    """

    def __init__(self, power: float = 0.25, floor: float = 0.05, *, class_counts: np.ndarray) -> None:
        super().__init__()
        for name, value in (("power", power), ("floor", floor)):
            if not 0 <= value <= 1:
                raise UserError(f"head.margin_by.{name}: {value} received; accepted: 0 to 1")
        self.floor = floor
        factors = np.maximum(np.asarray(class_counts, np.float64), 1) ** -power
        # Not in the state dict: it follows from the data.
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.get_default_dtype()), False)

    def forward(self, margin: float | Tensor, labels: Tensor) -> Tensor:
        """Return the margins (B,) of `labels` (B,); UserError for a label out of range."""
        factors = self.get_buffer("factors")
        check_labels(labels, len(factors))
        return margin * factors[labels] + self.floor


class ByEpoch(nn.Module):
    """A share of the margin that grows from `first` in the first epoch to 1 after `epochs` of them.

    It is constant within an epoch. Training by growing margins: Yang et al., 2nd place of Google Landmark
    Retrieval 2020 (arXiv 2210.01624).
    """

    def __init__(self, epochs: int = 5, first: float = 0.0) -> None:
        super().__init__()
        if epochs < 1:
            raise UserError(f"head.margin_by.epochs: {epochs} received; accepted: 1 or more")
        if not 0 <= first <= 1:
            raise UserError(f"head.margin_by.first: {first} received; accepted: 0 to 1")
        self.epochs, self.first = epochs, first
        self.share = first

    def at_step(self, step: int, steps: int, steps_per_epoch: int) -> None:
        """Take the share of the epoch that `step` lies in."""
        del steps
        done = min(step // steps_per_epoch / self.epochs, 1.0)
        self.share = self.first + (1 - self.first) * done

    def forward(self, margin: float | Tensor, labels: Tensor) -> float | Tensor:
        """Return the share of `margin`."""
        return margin * self.share
