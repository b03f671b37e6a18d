"""Contrastive losses over all pairs of a batch: pull what belongs together, push the rest apart."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guie.errors import UserError
from guie.heads.pairs import Mean, Pairs, Pairwise, log_one_plus_sum, mean_of_nonzero


class Contrastive(Pairwise):
    """Contrastive loss (Hadsell, Chopra and LeCun, CVPR 2006, without its squares) on Euclidean distances.

    The mean of relu(d - positive_margin) over the positive pairs where it is not 0, plus the mean of
    relu(negative_margin - d) over the negative pairs where it is not 0: what pytorch-metric-learning calls
    ContrastiveLoss. Unit vectors are 0 to 2 apart. `by="id"` with a sampler's `views` is copy detection.
    """

    def __init__(
        self, positive_margin: float = 0.0, negative_margin: float = 1.0, by: Literal["label", "id"] = "label"
    ) -> None:
        super().__init__(by)
        if not 0 <= positive_margin < negative_margin <= 2:
            received = f"{positive_margin} received with head.negative_margin {negative_margin}"
            raise UserError(f"head.positive_margin: {received}; accepted: 0 <= positive < negative <= 2")
        self.positive_margin, self.negative_margin = positive_margin, negative_margin

    def means(self, pairs: Pairs) -> list[Mean]:
        """Return the means over positive and over negative pairs."""
        distances = pairs.distances()
        pull = (distances - self.positive_margin).relu().masked_fill(~pairs.positive, 0)
        push = (self.negative_margin - distances).relu().masked_fill(~pairs.negative, 0)
        return [mean_of_nonzero(pull), mean_of_nonzero(push)]


class SupCon(Pairwise):
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020, eq. 2), mean over those with a positive.

    `by="id"` takes for positives the views of the same picture instead of the same class: with a sampler's
    `views` this is the instance loss (NT-Xent, Chen et al., ICML 2020). It keeps what tells pictures of one
    class apart, as copies of a picture need.
    """

    def __init__(self, temperature: float = 0.1, by: Literal["label", "id"] = "label") -> None:
        super().__init__(by)
        if not temperature > 0:
            raise UserError(f"head.temperature: {temperature} received; accepted: above 0 (0.1 is usual)")
        self.temperature = temperature

    def means(self, pairs: Pairs) -> list[Mean]:
        """Return the mean over rows (B,) that have a positive pair."""
        counted = pairs.positive | pairs.negative
        least = torch.finfo(pairs.cosines.dtype).min  # -inf would give a row without pairs a NaN
        logits = (pairs.cosines / self.temperature).masked_fill(~counted, least)
        log_share = logits - logits.logsumexp(1, keepdim=True)
        count = pairs.positive.sum(1)
        losses = -log_share.masked_fill(~pairs.positive, 0).sum(1) / count.clamp_min(1)
        return [Mean(losses.sum(), (count > 0).sum())]


class MultiSimilarity(Pairwise):
    """Multi-similarity loss (Wang et al., CVPR 2019, eq. 14), mean over the batch.

    `epsilon` mines as in its eq. 10-11: keep negatives above the weakest positive - epsilon and positives
    below the strongest negative + epsilon; null keeps all pairs.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float | None = 0.1,
        by: Literal["label", "id"] = "label",
    ) -> None:
        super().__init__(by)
        self.alpha, self.beta, self.base, self.epsilon = alpha, beta, base, epsilon

    def means(self, pairs: Pairs) -> list[Mean]:
        """Return the mean over rows (B,)."""
        positive, negative = self._mined(pairs)
        pull = log_one_plus_sum(self.alpha * (self.base - pairs.cosines), positive) / self.alpha
        push = log_one_plus_sum(self.beta * (pairs.cosines - self.base), negative) / self.beta
        losses = pull + push
        return [Mean(losses.sum(), torch.ones_like(losses, dtype=torch.int64).sum())]

    def _mined(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        if self.epsilon is None:
            return pairs.positive, pairs.negative
        cosines = pairs.cosines.detach()
        weakest = cosines.masked_fill(~pairs.positive, torch.inf).amin(1, keepdim=True)
        strongest = cosines.masked_fill(~pairs.negative, -torch.inf).amax(1, keepdim=True)
        # Asked the other way round, so that NaN is kept and shows.
        hard_positive = pairs.positive & ~(cosines - self.epsilon >= strongest)
        return hard_positive, pairs.negative & ~(cosines + self.epsilon <= weakest)
