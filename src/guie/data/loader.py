"""Batches of steps: what a step shows is a function of (seed, step), so a run resumes from an integer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from guie.data.bad_images import BadImages
from guie.data.buckets import Sized, aspects, at_size
from guie.data.pixels import PixelCache, open_pixels
from guie.data.sampling import Sampler, oriented, rank_slots
from guie.data.warp import cached_preprocess
from guie.datasets.manifest import Manifest
from guie.errors import UserError
from guie.images import BadImage
from guie.types import Batch


class Piece(NamedTuple):
    """One rank's part of a step before the batch stage; `failures` are (row, reason) met on the way."""

    images: Tensor
    labels: Tensor
    domains: Tensor
    ids: Tensor
    draws: Tensor | None
    failures: list[tuple[int, str]]


def sampler_facts(manifest: Manifest, *, orientations: int = 1) -> dict[str, Any]:
    """Return what a sampler must know of the rows: labels, domains, aspects (N,) and domain_names.

    With `orientations` 4 or 8 there are as many times N rows: row 8i+o is picture i turned by o % 4 quarters
    and, from o = 4 on, mirrored first; its class is 8*label+o.
    """
    labels, domains, shapes = manifest.labels, manifest.domains, aspects(manifest)
    if orientations > 1:
        labels, domains = oriented(labels, orientations), np.repeat(domains, orientations)
        shapes = None if shapes is None else np.repeat(shapes, orientations)
    return {"labels": labels, "domains": domains, "domain_names": manifest.domain_names, "aspects": shapes}


class Loader:
    """Yields a rank's batches of any stretch of steps.

    `augment` is a sample stage (bytes -> picture) or a batch stage (`Warp`), which needs `pixels`.
    `workers=0` prepares `prefetch` pieces ahead in one thread; more are processes that make whole pieces,
    and a killed one ends the run with an error, it does not hang. `device`: where a batch stage computes.
    `orientations`: the one the sampler was given in `sampler_facts`. `side` (N,3) float32 are the rows' side
    inputs, which batches then hold. A `Sized` sampler says how large the
    pictures of each step are.
    """

    def __init__(  # noqa: PLR0913  (options of one thing, most by name)
        self,
        manifest: Manifest,
        sampler: Sampler,
        augment: Any,
        *,
        seed: int,
        pixels: PixelCache | None = None,
        bad_images: BadImages | None = None,
        orientations: int = 1,
        side: np.ndarray | None = None,
        workers: int = 0,
        prefetch: int = 2,
        timeout_s: float = 300.0,
        device: str | torch.device = "cpu",
    ):
        if augment.stage == "batch" and pixels is None:
            raise UserError(
                f"augment: {type(augment).__name__} works on cached pictures; accepted: pixels=PixelCache"
            )
        if isinstance(sampler, Sized):
            at_size(augment, sampler.size_px(0))  # what cannot change its size is refused here
        self.sampler, self.augment = sampler, augment
        self.workers, self.prefetch, self.timeout_s = workers, prefetch, timeout_s
        self.device = torch.device(device)
        self.bad_images = BadImages(manifest) if bad_images is None else bad_images
        for row, reason in (pixels.bad if pixels else {}).items():
            self.bad_images.add(row, reason)
        self.pixels = pixels
        self.side = side
        self.num_classes = manifest.num_classes * orientations
        self._rows = _Rows(manifest, augment, pixels, seed, orientations)

    @property
    def steps_per_epoch(self) -> int:
        """Return the sampler's."""
        return self.sampler.steps_per_epoch

    def batches(
        self, start: int, stop: int, rank: int = 0, world: int = 1, accumulate: int = 1
    ) -> Iterator[Batch]:
        """Yield `accumulate` batches for each of the steps start..stop-1, in order.

        Raises:
            UserError: the batch does not divide, or the policy on bad images ends the run.
            RuntimeError: a worker process died.

        """
        slots = rank_slots(self.sampler.batch_size, rank, world, accumulate)
        pieces = _Pieces(self._rows, self.sampler, slots)
        numbers = range(start * accumulate, stop * accumulate)
        for piece in (
            self._in_processes(pieces, numbers) if self.workers else self._in_thread(pieces, numbers)
        ):
            for row, reason in piece.failures:
                self.bad_images.add(row, reason)
            side = None if self.side is None else torch.from_numpy(self.side[piece.ids.numpy()])
            yield Batch(piece.images, piece.labels, piece.domains, piece.ids, side)

    def _in_thread(self, pieces: _Pieces, numbers: range) -> Iterator[Piece]:
        pool = _single_thread()
        waiting: deque = deque()
        try:
            for number in numbers:
                waiting.append(pool.submit(lambda n: self._finish(pieces[n]), number))
                if len(waiting) > self.prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _in_processes(self, pieces: _Pieces, numbers: range) -> Iterator[Piece]:
        loader: DataLoader = DataLoader(
            pieces,
            batch_size=None,
            sampler=numbers,
            num_workers=self.workers,
            prefetch_factor=self.prefetch,
            timeout=self.timeout_s,
            collate_fn=_as_it_is,  # the default would copy
        )
        for piece in loader:
            yield self._finish(piece)

    def _finish(self, piece: Piece) -> Piece:
        """Apply the batch stage, on the device."""
        if piece.draws is None:
            return piece
        images = piece.images.to(self.device, non_blocking=True)
        return piece._replace(images=self.augment(images, piece.draws), draws=None)


def train_loader(  # noqa: PLR0913  (what cli has at hand, passed on by name)
    manifest: Manifest,
    sampler: Sampler,
    augment: Any,
    *,
    preprocess: Any,
    seed: int,
    cache_dir: str | Path,
    bad_images: BadImages | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Loader:
    """Return a `Loader`; for a batch stage the cache of decoded pictures is opened, or built first.

    `progress(done, total)` follows the building; `options` are `Loader`'s.
    """
    pixels = None
    if augment.stage == "batch":
        cached = cached_preprocess(preprocess, augment.cached_px)
        pixels = open_pixels(manifest, cached, cache_dir, progress=progress)
    return Loader(manifest, sampler, augment, seed=seed, pixels=pixels, bad_images=bad_images, **options)


class _Rows:
    """Rows and a place in the global batch -> pictures; bad ones replaced."""

    def __init__(
        self, manifest: Manifest, augment: Any, pixels: PixelCache | None, seed: int, orientations: int
    ):
        self.manifest, self.augment, self.seed = manifest, augment, seed
        self.pixels = pixels if augment.stage == "batch" else None
        self.orientations = orientations
        self.labels, self.domains = manifest.labels, manifest.domains
        self.known_bad: dict[int, str] = dict(pixels.bad) if pixels else {}

    def piece(
        self, chosen: np.ndarray, step: int, slots: np.ndarray, size_px: tuple[int, int] | None = None
    ) -> Piece:
        """Return the piece of virtual rows `chosen` (B,) at `slots` (B,) of the global batch of `step`.

        `size_px`: (height, width) instead of the net's own.
        """
        rows, orientation = np.divmod(chosen, self.orientations)
        augment = self.augment if size_px is None else at_size(self.augment, size_px)
        draws = augment.draws(self.seed, step, slots)
        failures: list[tuple[int, str]] = []
        if self.pixels is not None:
            rows = np.array([self._good(int(row)) for row in rows]) if self.known_bad else rows
            images = self.pixels[rows]
        else:
            read = [self._read(int(row), u, augment, failures) for row, u in zip(rows, draws, strict=True)]
            rows, images, draws = (
                np.array([row for row, _ in read]),
                np.stack([image for _, image in read]),
                None,
            )
        if self.orientations > 1:
            images = _oriented(images, orientation)
        labels = self.labels[rows] * self.orientations + orientation
        numbers = [torch.from_numpy(column) for column in (labels, self.domains[rows], rows)]
        return Piece(torch.from_numpy(images), numbers[0], numbers[1], numbers[2], draws, failures)

    def _good(self, row: int) -> int:
        return next(other for other in self._candidates(row) if other not in self.known_bad)

    def _read(
        self, row: int, u: np.ndarray, augment: Any, failures: list[tuple[int, str]]
    ) -> tuple[int, np.ndarray]:
        for other in self._candidates(row):
            if other in self.known_bad:
                continue
            try:
                return other, augment(self.manifest.read(other), u)
            except BadImage as error:
                self.known_bad[other] = str(error)
                failures.append((other, str(error)))
        raise UserError(f"dataset {self.manifest.name}: none of {len(self.labels)} pictures can be read")

    def _candidates(self, row: int) -> Iterator[int]:
        """Yield the row, then the next ones of its class, then all that follow it: the same every time."""
        yield row
        same = np.flatnonzero(self.labels == self.labels[row])
        yield from (int(other) for other in np.roll(same, -int(np.searchsorted(same, row)) - 1))
        yield from ((row + ahead) % len(self.labels) for ahead in range(1, len(self.labels)))


class _Pieces(Dataset):
    """Piece number (step * accumulate + part) -> Piece: the 'sample' of torch's DataLoader is a piece."""

    def __init__(self, rows: _Rows, sampler: Sampler, slots: np.ndarray):
        self.rows, self.sampler, self.slots = rows, sampler, slots

    def __getitem__(self, number: int) -> Piece:
        step, part = divmod(number, len(self.slots))
        slots = self.slots[part]
        size_px = self.sampler.size_px(step) if isinstance(self.sampler, Sized) else None
        return self.rows.piece(self.sampler.batch(step)[slots], step, slots, size_px)


def _single_thread() -> ThreadPoolExecutor:
    """Return a pool of one thread in which torch does not spread over the cores that train."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="guie-loader")
    here = torch.get_num_threads()
    pool.submit(torch.set_num_threads, 1).result()
    # OpenMP's number belongs to the calling thread; torch's number for threads to come is put back
    torch.set_num_threads(here)
    return pool


def _oriented(images: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Mirror each picture (B,3,S,S) whose orientation is 4 or more, then turn it by the rest in quarters."""
    if images.shape[2] != images.shape[3]:
        raise UserError(f"augment.orientations: pictures of {images.shape[2:]} pixels; accepted: square ones")
    mirrored = np.where((orientation >= 4)[:, None, None, None], images[..., ::-1], images)
    turned = mirrored.copy()
    for quarter in (1, 2, 3):
        chosen = orientation % 4 == quarter
        turned[chosen] = np.rot90(mirrored[chosen], quarter, axes=(2, 3))
    return turned


def _as_it_is(piece: Any) -> Any:
    return piece
