"""Decoded and resized pictures on disk, mapped: decoding is paid once, an epoch reads bytes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from guie.datasets.manifest import Manifest
from guie.datasets.once import made_once
from guie.images import BadImage
from guie.records.pictures import Pictures
from guie.types import Preprocess

_CHUNK = 64  # rows of one job


class PixelCache:
    """Pictures of a manifest as one array (N,3,h,w) uint8 in a mapped file; bad ones are listed, not grey.

    `bad` maps row to reason. Built by `open_pixels`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        facts = json.loads((folder / "pixels.json").read_text())
        self.bad = {int(row): reason for row, reason in facts["bad"].items()}
        self.pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=tuple(facts["shape"]))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy (B,3,h,w) uint8 of these rows; the caller has replaced bad ones."""
        return self.pixels[rows]

    def __reduce__(self) -> tuple:
        return PixelCache, (self.folder,)


def open_pixels(
    manifest: Manifest,
    preprocess: Preprocess,
    cache_dir: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    num_threads: int | None = None,
) -> PixelCache:
    """Return the cache of `manifest` under `preprocess`, built below `cache_dir` where it is not there yet.

    Its key is the manifest's fingerprint with the preprocessing's. It appears whole or not at all.
    `progress(done, total)` is called now and then from this thread.
    """
    size = "x".join(map(str, preprocess.size_px))
    folder = Path(cache_dir) / f"pixels-{manifest.name}-{size}-{_key(manifest, preprocess)}"
    threads = num_threads or os.cpu_count() or 1
    made_once(folder, "pixels.json", lambda new: _build(new, manifest, preprocess, progress, threads))
    return PixelCache(folder)


def _key(manifest: Manifest, preprocess: Preprocess) -> str:
    # mean and std are applied later, on the device: two nets that differ in them share a cache
    plain = Preprocess(
        preprocess.size_px,
        interpolation=preprocess.interpolation,
        crop=preprocess.crop,
        crop_fraction=preprocess.crop_fraction,
        background=preprocess.background,
    )
    return f"{manifest.fingerprint()}-{plain.digest()}"


def _build(
    folder: Path,
    manifest: Manifest,
    preprocess: Preprocess,
    progress: Callable[[int, int], None] | None,
    num_threads: int,
) -> None:
    """Decode in threads: decoders, resampling and file reads let go of the interpreter."""
    total = len(manifest)
    shape = (total, 3, *preprocess.size_px)
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "w+", shape=shape)
    own, bad = threading.local(), {}

    def fill(start: int) -> int:
        from guie.resize import load

        if not hasattr(own, "pictures"):
            own.pictures = Pictures(manifest.root)
        stop = min(start + _CHUNK, total)
        for row in range(start, stop):
            try:
                pixels[row] = load(own.pictures.read(*manifest.place(row)), preprocess)
            except BadImage as error:
                bad[row] = str(error)
        return stop - start

    done = 0
    with ThreadPoolExecutor(num_threads) as pool:
        for filled in pool.map(fill, range(0, total, _CHUNK)):
            done += filled
            if progress is not None:
                progress(done, total)
    pixels.flush()
    facts = {"shape": shape, "bad": {str(row): bad[row] for row in sorted(bad)}}
    (folder / "pixels.json").write_text(json.dumps(facts))
