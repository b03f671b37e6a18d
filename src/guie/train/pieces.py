"""A batch on its way to the model: moved to the device, cut into micro-batches, its noise seeded."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from guie.types import Batch, Mixed


def seed_everything(seed: int, step: int, rank: int) -> None:
    """Seed torch, numpy and random from (seed, step, rank), so that no generator's state must be saved."""
    mixed = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed formats a stack: 2 ms
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


def to_device(batch: Batch, device: torch.device, memory_format: torch.memory_format) -> Batch:
    """Return the batch on `device`, images in `memory_format`; ids stay where they are."""

    def moved(value: Tensor) -> Tensor:
        return value.to(device, non_blocking=True)

    images = moved(batch.images)
    if images.ndim == 4:
        images = images.contiguous(memory_format=memory_format)
    side = None if batch.side is None else moved(batch.side)
    mixed = batch.mixed
    if mixed is not None:
        mixed = Mixed(moved(mixed.labels), moved(mixed.domains), mixed.ids, moved(mixed.share))
    return Batch(images, moved(batch.labels), moved(batch.domains), batch.ids, side, mixed)


def split(batch: Batch, pieces: int) -> list[Batch]:
    """Cut a batch into at most `pieces` consecutive micro-batches of nearly equal size, none empty."""
    size = len(batch.labels)
    edges = [round(i * size / min(pieces, size)) for i in range(min(pieces, size) + 1)]
    return [_slice(batch, slice(start, stop)) for start, stop in pairwise(edges)]


def _slice(batch: Batch, rows: slice) -> Batch:
    side = None if batch.side is None else batch.side[rows]
    mixed = batch.mixed
    if mixed is not None:
        mixed = Mixed(mixed.labels[rows], mixed.domains[rows], mixed.ids[rows], mixed.share)
    columns = (batch.images[rows], batch.labels[rows], batch.domains[rows], batch.ids[rows])
    return Batch(*columns, side, mixed)
