"""Pictures through a network, rows in order: threads decode ahead of what computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from guie.data.bad_images import BadImages
from guie.data.sizes import original_sizes
from guie.datasets.manifest import Manifest
from guie.errors import UserError
from guie.images import BadImage
from guie.resize import load
from guie.side import side_inputs

Progress = Callable[[int, int], None]
Forward = Callable[[Tensor, np.ndarray], Tensor]  # pictures (B,3,h,w) and their rows (B,)


class Reader(NamedTuple):
    """How pictures come: `threads` decode (None: one per core), `batch_size` pass the network at once."""

    batch_size: int = 128
    threads: int | None = None
    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Job:
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


def embedding(embedder: Any, manifest: Manifest, device: str | torch.device) -> Forward:
    """Return pictures and their rows -> z; with side inputs where the embedder reads some."""
    if not getattr(embedder, "side_dim", 0):
        return lambda images, rows: embedder(images).z
    side = torch.from_numpy(side_inputs(original_sizes(manifest))).to(device)
    return lambda images, rows: embedder(images, side[torch.from_numpy(rows).to(device)]).z


def exact(manifest: Manifest, embedder: Any) -> Callable[[int, int], np.ndarray]:
    spec = embedder.preprocess
    return lambda view, row: load(manifest.read(row), spec)


@contextmanager
def evaluating(module: nn.Module, device: str | torch.device) -> Iterator[None]:
    """On `device`, in evaluation mode and without gradients for as long as the block lasts."""
    was = module.training
    module.to(device).eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(was)
