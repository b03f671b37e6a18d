"""Label cleaning: a picture keeps its label where enough neighbours of that label show the same thing.

The recipe that made the clean landmark list (Yokoo et al. 2020, section 3.1): neighbours in an early model's
space, those of the same label verified by local features, a threshold on how many agree. The work is cut into
shards of whole classes, kept on disk; a job that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from guie import embeddings
from guie.build import build
from guie.datasets.known import FACTS, MANIFEST
from guie.datasets.manifest import Manifest
from guie.durable import replace_file
from guie.errors import UserError
from guie.images import BadImage, decode
from guie.local.features import Keypoints, sift
from guie.local.verify import verify
from guie.search.exact import knn

REPORT = "cleaning.json"
SHARD_ROWS = 2000  # about so many pictures to one shard: minutes of one process

NO_KEYPOINTS = Keypoints(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))

Job = tuple[Manifest, np.ndarray, "Cleaning"]


def clean_configured(cfg: Mapping[str, Any], notice: Any) -> None:
    """Clean the training rows of `dataset` by the embeddings of `ckpt`, or saved ones; print what is left."""
    from guie import assembly

    settings = build(cfg["cleaning"], where="cleaning").check()
    if not cfg["out"]:
        raise UserError("out: not given; accepted: a new folder for the cleaned list")
    out = Path(cfg["out"]).expanduser()
    rows = assembly.training_rows(assembly.manifests(cfg["dataset"], cfg["data_root"]))
    rows, vectors = _embedded(cfg, rows, out, notice)
    left = clean(
        *(rows, vectors, settings, out),
        workers=cfg["workers"] or len(os.sched_getaffinity(0)),
        progress=partial(notice, "verifying labels"),
    )
    found = json.loads((out / REPORT).read_text())
    for what in ("images", "classes"):
        print(f"{what:8} {found[what]['before']:>12,} -> {found[what]['after']:,}")
    print(f"{left.name}: {out / MANIFEST}")


def _embedded(cfg: Mapping[str, Any], rows: Manifest, out: Path, notice: Any) -> tuple[Manifest, np.ndarray]:
    """Return the rows that have embeddings, and these."""
    if cfg["embeddings"]:
        found = embeddings.load(Path(cfg["embeddings"]).expanduser())
    elif cfg["ckpt"]:
        from guie import assembly
        from guie.embed.reading import Reader
        from guie.embed.vectors import embed
        from guie.train.distributed import pick_device

        embedder, _ = assembly.trained_embedder(Path(cfg["ckpt"]).expanduser())
        out.mkdir(parents=True, exist_ok=True)
        device = pick_device(cfg["device"])
        reader = Reader(device=device, threads=cfg["threads"])
        told = partial(notice, f"embedding {rows.name}")
        found = embed(embedder.to(device), rows, reader, folder=out, progress=told)
    else:
        raise UserError(
            "ckpt: not given; accepted: a run or checkpoint, or embeddings=PATH of the same pictures"
        )
    place = {name: number for number, name in enumerate(found.files)}
    names = embeddings.picture_names(rows, np.arange(len(rows)))
    kept = [i for i, name in enumerate(names) if name in place]
    if not kept:
        raise UserError(
            f"embeddings: none of the {len(rows)} training pictures; accepted: those of the same set"
        )
    return rows.select(kept), found.vectors[[place[names[i]] for i in kept]]


@dataclass(frozen=True)
class Cleaning:
    """What makes a label believed.

    Of the `neighbours` nearest pictures at most `candidates` of the same label are compared. One agrees with
    at least `min_inliers` matches of one affine map, within `tolerance_px`; `min_support` must agree. Classes
    left with fewer than `min_images` go. `max_px` and `max_keypoints` bound the local features.
    """

    neighbours: int = 1000
    candidates: int = 100
    min_inliers: int = 30
    min_support: int = 3
    min_images: int = 2
    tolerance_px: float = 10.0
    max_px: int = 800
    max_keypoints: int = 1000

    def check(self) -> Cleaning:
        """Return the settings; raises UserError naming the first that cannot be."""
        for name, value in asdict(self).items():
            if value < 1:
                raise UserError(f"cleaning.{name}: {value}; accepted: 1 or more")
        return self


def clean(
    rows: Manifest,
    vectors: np.ndarray,
    settings: Cleaning,
    out: Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write what is believed of `rows` into the prepared folder `out` and return it.

    `vectors` (N,D) float32 are the rows' embeddings by an early model. `out` receives manifest.parquet and
    cleaning.json (settings, counts before and after, how many rows had how much support).

    Raises:
        UserError: `out` holds other work, or nothing is left.

    """
    settings.check()
    work = _claimed(out, rows, vectors, settings)
    candidates = same_label_neighbours(rows.labels, vectors, settings)
    support = _support(rows, candidates, settings, work, workers, progress)
    kept = believed(rows.labels, support, settings)
    if not kept.any():
        raise UserError(f"{out}: no label is believed; accepted: a lower min_inliers or min_support")
    left = rows.select(kept)
    left.write(out / MANIFEST)
    replace_file(out / FACTS, _json({"root": str(rows.root.resolve()), "name": rows.name}))
    replace_file(out / REPORT, _json(report(rows, left, support, settings)))
    shutil.rmtree(work)
    return left


def same_label_neighbours(labels: np.ndarray, vectors: np.ndarray, settings: Cleaning) -> np.ndarray:
    """Return rows (N, candidates) int32: the nearest of the same label, best first, else -1."""
    depth = min(settings.neighbours, max(1, len(labels) - 1))
    found = np.full((len(labels), settings.candidates), -1, np.int32)
    step = max(1, 64_000_000 // (8 * depth))
    for start in range(0, len(labels), step):
        mine = np.arange(start, min(start + step, len(labels)))
        near = knn(vectors[mine], vectors, depth, self_ids=mine).ids
        same = (near >= 0) & (labels[near] == labels[mine, None])
        # a stable sort moves those of the same label to the front and keeps their order
        order = np.argsort(~same, axis=1, kind="stable")[:, : settings.candidates]
        chosen = np.where(
            np.take_along_axis(same, order, axis=1), np.take_along_axis(near, order, axis=1), -1
        )
        found[mine, : chosen.shape[1]] = chosen
    return found


def believed(labels: np.ndarray, support: np.ndarray, settings: Cleaning) -> np.ndarray:
    """Return (N,) bool: rows with enough support, in classes that keep enough rows."""
    kept = support >= settings.min_support
    counts = np.bincount(labels[kept], minlength=int(labels.max(initial=0)) + 1)
    return kept & (counts[labels] >= settings.min_images)


def report(before: Manifest, after: Manifest, support: np.ndarray, settings: Cleaning) -> dict[str, Any]:
    """Return settings, images and classes before and after, and rows by support (the last: or more)."""
    counts = np.bincount(np.minimum(support, settings.min_support), minlength=settings.min_support + 1)
    return {
        "settings": asdict(settings),
        "images": {"before": len(before), "after": len(after)},
        "classes": {"before": before.num_classes, "after": after.num_classes},
        "images_by_support": {str(n): int(count) for n, count in enumerate(counts)},
    }


def _claimed(out: Path, rows: Manifest, vectors: np.ndarray, settings: Cleaning) -> Path:
    """Return the folder of shards; UserError where `out` is finished or belongs to other rows or settings."""
    if (out / MANIFEST).exists():
        raise UserError(f"out: {out} is finished; accepted: a new folder")
    work, key = out / "work", out / "work" / "key.json"
    digest = hashlib.sha256(np.ascontiguousarray(vectors, dtype=np.float32).data).hexdigest()[:16]
    mine = {**asdict(settings), "rows": rows.fingerprint(), "vectors": digest}
    if key.exists() and json.loads(key.read_text()) != mine:
        other = json.loads(key.read_text())
        names = ", ".join(name for name in mine if other.get(name) != mine[name])
        raise UserError(f"out: {out} holds unfinished work with other {names}; accepted: a new folder")
    work.mkdir(parents=True, exist_ok=True)
    replace_file(key, _json(mine))
    return work


def _shards(labels: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each shard: whole classes, in order, about SHARD_ROWS together."""
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order])) + 1
    shards, start = [], 0
    for end in [*ends.tolist(), len(order)]:
        if end - start >= SHARD_ROWS or end == len(order):
            shards.append(order[start:end])
            start = end
    return shards


def _support(
    rows: Manifest,
    candidates: np.ndarray,
    settings: Cleaning,
    work: Path,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Return (N,) int32: how many candidates agree, counted no further than is needed."""
    shards = _shards(rows.labels)
    paths = [work / f"support-{number:06d}.npy" for number in range(len(shards))]
    todo = [number for number, path in enumerate(paths) if not path.exists()]
    jobs = [(rows.select(shards[n]), _renumbered(candidates, shards[n]), settings) for n in todo]
    done = len(rows) - sum(len(shards[n]) for n in todo)
    for number, found in zip(todo, _in_processes(jobs, workers), strict=True):
        replace_file(paths[number], _npy(found))
        done += len(found)
        if progress:
            progress(done, len(rows))
    support = np.zeros(len(rows), np.int32)
    for path, shard in zip(paths, shards, strict=True):
        support[shard] = np.load(path)
    return support


def _in_processes(jobs: Sequence[Job], workers: int) -> Iterator[np.ndarray]:
    """Yield the support of each job, in order."""
    if workers <= 1 or len(jobs) <= 1:
        yield from map(shard_support, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(shard_support, jobs)


def shard_support(job: Job) -> np.ndarray:
    """Return (M,) int32 support of a shard's rows; a picture that cannot be read has none and gives none."""
    rows, candidates, settings = job
    features = lru_cache(maxsize=512)(partial(_features_of, rows, settings))
    agreed: dict[tuple[int, int], bool] = {}

    def agree(a: int, b: int) -> bool:
        pair = (min(a, b), max(a, b))
        if pair not in agreed:
            first, second = features(pair[0]), features(pair[1])
            found = verify(first, second, model="affine", tolerance_px=settings.tolerance_px)
            agreed[pair] = found.inliers >= settings.min_inliers
        return agreed[pair]

    support = np.zeros(len(rows), np.int32)
    for row, others in enumerate(candidates):
        for other in others[others >= 0]:
            support[row] += agree(row, int(other))
            if support[row] >= settings.min_support:
                break
    return support


def _features_of(rows: Manifest, settings: Cleaning, row: int) -> Keypoints:
    try:
        image = decode(rows.read(row))
    except BadImage:
        return NO_KEYPOINTS
    return sift(image, settings.max_px, settings.max_keypoints)


def _renumbered(candidates: np.ndarray, shard: np.ndarray) -> np.ndarray:
    """Return the candidates (M,K) of a shard's rows as positions in the shard: they share its classes."""
    place = np.full(len(candidates) + 1, -1, np.int32)  # the last for -1
    place[shard] = np.arange(len(shard), dtype=np.int32)
    return place[candidates[shard]]


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()
