"""Sums over views that a gate chooses, picture by picture: each picture passes only through its own views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from guie.types import Output
from guie.views import Gating

Rows = Tensor | slice  # rows of a batch: (n,) int64
Pass = Callable[[int, Rows], Output]  # (view, rows) -> what the network says of them in this view


@dataclass(frozen=True)
class Gated:
    """A gate, the network as `passed`, and what is summed of its output: `vector` (n,D)."""

    gating: Gating
    passed: Pass
    vector: Callable[[Output], Tensor]

    def sums(self, square: Tensor) -> Tensor:
        """Return the sum (B,D) over each picture's views; `square` (B,) bool: which get theirs unasked."""
        parts = (square.nonzero()[:, 0], self._unasked), ((~square).nonzero()[:, 0], self._asked)
        taken = [(rows, summed(rows)) for rows, summed in parts if len(rows)]
        order = torch.cat([rows for rows, _ in taken]).argsort()
        return torch.cat([sums for _, sums in taken])[order]

    def _unasked(self, rows: Tensor) -> Tensor:
        seen = [self.vector(self.passed(view, rows)) for view in self.gating.square or ()]
        return torch.stack(seen).sum(0)

    def _asked(self, rows: Tensor) -> Tensor:
        first = self.gating.first
        found = self.passed(first, rows)
        chosen = self._chosen(found.feature)
        sums = torch.where(chosen[:, first, None], self.vector(found), 0.0)
        for view in (view for view in self.gating.asked if view != first):
            mine = chosen[:, view].nonzero()[:, 0]
            if len(mine):
                sums.index_add_(0, mine, self.vector(self.passed(view, rows[mine])))
        return sums

    def _chosen(self, feature: Tensor) -> Tensor:
        with torch.autocast(feature.device.type, enabled=False):  # the classifier computes in its own dtype
            return self.gating.choice(feature)
