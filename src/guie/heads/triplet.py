"""Triplet loss: a positive has to be nearer than a negative by a margin."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from guie.errors import UserError
from guie.heads.pairs import Mean, Pairs, Pairwise, mean_of_nonzero


class Triplet(Pairwise):
    """Triplet loss (Schroff et al., CVPR 2015, eq. 2): relu(d(a, p) - d(a, n) + margin).

    `mining`: "all" triplets, mean over those above 0 (batch all of Hermans et al. 2017, eq. 6); "hard": each
    anchor with its farthest positive and nearest negative, mean over anchors that have both (batch hard,
    eq. 5); "semi_hard": each positive pair with the nearest negative that is farther than the positive, mean
    over those above 0 (Schroff, section 3.2). `distance` "euclidean" is not squared; "cosine" is 1 - cosine,
    half of Schroff's squared distance, so that his margin 0.2 is 0.1 here.
    """

    def __init__(
        self,
        margin: float = 0.2,
        mining: Literal["all", "hard", "semi_hard"] = "all",
        distance: Literal["euclidean", "cosine"] = "euclidean",
        by: Literal["label", "id"] = "label",
    ) -> None:
        super().__init__(by)
        if not 0 <= margin <= 2:
            raise UserError(f"head.margin: {margin} received; accepted: 0 to 2 (0.05 to 0.3 is usual)")
        if mining not in ("all", "hard", "semi_hard"):
            raise UserError(f"head.mining: {mining!r} received; accepted: all, hard, semi_hard")
        if distance not in ("euclidean", "cosine"):
            raise UserError(f"head.distance: {distance!r} received; accepted: euclidean, cosine")
        self.margin, self.mining, self.distance = margin, mining, distance

    def means(self, pairs: Pairs) -> list[Mean]:
        """Return the mean over the mined triplets."""
        distances = pairs.distances() if self.distance == "euclidean" else 1 - pairs.cosines
        negatives = distances.masked_fill(~pairs.negative, torch.inf)
        if self.mining == "hard":
            return [self._hard(distances, negatives, pairs)]
        nearest_first = negatives.sort(1).values
        if self.mining == "all":
            return [self._all(distances, nearest_first, pairs.positive)]
        return [self._semi_hard(distances, nearest_first, pairs.positive)]

    def _hard(self, distances: Tensor, negatives: Tensor, pairs: Pairs) -> Mean:
        farthest = distances.masked_fill(~pairs.positive, -torch.inf).amax(1)
        losses = (farthest - negatives.amin(1) + self.margin).relu()
        return Mean(losses.sum(), (pairs.positive.any(1) & pairs.negative.any(1)).sum())

    def _all(self, distances: Tensor, nearest_first: Tensor, positive: Tensor) -> Mean:
        """Sum B x R x R triplets in B x R: of sorted negatives those before a positive's limit violate it."""
        limits = distances + self.margin
        violating = torch.searchsorted(nearest_first.detach(), limits.detach())
        sums = functional.pad(nearest_first.cumsum(1), (1, 0)).gather(1, violating)
        losses = (violating * limits - sums).masked_fill(~positive, 0)
        return Mean(losses.sum(), violating.masked_fill(~positive, 0).sum())

    def _semi_hard(self, distances: Tensor, nearest_first: Tensor, positive: Tensor) -> Mean:
        place = torch.searchsorted(nearest_first.detach(), distances.detach(), right=True)
        nearest = functional.pad(nearest_first, (0, 1), value=torch.inf).gather(1, place)
        return mean_of_nonzero((distances - nearest + self.margin).relu().masked_fill(~positive, 0))
