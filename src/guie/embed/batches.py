"""Batches of cached features: what a frozen backbone trains on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guie.data.draws import uniforms
from guie.data.mixup import Mixup
from guie.data.sampling import Sampler, rank_slots
from guie.embed.features import FeatureCache
from guie.errors import UserError
from guie.types import Batch, Mixed


@dataclass(frozen=True)
class CachedBatches:
    """Batches whose `images` are cached features (B,F) float32; the view is drawn from (seed, step, slot).

    A row without features is replaced by the next of its class that has some, else by the next of any.
    With `mixup` both rows' features are blended, each seen in the view of the slot that it falls to. `side`
    (N,3) float32 are the rows' side inputs, blended likewise.
    """

    cache: FeatureCache
    sampler: Sampler
    labels: np.ndarray
    domains: np.ndarray
    seed: int
    mixup: Mixup | None = None
    side: np.ndarray | None = None

    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield one rank's share of each step's batch, steps start..stop-1."""
        slots = rank_slots(self.sampler.batch_size, rank, world)[0]
        instead = _replacements(self.cache.good, self.labels)
        for step in range(start, stop):
            batch = instead[self.sampler.batch(step)]
            rows = batch[slots]
            draws = uniforms(self.seed, step, slots, 1)[:, 0]
            view = (draws * len(self.cache.features)).astype(np.int64)
            features, side, mixed = self._features(view, rows), self._side(rows), None
            drawn = self.mixup.drawn(step, len(batch)) if self.mixup else None
            if drawn is not None:
                partners, share = batch[drawn[0][slots]], np.float32(drawn[1])
                features = share * features + (1 - share) * self._features(view, partners)
                side = None if side is None else share * side + (1 - share) * self._side(partners)
                mixed = Mixed(*self._named(partners), torch.tensor(share))
            made = None if side is None else torch.from_numpy(side)
            yield Batch(torch.from_numpy(features), *self._named(rows), made, mixed)

    def _features(self, view: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self.cache.features[view, rows].astype(np.float32)

    def _side(self, rows: np.ndarray) -> Any:
        return None if self.side is None else self.side[rows]

    def _named(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels, domains and ids (B,)."""
        labels, domains = torch.from_numpy(self.labels[rows]), torch.from_numpy(self.domains[rows])
        return labels, domains, torch.from_numpy(rows)


def _replacements(good: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each row itself, or where it is not good the row to take instead, (N,) int64."""
    if not good.any():
        raise UserError("feature cache: no picture has features; accepted: at least one that can be read")
    instead = np.arange(len(good))
    for row in np.flatnonzero(~good):
        ahead = np.roll(instead, -row)
        same = [other for other in ahead if good[other] and labels[other] == labels[row]]
        instead[row] = same[0] if same else next(other for other in ahead if good[other])
    return instead
