"""Batches of one aspect ratio: pictures keep their shape, and each batch has a size that suits it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from guie.data.draws import uniforms
from guie.data.sampling import Rounds, Sampler
from guie.data.sizes import stated_sizes
from guie.datasets.manifest import Manifest
from guie.errors import UserError

_GOLDEN = (5**0.5 - 1) / 2


@runtime_checkable
class Sized(Sampler, Protocol):
    """A sampler that also says how large the pictures of a step are."""

    def size_px(self, step: int) -> tuple[int, int]:
        """Return (height, width)."""
        ...


class AspectBuckets:
    """Each batch from one bucket of height/width, at that bucket's size.

    `edges`: rising bounds of height/width between the buckets; `sizes`: (height, width) of each bucket, one
    more than edges, the widest pictures first. Buckets come as often as their share of the rows, evenly
    spread (multiples of the golden ratio; Weyl 1916), and a bucket's rows go round in a new order each time.
    So over any stretch every picture is shown about as often as any other; no row waits for a batch to fill.

    Raises:
        UserError: edges and sizes that do not fit, or rows without width and height.

    """

    def __init__(
        self,
        edges: Sequence[float] = (0.67, 0.77, 1.33, 1.5),
        sizes: Sequence[tuple[int, int]] = ((352, 512), (384, 512), (448, 448), (512, 384), (512, 352)),
        *,
        labels: np.ndarray,
        aspects: np.ndarray | None,
        batch_size: int,
        seed: int,
    ):
        self.edges, self.sizes = _edges(edges), _sizes(sizes, len(edges) + 1)
        if aspects is None or not np.all(aspects > 0):
            raise UserError(
                "sampler: AspectBuckets needs each picture's size; accepted: one data set whose columns "
                "width and height hold numbers above 0"
            )
        if batch_size < 1 or not len(labels):
            raise UserError(f"sampler: {len(labels)} rows in batches of {batch_size}; accepted: 1 or more")
        self.batch_size, self.seed = batch_size, seed
        self._rounds = Rounds(np.searchsorted(self.edges, aspects, side="right"), seed + 1)
        self._shares = np.cumsum(self._rounds.sizes) / len(labels)
        self.steps_per_epoch = max(1, len(labels) // batch_size)
        self._start = uniforms(seed, 0, np.zeros(1), 1)[0, 0]
        self._counted = (0, np.zeros(len(self._shares), np.int64))

    def bucket(self, step: int | np.ndarray) -> np.ndarray:
        """Return the number of the bucket whose step this is."""
        return np.searchsorted(self._shares, (self._start + np.asarray(step) * _GOLDEN) % 1, side="right")

    def size_px(self, step: int) -> tuple[int, int]:
        """Return the (height, width) of the step's pictures."""
        return self.sizes[int(self.bucket(step))]

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of the global batch, (batch_size,) int64."""
        bucket = int(self.bucket(step))
        first = int(self._before(step)[bucket]) * self.batch_size
        return self._rounds.take(bucket, first, self.batch_size)

    def _before(self, step: int) -> np.ndarray:
        """Return how many steps each bucket had before this one."""
        known, counts = self._counted if self._counted[0] <= step else (0, 0)  # a memory of the last answer
        seen = np.bincount(self.bucket(np.arange(known, step)), minlength=len(self._shares))
        self._counted = (step, counts + seen)
        return self._counted[1]


def aspects(manifest: Manifest) -> np.ndarray | None:
    """Return height / width of each row, (N,) float32, 0 where it is not stated; None without the columns."""
    sizes = stated_sizes(manifest)
    if sizes is None:
        return None
    high, wide = sizes.T
    return np.divide(high, wide, out=np.zeros_like(high), where=wide > 0)


def at_size(augment: Any, size_px: tuple[int, int]) -> Any:
    """Return the sample stage `augment` as one that makes pictures of `size_px` (height, width).

    A crop's range of aspects is taken relative to that size, as it is to the net's own otherwise.

    Raises:
        UserError: a batch stage: its cached pictures have one size.

    """
    if augment.stage != "sample":
        raise UserError(
            f"augment: {type(augment).__name__} has pictures of one size, the sampler has several; "
            "accepted: augmentations of encoded pictures (crop_flip, none)"
        )
    made = copy.copy(augment)
    if hasattr(augment, "views"):
        made.views = [at_size(view, size_px) for view in augment.views]
    if hasattr(augment, "preprocess"):
        own = augment.preprocess.size_px
        made.preprocess = dataclasses.replace(augment.preprocess, size_px=size_px)
        if hasattr(augment, "ratio"):
            wider = (size_px[1] / size_px[0]) / (own[1] / own[0])
            made.ratio = tuple(bound * wider for bound in augment.ratio)
    return made


def _edges(edges: Sequence[float]) -> np.ndarray:
    made = np.asarray(edges, float)
    if made.ndim != 1 or (made <= 0).any() or (np.diff(made) <= 0).any():
        raise UserError(f"sampler.edges: {list(edges)}; accepted: numbers above 0, rising")
    return made


def _sizes(sizes: Sequence[tuple[int, int]], number: int) -> list[tuple[int, int]]:
    made = [tuple(int(side) for side in size) for size in sizes]
    if len(made) != number or any(len(size) != 2 or min(size) < 1 for size in made):
        raise UserError(
            f"sampler.sizes: {list(sizes)}; accepted: {number} pairs (height, width), edges plus one"
        )
    return made  # type: ignore[return-value]
