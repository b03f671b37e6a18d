"""Pictures through a network into arrays on disk: embeddings, and the feature cache of a frozen backbone.

Both are filled chunk by chunk into a file of a temporary name that keeps count; a job that was killed goes on
where it stopped, and the file gets its name when every row is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from guie import checkpoint
from guie.data.bad_images import BadImages
from guie.data.draws import uniforms
from guie.data.mixup import Mixup
from guie.data.pixels import PixelCache
from guie.data.sampling import Sampler, rank_slots
from guie.data.sizes import original_sizes
from guie.datasets.manifest import Manifest
from guie.durable import replace_file
from guie.embeddings import from_manifest
from guie.errors import UserError
from guie.images import BadImage
from guie.resize import load
from guie.side import side_inputs
from guie.types import Batch, Embeddings, Mixed

Progress = Callable[[int, int], None]
Forward = Callable[[Tensor, np.ndarray], Tensor]  # pictures (B,3,h,w) and their rows (B,)


class Reader(NamedTuple):
    """How pictures come: `threads` decode (None: one per core), `batch_size` pass the network at once."""

    batch_size: int = 128
    threads: int | None = None
    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Views:
    """Several looks at each picture: `picture(view, row)` is (3,h,w), a function of its arguments alone.

    `key` names what it does (augmentation and its seed): features under another key are other features.
    """

    num: int
    picture: Callable[[int, int], np.ndarray]
    key: str


def space_id(embedder: Any, weights: Mapping[str, Tensor] | None = None) -> str:
    """Return the name of the space that `embedder` (with `weights`, by default its own) embeds into."""
    parts = ("backbone", "pool", "neck")
    return checkpoint.space_id(
        weights or embedder.state_dict(), embedder.preprocess, _settings(embedder, parts)
    )


def _settings(embedder: Any, parts: tuple[str, ...]) -> str:
    """Return what these parts do without a weight that would tell: their own modules' kinds and settings."""
    found = []
    for path, module in embedder.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("guie.")]
        if kinds and path.split(".")[0] in parts:
            plain = {k: v for k, v in vars(module).items() if isinstance(v, _PLAIN) and k not in _PASSING}
            found.append(f"{path} {kinds[0]} {sorted(plain.items())}")
    return "\n".join(found)


_PLAIN = (bool, int, float, str, tuple, list)
_PASSING = {"training", "frozen", *vars(nn.Module())}  # how a module stands, not what it computes


def embed(
    embedder: Any,
    manifest: Manifest,
    reader: Reader | None = None,
    *,
    bad_images: BadImages | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Return unit vectors (N,D) float32 of the manifest's pictures by the exact preprocessing.

    Bad pictures are left out, by the policy of `bad_images`. With `folder` the work is kept there while it
    lasts, so that a killed job continues. Raises UserError by that policy.
    """
    space = space_id(embedder)
    bad_images = BadImages(manifest) if bad_images is None else bad_images
    job = _Job(manifest, _exact(manifest, embedder), reader or Reader(), bad_images, progress)
    shape = (len(manifest), embedder.embed_dim)
    forward = _embedding(embedder, manifest, job.reader.device)
    with _evaluating(embedder, job.reader.device):
        if folder is None:
            vectors = np.empty(shape, np.float32)
            job.fill(vectors, 0, forward)
        else:
            path = folder / f"vectors-{_hash(space, manifest.fingerprint())}.npy"
            vectors = np.array(_filled(path, shape, np.float32, job, forward))
            path.unlink()
            _lock_of(path).unlink(missing_ok=True)  # this folder has one writer, the one that holds its run
    rows = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    return from_manifest(vectors[rows], manifest, rows=rows, space_id=space)


class FeatureCache:
    """Pooled features (V,N,F) fp16 of V views of N pictures, mapped from one file; bad rows are NaN."""

    def __init__(self, path: Path, num_views: int) -> None:
        self.path = path
        flat = np.load(path, mmap_mode="r")
        self.features = flat.reshape(num_views, -1, flat.shape[1])
        self.good = np.isfinite(self.features[:, :, 0]).all(axis=0)


def cache_features(
    embedder: Any,
    manifest: Manifest,
    folder: Path,
    reader: Reader | None = None,
    *,
    views: Views | None = None,
    bad_images: BadImages | None = None,
    progress: Progress | None = None,
) -> FeatureCache:
    """Return what `embedder.features` says of each picture (of each of its `views`), computed at most once.

    The file lies in `folder` under a hash of weights (backbone and pooling), preprocessing, file list and
    views; it appears when it is complete. Without `views` each picture is seen once, exactly preprocessed.
    """
    parts = {name: value for name, value in embedder.state_dict().items() if not name.startswith("neck.")}
    view_key = f"{views.num} {views.key}" if views else "exact"
    seen = checkpoint.space_id(parts, embedder.preprocess, _settings(embedder, ("backbone", "pool")))
    key = _hash(seen, manifest.fingerprint(), view_key)
    path = folder / f"features-{key}.npy"
    num_views = views.num if views else 1
    picture = views.picture if views else _exact(manifest, embedder)
    bad_images = BadImages(manifest) if bad_images is None else bad_images
    job = _Job(manifest, picture, reader or Reader(), bad_images, progress)
    with _evaluating(embedder, job.reader.device):
        probe = embedder.features(torch.zeros(1, 3, *embedder.preprocess.size_px, device=job.reader.device))
        shape = (num_views * len(manifest), probe.shape[1])
        _filled(path, shape, np.float16, job, lambda images, rows: embedder.features(images))
    return FeatureCache(path, num_views)


def augmented_views(
    augment: Any, manifest: Manifest, num: int, seed: int, key: str, pixels: PixelCache | None = None
) -> Views:
    """Return `num` augmented views, each drawn from (seed, view, row).

    `key` tells this augmentation from others: its config as text. A batch stage works on `pixels`, the cache
    of decoded pictures; raises UserError where it gets none.
    """
    if augment.stage == "batch" and pixels is None:
        raise UserError(
            f"trainer.cache_views: {num} by {type(augment).__name__} without cached pictures; "
            "accepted: 1, or an augmentation of encoded pictures (augment=crop_flip)"
        )

    def from_bytes(view: int, row: int) -> np.ndarray:
        return augment(manifest.read(row), augment.draws(seed, view, np.array([row]))[0])

    def from_pixels(view: int, row: int) -> np.ndarray:
        if pixels is None or row in pixels.bad:
            raise BadImage(pixels.bad[row] if pixels else "not cached")
        rows = np.array([row])
        return augment(torch.from_numpy(pixels[rows]), augment.draws(seed, view, rows))[0].numpy()

    return Views(num, from_pixels if augment.stage == "batch" else from_bytes, f"{key} {seed}")


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


@dataclass(frozen=True)
class _Job:
    """Rows in order through threads that decode and a network that computes; bad rows come as NaN."""

    manifest: Manifest
    picture: Callable[[int, int], np.ndarray]  # (view, row) -> (3,h,w)
    reader: Reader
    bad_images: BadImages
    progress: Progress | None

    def fill(
        self, target: np.ndarray, done: int, forward: Forward, mark: Callable[[int], None] | None = None
    ) -> None:
        """Write `target[i]` for i >= `done`, where i = view * N + row; `mark(done)` after each chunk."""
        for start, images, failures in self._chunks(done, len(target)):
            for place, reason in failures.items():
                self.bad_images.add(place % len(self.manifest), reason)
            chunk = np.full((len(images) + len(failures), target.shape[1]), np.nan, target.dtype)
            kept = [i for i in range(len(chunk)) if start + i not in failures]
            if images:
                rows = (start + np.array(kept)) % len(self.manifest)
                chunk[kept] = self._computed(images, rows, forward, target.dtype)
            target[start : start + len(chunk)] = chunk
            if mark:
                mark(start + len(chunk))
            if self.progress:
                self.progress(start + len(chunk), len(target))

    def _computed(
        self, images: list[np.ndarray], rows: np.ndarray, forward: Forward, dtype: np.dtype
    ) -> np.ndarray:
        device = torch.device(self.reader.device)
        batch = torch.from_numpy(np.stack(images)).to(device, non_blocking=True)
        with torch.autocast(device.type, self.reader.dtype, enabled=self.reader.dtype is not None):
            found = forward(batch, rows).float().cpu().numpy()
        if not np.isfinite(found).all() or np.abs(found).max(initial=0) > np.finfo(dtype).max:
            raise UserError(f"embed: features that are not finite in {dtype}; accepted: a network whose are")
        return found.astype(dtype)

    def _chunks(self, done: int, total: int) -> Iterator[tuple[int, list[np.ndarray], dict[int, str]]]:
        """Yield (first place, pictures, reason of each bad place), one chunk being decoded ahead."""
        size = self.reader.batch_size
        threads = self.reader.threads or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(threads, thread_name_prefix="guie-embed") as pool:
            waiting: deque = deque()
            for start in range(done, total, size):
                places = range(start, min(start + size, total))
                waiting.append((start, [pool.submit(self._read, place) for place in places]))
                if len(waiting) > 1:
                    yield _collected(*waiting.popleft())
            while waiting:
                yield _collected(*waiting.popleft())

    def _read(self, place: int) -> np.ndarray | str:
        try:
            return self.picture(*divmod(place, len(self.manifest)))
        except (BadImage, OSError) as error:
            return str(error) or type(error).__name__


def _collected(start: int, futures: list) -> tuple[int, list[np.ndarray], dict[int, str]]:
    found = [future.result() for future in futures]
    failures = {start + i: value for i, value in enumerate(found) if isinstance(value, str)}
    return start, [value for value in found if not isinstance(value, str)], failures


def _embedding(embedder: Any, manifest: Manifest, device: str | torch.device) -> Forward:
    """Return pictures and their rows -> z; with side inputs where the embedder reads some."""
    if not getattr(embedder, "side_dim", 0):
        return lambda images, rows: embedder(images).z
    side = torch.from_numpy(side_inputs(original_sizes(manifest))).to(device)
    return lambda images, rows: embedder(images, side[torch.from_numpy(rows).to(device)]).z


def _exact(manifest: Manifest, embedder: Any) -> Callable[[int, int], np.ndarray]:
    spec = embedder.preprocess
    return lambda view, row: load(manifest.read(row), spec)


def _filled(path: Path, shape: tuple[int, int], dtype: type, job: _Job, forward: Forward) -> np.ndarray:
    """Return the complete array at `path`, mapped; make it, or go on making it, where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_of(path)):
        if not path.exists():
            _make(path, shape, dtype, job, forward)
    return np.load(path, mmap_mode="r")


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _make(path: Path, shape: tuple[int, int], dtype: type, job: _Job, forward: Forward) -> None:
    growing, count = path.with_name(f".{path.name}.growing"), path.with_name(f".{path.name}.done")
    done = _rows_done(growing, count, shape, dtype)
    mode = "r+" if done else "w+"
    target = np.lib.format.open_memmap(growing, mode=mode, dtype=dtype, shape=None if done else shape)

    def mark(rows: int) -> None:
        target.flush()  # first the rows, then the count that vouches for them
        replace_file(count, json.dumps({"rows": rows}).encode())

    job.fill(target, done, forward, mark)
    target.flush()
    growing.replace(path)
    count.unlink(missing_ok=True)


def _rows_done(growing: Path, count: Path, shape: tuple[int, int], dtype: type) -> int:
    """Return how many rows of an interrupted job are on disk, 0 where nothing fits."""
    try:
        rows = int(json.loads(count.read_bytes())["rows"])
        there = np.load(growing, mmap_mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return rows if there.shape == shape and there.dtype == dtype and 0 <= rows <= shape[0] else 0


@contextmanager
def _evaluating(module: nn.Module, device: str | torch.device) -> Iterator[None]:
    """On `device`, in evaluation mode and without gradients for as long as the block lasts."""
    was = module.training
    module.to(device).eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(was)


def _hash(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
