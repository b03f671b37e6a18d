"""Pictures compared with each other, without class weights: the pairs of a batch, gathered over ranks.

Under DDP every rank gathers the vectors and labels of all ranks, in the order of ranks, and forms the loss of
the whole batch. Only its own vectors carry gradient, multiplied by the number of ranks, so that DDP's mean
equals one process with the whole batch, also for weights that the head owns. Ranks must hold equally many
pictures. With `trainer.accumulate` each micro-batch is compared within itself.

Shapes: B pictures of all ranks, R what they are compared with (the batch itself, or a memory), D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from guie.errors import UserError
from guie.types import Batch, Loss, Output

By = Literal["label", "id"]


@dataclass(frozen=True)
class Pairs:
    """Cosines (B, R), and which pairs (B, R) are positive or negative; a pair that is neither does not count.

    No picture is its own pair.
    """

    cosines: Tensor
    positive: Tensor
    negative: Tensor

    def distances(self) -> Tensor:
        """Return Euclidean distances (B, R) of unit vectors; equal ones have distance and gradient 0."""
        square = 2 - 2 * self.cosines
        apart = ~(square <= 0)  # NaN stays NaN
        return torch.where(apart, square, 1).sqrt().where(apart, 0)


@dataclass(frozen=True)
class Mean:
    """A sum () and over how many it is averaged, () int64, so that ranks may add theirs."""

    sum: Tensor
    count: Tensor


class Pairwise(nn.Module):
    """A head whose loss is a sum of means over pairs, rows or triplets, `means(pairs)`.

    `by` says what two pictures share to be a positive pair: "label", or "id" for the views of one picture.
    """

    def __init__(self, by: By) -> None:
        super().__init__()
        if by not in ("label", "id"):
            raise UserError(f"head.by: {by!r} received; accepted: label, id")
        self.by: By = by

    def means(self, pairs: Pairs) -> list[Mean]:
        """Return what the loss of pairs (B, R) is the sum of, in their own dtype; rows add up."""
        raise NotImplementedError

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the loss on `Output.z`; logs `loss` and `positive_cosine`."""
        with torch.autocast(output.z.device.type, enabled=False):
            z, columns = gathered(output.z, batch.labels, batch.ids)
            return measured(self, within(z, shared(columns, self.by)))


def measured(head: Pairwise, pairs: Pairs, ranks: int = 1) -> Loss:
    """Return the head's loss of `pairs` with what is logged of it; a mean over nothing is 0.

    With `ranks` above 1 the rows are this rank's share: sums are multiplied by `ranks` and divided by the
    counts of all, so that the mean of the ranks' losses, and of their gradients, is the loss of the whole.
    """
    cosines = pairs.cosines.detach().masked_fill(~pairs.positive, 0)
    found = [*head.means(pairs), Mean(cosines.sum(), pairs.positive.sum())]
    counts = torch.stack([mean.count for mean in found])
    if ranks > 1:
        distributed.all_reduce(counts)
    means = ranks * torch.stack([mean.sum for mean in found]) / counts.clamp_min(1)
    total = means[:-1].sum()
    return Loss(total, {"loss": total.detach(), "positive_cosine": means[-1].detach()})


def within(z: Tensor, keys: Tensor) -> Pairs:
    """Return the pairs of a batch (B, D) with itself; equal keys (B,) are positive."""
    same = keys[:, None] == keys[None, :]
    return Pairs(z @ z.t(), same.clone().fill_diagonal_(False), ~same)


def shared(columns: Tensor, by: By) -> Tensor:
    """Return the keys (B,) of gathered columns (B, 2) by which pictures are positive."""
    return columns[:, 0 if by == "label" else 1]


def gathered(z: Tensor, *columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors (B, D), at least float32, and columns (B, n) of all ranks, in the order of ranks."""
    z = at_least_float32(z)
    stacked = torch.stack([column.to(z.device) for column in columns], 1)
    ranks = num_ranks()
    if ranks == 1:
        return z, stacked
    vectors = list(of_all_ranks(z.detach()).chunk(ranks))
    vectors[rank()] = z + (ranks - 1) * (z - z.detach())
    return torch.cat(vectors), of_all_ranks(stacked)


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x`, half precision raised."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def mean_of_nonzero(losses: Tensor) -> Mean:
    """Return the mean of the losses above 0."""
    return Mean(losses.sum(), (losses > 0).sum())


def log_one_plus_sum(exponents: Tensor, keep: Tensor) -> Tensor:
    """Return log(1 + sum over kept columns of exp) for each row (B,)."""
    masked = exponents.masked_fill(~keep, -torch.inf)
    return torch.cat([masked, masked.new_zeros(len(masked), 1)], 1).logsumexp(1)


def num_ranks() -> int:
    """Return how many processes train together."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def rank() -> int:
    """Return which of them this is."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def of_all_ranks(mine: Tensor) -> Tensor:
    """Return what all ranks hold (B, ...) of equally many rows (b, ...), in their order."""
    found = mine.new_empty(num_ranks() * len(mine), *mine.shape[1:])
    distributed.all_gather_into_tensor(found, mine.contiguous())
    return found
