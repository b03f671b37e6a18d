"""From the losses of a batch's pictures (B,) to the one number that is differentiated, and what is logged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from guie.errors import UserError
from guie.types import Loss


class Reduction(nn.Module):
    """The mean over the batch, easy pictures counting less with `focal` above 0.

    `per_domain` is None or a `PerDomain`, which logs.
    """

    def __init__(self, focal: float = 0.0, per_domain: Any = None) -> None:
        super().__init__()
        if not 0 <= focal <= 10:
            raise UserError(f"head.focal: {focal} received; accepted: 0 (off) to 10 (2 is usual)")
        self.focal = focal
        self.per_domain = per_domain

    def forward(self, losses: Tensor, domains: Tensor) -> Loss:
        """Return the mean of `losses` (B,); logs `loss` and, where wanted, that of each domain."""
        if self.focal:
            losses = focal_losses(losses, self.focal)
        total = losses.mean()
        scalars: dict[str, float | Tensor] = {"loss": total.detach()}
        if self.per_domain is not None:
            scalars |= self.per_domain(losses, domains)
        return Loss(total, scalars)


class PerDomain(nn.Module):
    """The mean loss of each domain, logged as `loss/<domain>`; of one domain alone nothing is logged.

    Every rank gives all domains at each step, each as (2,): the sum of its pictures' losses and their number,
    both divided by B. The loop averages the two over steps, micro-batches and ranks and logs their quotient:
    the mean over all pictures of the window, whichever rank had none, at the cost of no message.
    """

    def __init__(self, *, domain_names: list[str]) -> None:
        super().__init__()
        self.names = [f"loss/{name or 'none'}" for name in domain_names]

    @torch.no_grad()
    def forward(self, losses: Tensor, domains: Tensor) -> dict[str, Tensor]:
        """Return the scalars of `losses` (B,) of pictures in `domains` (B,)."""
        if len(self.names) < 2:
            return {}
        pairs = torch.stack([losses, torch.ones_like(losses)], 1) / max(1, len(losses))
        sums = pairs.new_zeros(len(self.names), 2).index_add_(0, domains, pairs)
        return dict(zip(self.names, sums.unbind(), strict=True))


def focal_losses(losses: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma * loss (B,) with p = exp(-loss) (Lin et al., ICCV 2017, eq. 4).

    p is the target's probability, with its margin; with label smoothing the loss is no probability's
    logarithm any more, and p only falls with it.
    """
    at_least = losses.clamp_min(torch.finfo(losses.dtype).tiny)  # rounding may leave a loss below 0
    return (-torch.expm1(-at_least)) ** gamma * losses
