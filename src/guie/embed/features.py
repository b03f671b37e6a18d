"""Pooled features of a frozen backbone on disk, computed at most once.

A file is filled chunk by chunk under a temporary name and keeps count; a job that was killed goes on where it
stopped, and the file gets its name when every row is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from guie import checkpoint
from guie.data.bad_images import BadImages
from guie.data.pixels import PixelCache
from guie.datasets.manifest import Manifest
from guie.durable import replace_file
from guie.embed.reading import Forward, Job, Picture, Progress, Reader, evaluating, exact
from guie.embed.space import digest, settings
from guie.errors import UserError
from guie.images import BadImage


@dataclass(frozen=True)
class DrawnViews:
    """Several looks at each picture: `picture(view, row)` is (3,h,w), a function of its arguments alone.

    `key` names what it does (augmentation and its seed): features under another key are other features.
    """

    num: int
    picture: Callable[[int, int], np.ndarray]
    key: str


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
    views: DrawnViews | None = None,
    bad_images: BadImages | None = None,
    progress: Progress | None = None,
) -> FeatureCache:
    """Return what `embedder.features` says of each picture (of each of its `views`), computed at most once.

    The file lies in `folder` under a hash of weights (backbone and pooling), preprocessing, file list and
    views; it appears when it is complete. Without `views` each picture is seen once, exactly preprocessed.
    """
    parts = {name: value for name, value in embedder.state_dict().items() if not name.startswith("neck.")}
    view_key = f"{views.num} {views.key}" if views else "exact"
    seen = checkpoint.space_id(parts, embedder.preprocess, settings(embedder, ("backbone", "pool")))
    key = digest(seen, manifest.fingerprint(), view_key)
    path = folder / f"features-{key}.npy"
    num_views = views.num if views else 1
    picture = _drawn(views) if views else exact(manifest, embedder)
    bad_images = BadImages(manifest) if bad_images is None else bad_images
    job = Job(manifest, picture, reader or Reader(), bad_images, progress)
    with evaluating(embedder, job.reader.device):
        probe = embedder.features(torch.zeros(1, 3, *embedder.preprocess.size_px, device=job.reader.device))
        shape = (num_views * len(manifest), probe.shape[1])
        _filled(path, shape, np.float16, job, lambda images, rows: embedder.features(images[0]))
    return FeatureCache(path, num_views)


def augmented_views(
    augment: Any, manifest: Manifest, num: int, seed: int, key: str, pixels: PixelCache | None = None
) -> DrawnViews:
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

    return DrawnViews(num, from_pixels if augment.stage == "batch" else from_bytes, f"{key} {seed}")


def _drawn(views: DrawnViews) -> Picture:
    return lambda view, row: (views.picture(view, row),)


def _filled(path: Path, shape: tuple[int, int], dtype: type, job: Job, forward: Forward) -> np.ndarray:
    """Return the complete array at `path`, mapped; make it, or go on making it, where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            _make(path, shape, dtype, job, forward)
    return np.load(path, mmap_mode="r")


def _make(path: Path, shape: tuple[int, int], dtype: type, job: Job, forward: Forward) -> None:
    growing, count = path.with_name(f".{path.name}.growing"), path.with_name(f".{path.name}.done")
    done = _rows_done(growing, count, shape, dtype)
    mode = "r+" if done else "w+"
    target = np.lib.format.open_memmap(growing, mode=mode, dtype=dtype, shape=None if done else shape)

    for chunk in job.computed(job.cut(range(done, shape[0])), forward, shape[1], dtype, done):
        target[chunk.places.start : chunk.places.stop] = chunk.values
        target.flush()  # first the rows, then the count that vouches for them
        replace_file(count, json.dumps({"rows": chunk.places.stop}).encode())
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
