"""Cross-batch memory: the pictures of a batch compared with those of many batches before."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from guie.errors import UserError
from guie.heads.pairs import (
    Pairs,
    Pairwise,
    at_least_float32,
    gathered,
    measured,
    rank,
    shared,
    within,
)
from guie.types import Batch, Loss, Output


class CrossBatchMemory(nn.Module):
    """A pairwise head over the batch and a queue of the last `size` vectors (Wang et al., CVPR 2020, alg. 1).

    The batch is stored first and then compared with all that is stored, itself included, but no picture with
    itself. What is stored gives no gradient. Before optimiser step `start_step` the head sees the batch
    alone, while the queue already fills: early vectors drift too fast to be of use.

    A label has to mean the same for as long as the queue remembers. `by="id"` of the inner head sees to that
    where pictures are their own classes: an id is the row of the data and does not change between epochs.
    `same_id` says what an anchor's own picture is when it was stored by an earlier batch: "positive" by
    `by="id"` or its label, as in the paper: it was augmented otherwise, and it is what a copy looks like;
    "drop" counts it not at all, for a queue longer than an epoch without strong augmentation, where such
    pairs show only how far the weights have moved. Views of it in the same batch count either way.

    Every rank holds the same queue, filled in the order of ranks, in buffers: it is part of the checkpoint
    and may be taken up by another number of ranks. Each compares its own pictures with it and they add up
    their sums, so that cost and memory of the pairs are divided by the ranks. A micro-batch is stored as a
    batch is. In evaluation mode the head sees the batch alone and nothing is stored.
    """

    vectors: Tensor
    columns: Tensor
    num_stored: Tensor
    equal_buffers = ("vectors", "columns", "num_stored")  # filled with what all ranks have gathered

    def __init__(
        self,
        head: Pairwise,
        size: int = 8192,
        start_step: int = 0,
        same_id: Literal["positive", "drop"] = "positive",
        *,
        embed_dim: int,
    ) -> None:
        super().__init__()
        if not isinstance(head, Pairwise):
            accepted = "a loss of pairs: Contrastive, MultiSimilarity, SupCon, Triplet"
            raise UserError(f"head.head: {type(head).__name__} received; accepted: {accepted}")
        if size < 1:
            raise UserError(f"head.size: {size} received; accepted: 1 or more vectors")
        if same_id not in ("positive", "drop"):
            raise UserError(f"head.same_id: {same_id!r} received; accepted: positive, drop")
        self.head, self.size, self.start_step, self.same_id = head, size, start_step, same_id
        self.register_buffer("vectors", torch.zeros(size, embed_dim))
        self.register_buffer("columns", torch.full((size, 2), -1))  # label and id
        self.register_buffer("num_stored", torch.zeros((), dtype=torch.int64))
        self._counts = start_step <= 0

    def at_step(self, step: int, steps: int, steps_per_epoch: int) -> None:
        """Begin to count at `start_step`."""
        del steps, steps_per_epoch
        self._counts = step >= self.start_step

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the head's loss; logs `loss` and `positive_cosine`. UserError for too short a queue."""
        if batch.mixed is not None:
            raise UserError("head.size: a memory, with trainer.mixup_alpha above 0; accepted: one of the two")
        with torch.autocast(output.z.device.type, enabled=False):
            z, columns = gathered(output.z, batch.labels, batch.ids)
            places = self._store(z.detach(), columns) if self.training else None
            if places is None or not self._counts:
                return measured(self.head, within(z, shared(columns, self.head.by)))
            pairs = self._pairs(at_least_float32(output.z), columns, places)
            return measured(self.head, pairs, ranks=len(columns) // len(output.z))

    @torch.no_grad()
    def _store(self, z: Tensor, columns: Tensor) -> Tensor:
        """Overwrite the oldest entries; return the places (B,) of the new ones."""
        if len(z) > self.size:
            raise UserError(f"head.size: {self.size} received; accepted: at least the batch of {len(z)}")
        places = (self.num_stored + torch.arange(len(z), device=z.device)) % self.size
        self.vectors.index_copy_(0, places, z.to(self.vectors.dtype))
        self.columns.index_copy_(0, places, columns)
        self.num_stored += len(z)
        return places

    def _pairs(self, z: Tensor, columns: Tensor, places: Tensor) -> Pairs:
        """Return the pairs of this rank's pictures (B / ranks) with the queue; empty places are neither."""
        own = slice(rank() * len(z), (rank() + 1) * len(z))
        columns, itself = columns[own], places[own]
        stored = torch.arange(self.size, device=z.device) < self.num_stored
        ours, theirs = (shared(held, self.head.by) for held in (columns, self.columns))
        same = ours[:, None] == theirs[None, :]
        counted = stored.expand_as(same).scatter(1, itself[:, None], False)
        if self.same_id == "drop":
            earlier = torch.ones_like(stored).index_fill(0, places, False)
            counted = counted & ~((columns[:, 1:] == self.columns[None, :, 1]) & earlier)
        # A copy: the next batch overwrites the queue, maybe before this one's backward pass.
        cosines = z @ self.vectors.to(z.dtype, copy=True).t()
        return Pairs(cosines, same & counted, ~same & counted)
