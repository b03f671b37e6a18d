"""Pictures through an embedder into unit vectors: by one process or several, a killed job goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from guie.data.bad_images import BadImages
from guie.datasets.manifest import Manifest
from guie.embed.reading import Job, Progress, Reader, check_sizes, embedding, evaluating, looks
from guie.embed.shards import Shards, reasons, reasons_path, rows_each
from guie.embed.space import digest, space_id
from guie.embeddings import from_manifest
from guie.errors import UserError
from guie.train.distributed import World
from guie.types import Embeddings


def embed(
    embedder: Any,
    manifest: Manifest,
    reader: Reader | None = None,
    *,
    bad_images: BadImages | None = None,
    folder: Path | None = None,
    here: World | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Return unit vectors (N,D) float32 of the manifest's pictures by the exact preprocessing.

    With `reader.views` each is the sum over these, brought to unit length. Bad pictures are left out, by the
    policy of `bad_images`. With `folder` the work is kept there while it lasts, so that a killed job
    continues, and the vectors are mapped from disk. Of several processes (`here`) each computes its shards
    and all return all rows; `progress` hears of a process's own. Raises UserError by that policy, and where
    the network does not take the size of a view.
    """
    reader, here = reader or Reader(), here or World()
    bad_images = BadImages(manifest) if bad_images is None else bad_images
    space = space_id(embedder, views=reader.views)
    job = Job(manifest, looks(manifest, embedder, reader.views), reader, bad_images, progress)
    if folder is None:
        vectors = _in_memory(embedder, job, here)
    else:
        path = vectors_file(embedder, job, folder, here, space)
        vectors = np.load(path, mmap_mode="r")
        _wait_for_all(here)  # what is mapped stays when its name goes
        if here.is_main:
            path.unlink()
            reasons_path(path).unlink()
    rows = np.flatnonzero(np.isfinite(vectors[:, 0]))
    kept = vectors if len(rows) == len(vectors) else vectors[rows]
    return from_manifest(kept, manifest, rows=rows, space_id=space)


def vectors_file(embedder: Any, job: Job, folder: Path, here: World, space: str) -> Path:
    """Return the file in `folder` that holds (N,D) float32, NaN where a picture is bad; made where missing.

    `space` names what `embedder` computes. What is there of an interrupted job is not computed again, by
    whatever number of processes.
    """
    precision = f"{job.reader.dtype} {job.reader.batch_size}"
    path = folder / f"vectors-{digest(space, job.manifest.fingerprint(), precision)}.npy"
    shards = _shards(embedder, job, folder / f".{path.stem}")
    if not here.on_main(path.exists):
        mine = [number for number in range(here.rank, len(shards), here.size)]
        missing = [number for number in mine if not shards.has(number)]
        done = sum(len(shards.rows(number)) for number in set(mine) - set(missing))
        here.on_main(shards.begin)
        with _together(here, shards.stop), evaluating(embedder, job.reader.device):
            for number, values, bad in _made(embedder, job, shards, missing, done):
                shards.save(number, values, bad)
                shards.check_stopped()
        here.on_main(partial(shards.join, path))
    here.on_main(lambda: _list_bad(job.bad_images, reasons(path)))
    return path


def _in_memory(embedder: Any, job: Job, here: World) -> np.ndarray:
    shards = _shards(embedder, job, Path())
    with _together(here), evaluating(embedder, job.reader.device):
        made = list(_made(embedder, job, shards, range(here.rank, len(shards), here.size)))
    parts = sorted((part for one in here.gather(made) for part in one), key=lambda part: part[0])
    found = {row: reason for _, _, bad in parts for row, reason in bad.items()}
    here.on_main(lambda: _list_bad(job.bad_images, found))
    empty = np.empty((0, embedder.embed_dim), np.float32)
    return np.concatenate([empty, *(values for _, values, _ in parts)])


def _shards(embedder: Any, job: Job, folder: Path) -> Shards:
    num_rows = len(job.manifest)
    return Shards(folder, num_rows, embedder.embed_dim, rows_each(num_rows, job.reader.batch_size))


def _made(
    embedder: Any, job: Job, shards: Shards, numbers: Sequence[int], done: int = 0
) -> Iterator[tuple[int, np.ndarray, dict[int, str]]]:
    """Yield (number, values, reasons of bad rows) of the shards `numbers`."""
    ends = {shards.rows(number).stop: number for number in numbers}
    batches = [batch for number in numbers for batch in job.cut(shards.rows(number))]
    check_sizes(embedder, job.reader)
    forward = embedding(embedder, job.manifest, job.reader)
    chunks = []
    for chunk in job.computed(batches, forward, shards.width, np.float32, done):
        chunks.append(chunk)
        if chunk.places.stop in ends:
            bad = {row: reason for part in chunks for row, reason in part.bad.items()}
            yield ends[chunk.places.stop], np.concatenate([part.values for part in chunks]), bad
            chunks = []


def _list_bad(bad_images: BadImages, found: dict[int, str]) -> bool:
    """Count the bad pictures that any process found, by the policy; return whether there are any."""
    for row, reason in sorted(found.items()):
        bad_images.add(row, reason)
    return bool(found)


@contextmanager
def _together(here: World, stop: Callable[[str], None] = lambda reason: None) -> Iterator[None]:
    """Leave the block when every process has; all raise the UserError of one, told to them by `stop`."""
    said = None
    try:
        yield
    except UserError as error:
        if here.size == 1:
            raise
        said = str(error)
        stop(said)
    _wait_for_all(here)
    for reason in here.gather(said):
        if reason:
            raise UserError(reason)


def _wait_for_all(here: World) -> None:
    """Return when every process is here, however long one takes."""
    if here.size > 1:
        dist.barrier(group=here.waiting)
