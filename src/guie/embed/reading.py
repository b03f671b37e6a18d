"""Pictures through a network: threads decode ahead of what computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from guie.data.bad_images import BadImages
from guie.data.sizes import original_sizes
from guie.datasets.manifest import CROP, Manifest
from guie.embed.gated import Gated, Rows
from guie.embeddings import picture_names
from guie.errors import UserError
from guie.images import BadImage, decode
from guie.launch import cores, ranks_here
from guie.resize import apply, load
from guie.side import side_inputs
from guie.types import Output, Preprocess
from guie.views import View, Views, combined

Progress = Callable[[int, int], None]
Picture = Callable[[int, int], Sequence[np.ndarray]]  # (drawn view, row) -> its looks, (3,h,w) each
Forward = Callable[[Sequence[Tensor], np.ndarray], Tensor]  # looks (B,3,h,w) each and their rows (B,)


class Reader(NamedTuple):
    """How pictures come: `threads` decode (None: one per core), `batch_size` pass the network at once.

    With `views` each is looked at several times, and its vectors are summed.
    """

    batch_size: int = 128
    threads: int | None = None
    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None
    views: Views | None = None

    @property
    def num_threads(self) -> int:
        """Return `threads`, or this process's share of the cores."""
        return self.threads or max(1, len(cores()) // ranks_here())


class Chunk(NamedTuple):
    """What was computed of `places`: `values` (len(places),D), NaN where `bad` gives the reason by place."""

    places: range
    values: np.ndarray
    bad: dict[int, str]


@dataclass(frozen=True)
class Job:
    """Places through threads that decode and a network that computes; place = drawn view * N + row."""

    manifest: Manifest
    picture: Picture
    reader: Reader
    bad_images: BadImages
    progress: Progress | None = None

    def cut(self, places: range) -> list[range]:
        """Return the batches of `places`."""
        size = self.reader.batch_size
        return [places[first : first + size] for first in range(0, len(places), size)]

    def computed(
        self, batches: Sequence[range], forward: Forward, width: int, dtype: Any, done: int = 0
    ) -> Iterator[Chunk]:
        """Yield what `forward` gives for each batch, (B,width); `progress` hears of it when it is taken.

        `done` places were computed before. Raises UserError by the policy on bad pictures, and for values
        that are not finite.
        """
        total = done + sum(map(len, batches))
        for places, found in self._pictures(batches):
            bad = {place: look for place, look in zip(places, found, strict=True) if isinstance(look, str)}
            for place, reason in bad.items():
                self.bad_images.add(place % len(self.manifest), reason)
            values = np.full((len(places), width), np.nan, dtype)
            kept = [i for i, place in enumerate(places) if place not in bad]
            if kept:
                rows = np.array([places[i] % len(self.manifest) for i in kept])
                values[kept] = self._passed([found[i] for i in kept], rows, forward, values.dtype)
            yield Chunk(places, values, bad)
            done += len(places)
            if self.progress:
                self.progress(done, total)

    def _passed(
        self, found: Sequence[Sequence[np.ndarray]], rows: np.ndarray, forward: Forward, dtype: np.dtype
    ) -> np.ndarray:
        device = torch.device(self.reader.device)
        looks = [torch.from_numpy(np.stack(look)).to(device) for look in zip(*found, strict=True)]
        with torch.autocast(device.type, self.reader.dtype, enabled=self.reader.dtype is not None):
            values = forward(looks, rows).float().cpu().numpy()
        bad = np.flatnonzero(~(np.abs(values) <= np.finfo(dtype).max).all(axis=1))
        if len(bad):
            name = picture_names(self.manifest, rows[bad[:1]])[0]
            told = f"features that are not finite in {dtype}, of {len(bad)} pictures such as {name}"
            raise UserError(f"embed: {told}; accepted: a network whose are")
        return values.astype(dtype)

    def _pictures(self, batches: Iterable[range]) -> Iterator[tuple[range, list[Any]]]:
        """Yield the looks of each place, or the reason why there are none; one batch is decoded ahead."""
        with ThreadPoolExecutor(self.reader.num_threads, thread_name_prefix="guie-embed") as pool:
            waiting: deque[tuple[range, list[Future]]] = deque()
            for places in batches:
                waiting.append((places, [pool.submit(self._read, place) for place in places]))
                if len(waiting) > 1:
                    yield _collected(*waiting.popleft())
            while waiting:
                yield _collected(*waiting.popleft())

    def _read(self, place: int) -> Sequence[np.ndarray] | str:
        try:
            return self.picture(*divmod(place, len(self.manifest)))
        except (BadImage, OSError) as error:
            return str(error) or type(error).__name__


def _collected(places: range, futures: list[Future]) -> tuple[range, list[Any]]:
    return places, [future.result() for future in futures]


def exact(manifest: Manifest, embedder: Any) -> Picture:
    """Return the one look of evaluation, at what its protocol crops of the picture."""
    spec = embedder.preprocess
    return lambda view, row: (load(manifest.read(row), spec, box=manifest.crop(row)),)


def looks(manifest: Manifest, embedder: Any, views: Views | None) -> Picture:
    """Return what the network is shown of each picture through `views`, each picture decoded once."""
    if views is None:
        return exact(manifest, embedder)
    spec = embedder.preprocess

    def picture(_: int, row: int) -> Sequence[np.ndarray]:
        image = decode(manifest.read(row), background=spec.background, box=manifest.crop(row))
        return shown(image, views, spec)

    return picture


def shown(image: np.ndarray, views: Views, spec: Preprocess) -> list[np.ndarray]:
    """Return the looks of `views` at `image` (H,W,3) uint8, but for mirror images of others: (3,h,w) each.

    With a gate a look that a picture of this shape cannot get is black, and behind the looks stands whether
    the picture is square, () bool.
    """
    gating = views.gating
    seen = [(number, view) for number, view in enumerate(views.of(spec)) if not view.mirrored]
    if gating is None:
        return [_seen(image, view) for _, view in seen]
    square = gating.is_square(*image.shape[:2])
    possible = gating.possible(square=square)
    found = [_seen(image, view) if number in possible else _black(view) for number, view in seen]
    return [*found, np.array(square)]


def _seen(image: np.ndarray, view: View) -> np.ndarray:
    """Return what `view` shows the network of `image` (H,W,3) uint8, but for its mirroring: (3,h,w)."""
    owned = image if image.flags.writeable and min(image.strides) > 0 else image.copy()
    part = view.look(torch.from_numpy(owned).permute(2, 0, 1).unsqueeze(0))[0]
    return apply(part.permute(1, 2, 0).numpy(), view.preprocess)


def _black(view: View) -> np.ndarray:
    return np.zeros((3, *view.preprocess.size_px), np.uint8)


def embedding(embedder: Any, manifest: Manifest, reader: Reader) -> Forward:
    """Return the function from looks and their rows to z; with side inputs where the embedder reads some."""
    side = None
    if getattr(embedder, "side_dim", 0):
        side = torch.from_numpy(side_inputs(_sizes(manifest))).to(reader.device)
    if reader.views and reader.views.gating:
        reader.views.gating.choice.to(reader.device)

    def forward(images: Sequence[Tensor], rows: np.ndarray) -> Tensor:
        own = None if side is None else side[torch.from_numpy(rows).to(side.device)]
        return summed(embedder, reader.views, images, own)

    return forward


def summed(
    embedder: Any, views: Views | None, images: Sequence[Tensor], side: Tensor | None = None
) -> Tensor:
    """Return z (B,D) of what `shown` gave of B pictures (views None: of one look), with their side inputs."""

    def passed(pixels: Tensor, rows: Rows = slice(None)) -> Output:
        return embedder(pixels[rows]) if side is None else embedder(pixels[rows], side[rows])

    if views is None:
        return passed(images[0]).z
    mirrors = (False, True) if views.flip else (False,)

    def output(view: int, rows: Rows = slice(None)) -> Output:
        look, mirrored = divmod(view, len(mirrors))
        return passed(images[look].flip(3) if mirrored else images[look], rows)

    def vector(found: Output) -> Tensor:
        return found.z if views.summed == "unit" else found.raw[:, : found.z.shape[1]]

    if views.gating is None:
        return combined(vector(output(view)) for view in range(len(images) * len(mirrors)))
    return combined([Gated(views.gating, output, vector).sums(images[-1])])


def _sizes(manifest: Manifest) -> np.ndarray:
    """Return (height, width) of each picture, of a cropped one those of its box, (N,2) float32."""
    sizes = original_sizes(manifest)
    for row in range(len(manifest)) if CROP in manifest.table.column_names else ():
        if box := manifest.crop(row):
            sizes[row] = box[3], box[2]
    return sizes


def check_sizes(embedder: Any, reader: Reader) -> None:
    """Raise UserError where the network does not take pictures of a size that `reader.views` show it."""
    seen = {view.preprocess.size_px for view in reader.views.of(embedder.preprocess)} if reader.views else ()
    for height, width in sorted(set(seen) - {embedder.preprocess.size_px}):
        try:
            embedder.features(torch.zeros(1, 3, height, width, dtype=torch.uint8, device=reader.device))
        except Exception as error:  # each backbone refuses in its own way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"views.scales: the network takes no {height} x {width} px ({reason}); accepted: scales of "
                "a network of any size, else parts of the picture (views=five_crop)"
            ) from error


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
