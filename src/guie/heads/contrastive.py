"""Heads that compare the pictures of a batch with each other (B x B), without class weights.

Under DDP every rank gathers the vectors and labels of all ranks and forms the loss of the whole batch;
only its own vectors carry gradient, and that gradient is multiplied by the number of ranks, so that DDP's
mean equals one process with the whole batch. Ranks must hold equally many pictures.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, distributed, nn

from guie.errors import UserError
from guie.types import Batch, Loss, Output


class SupCon(nn.Module):
    """Supervised contrastive loss (Khosla et al., NeurIPS 2020, eq. 2), mean over those with a positive.

    `by="id"` takes for positives the views of the same picture instead of the same class: with a sampler's
    `views` this is the instance loss (NT-Xent, Chen et al., ICML 2020). It keeps what tells pictures of one
    class apart, as copies of a picture need.
    """

    def __init__(self, temperature: float = 0.1, by: Literal["label", "id"] = "label") -> None:
        super().__init__()
        self.by = by
        if not temperature > 0:
            raise UserError(f"head.temperature: {temperature} received; accepted: above 0 (0.1 is usual)")
        self.temperature = temperature

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the loss on `Output.z`; logs `loss` and `positive_cosine`."""
        with torch.autocast(output.z.device.type, enabled=False):
            cosines, positive = _pairs(output, batch.labels if self.by == "label" else batch.ids)
            self_masked = (cosines / self.temperature).fill_diagonal_(-torch.inf)
            log_share = self_masked - self_masked.logsumexp(1, keepdim=True)
            count = positive.sum(1)
            losses = -log_share.masked_fill(~positive, 0).sum(1) / count.clamp_min(1)
            total = losses.sum() / (count > 0).sum().clamp_min(1)
        return _finished(total, cosines, positive)


class MultiSimilarity(nn.Module):
    """Multi-similarity loss (Wang et al., CVPR 2019, eq. 14), mean over the batch.

    `epsilon` mines as in its eq. 10-11: keep negatives above the weakest positive - epsilon and positives
    below the strongest negative + epsilon; null keeps all pairs.
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float | None = 0.1
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.base, self.epsilon = alpha, beta, base, epsilon

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the loss on `Output.z`; logs `loss` and `positive_cosine`."""
        with torch.autocast(output.z.device.type, enabled=False):
            cosines, positive = _pairs(output, batch.labels)
            kept, negative = self._mined(cosines.detach(), positive)
            pull = _log_one_plus_sum(self.alpha * (self.base - cosines), kept) / self.alpha
            push = _log_one_plus_sum(self.beta * (cosines - self.base), negative) / self.beta
            total = (pull + push).mean()
        return _finished(total, cosines, positive)

    def _mined(self, cosines: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        itself = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
        negative = ~positive & ~itself
        if self.epsilon is None:
            return positive, negative
        weakest = cosines.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        strongest = cosines.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        hard_positive = positive & (cosines - self.epsilon < strongest)
        return hard_positive, negative & (cosines + self.epsilon > weakest)


def _pairs(output: Output, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines (B, B) of all ranks' pictures and which pairs share a label (B,), oneself excluded."""
    z = output.z.float() if output.z.dtype in (torch.float16, torch.bfloat16) else output.z
    labels = labels.to(z.device)
    if _ranks() > 1:
        z, labels = _gathered(z, labels)
    positive = (labels[:, None] == labels[None, :]).fill_diagonal_(False)
    return z @ z.t(), positive


def _finished(total: Tensor, cosines: Tensor, positive: Tensor) -> Loss:
    ranks = _ranks()
    mean_positive = cosines.detach()[positive].mean() if positive.any() else cosines.new_zeros(())
    scalars: dict[str, float | Tensor] = {"loss": total.detach(), "positive_cosine": mean_positive}
    return Loss(total + (ranks - 1) * (total - total.detach()) if ranks > 1 else total, scalars)


def _ranks() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def _gathered(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    all_z = [torch.empty_like(z) for _ in range(_ranks())]
    all_labels = [torch.empty_like(labels) for _ in range(_ranks())]
    distributed.all_gather(all_z, z.detach().contiguous())
    distributed.all_gather(all_labels, labels.contiguous())
    all_z[distributed.get_rank()] = z
    return torch.cat(all_z), torch.cat(all_labels)


def _log_one_plus_sum(exponents: Tensor, keep: Tensor) -> Tensor:
    """Return log(1 + sum over kept columns of exp) for each row (B,)."""
    masked = exponents.masked_fill(~keep, -torch.inf)
    return torch.cat([masked, masked.new_zeros(len(masked), 1)], 1).logsumexp(1)
