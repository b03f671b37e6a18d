"""Every picture of a manifest read once, in parallel and in shards, so that a killed job goes on.

A shard is 1,024 rows; what was measured lies in a file whose name holds a digest of the rows' places and of
the size and time of the files behind them. A job therefore takes up what still holds, whoever left it, and
reads again what changed.

Processes, not threads: besides decoding, which lets go of the interpreter, a picture costs 55 us that do
not (1 core of an AMD EPYC), a quarter of what a picture of 7 kB takes in all: threads would stop gaining
at about four cores. Spawned, because a fork of a process with Arrow's threads may hang.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from guie.datasets.manifest import Manifest
from guie.durable import replace_file
from guie.errors import UserError
from guie.images import BadImage
from guie.prepare.measure import GRID, SHA_BYTES, measure, perceptual_hashes
from guie.records.pictures import Pictures

SHARD_ROWS = 1024
_FORMAT = 1  # part of a shard's digest: raise it when what is measured changes

Notice = Callable[[str, int, int], None]


@dataclass
class Facts:
    """What was measured of N pictures.

    `width`, `height` (N,) int32 pixels as shown; `sha256` (N,32) uint8; `phash` (N,) uint64, where
    `structured` (N,) bool; `reasons`: row to why it cannot be used (its other values are zero).
    """

    width: np.ndarray
    height: np.ndarray
    sha256: np.ndarray
    phash: np.ndarray
    structured: np.ndarray
    reasons: dict[int, str]

    def of(self, rows: np.ndarray) -> Facts:
        """Return the facts of some rows (M,), all of them good."""
        sizes = (self.width[rows], self.height[rows])
        return Facts(*sizes, self.sha256[rows], self.phash[rows], self.structured[rows], {})


class Shard(NamedTuple):
    """Rows `start` to `stop` of a manifest, and the file for what is measured of them."""

    start: int
    stop: int
    path: Path


class Task(NamedTuple):
    """A shard as its process needs it."""

    shard: Shard
    places: list[tuple[str, str | None]]


def examined(
    manifest: Manifest, folder: Path, *, workers: int, max_bad_share: float, notice: Notice
) -> Facts:
    """Return the facts of all rows; shards lie in `folder`, where a job that was killed left some.

    Raises:
        UserError: more than `max_bad_share` of the pictures cannot be used (they are listed beside the
            shards), files changed meanwhile, or a process was killed.

    """
    shards = planned(manifest, folder, notice, max_bad_share)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in shards if not shard.path.exists()]
    done = sum(shard.stop - shard.start for shard in shards) - sum(s.stop - s.start for s in missing)
    what = f"reading {manifest.name}" + (" (going on)" if done else "")
    notice(what, 0, 0)
    num_bad = 0
    with closing(_measured(manifest, missing, workers)) as results:
        for shard, bad in results:
            done += shard.stop - shard.start
            num_bad += bad
            notice(what, done, len(manifest))
            if num_bad > max_bad_share * len(manifest):
                break
    finished = [shard for shard in shards if shard.path.exists()]
    facts = _joined(finished)
    _refuse_bad(manifest, facts, folder.parent / "bad_images.csv", max_bad_share)
    _refuse_changed(manifest, shards, planned(manifest, folder, notice))
    return facts


def planned(manifest: Manifest, folder: Path, notice: Notice, max_bad_share: float = 1.0) -> list[Shard]:
    """Return all shards under their names; UserError where too many files are missing."""
    shards, root, missing, first = [], str(manifest.root), 0, ""
    for start in range(0, len(manifest), SHARD_ROWS):
        places = _places(manifest, start, min(start + SHARD_ROWS, len(manifest)))
        states = {file: _state(os.path.join(root, file)) for file, _ in places}
        gone = [file for file, _ in places if states[file] is None]
        missing, first = missing + len(gone), first or (gone[0] if gone else "")
        digest = hashlib.blake2b(repr((_FORMAT, places, states)).encode(), digest_size=12).hexdigest()
        notice("looking at the files", start + len(places), len(manifest))
        shards.append(Shard(start, start + len(places), folder / f"{start:010d}-{digest}.npz"))
    if missing > max_bad_share * len(manifest):
        raise UserError(
            f"raw: {missing:,} of {len(manifest):,} pictures are not there (the first is "
            f"{manifest.root / first}); accepted: the complete download, or at most {max_bad_share:.1%} "
            "missing (max_bad_share)"
        )
    return shards


def list_bad(path: Path, manifest: Manifest, reasons: dict[int, str]) -> None:
    """Write the rows that cannot be used as file, entry, reason, in the manifest's order."""
    import csv

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", "entry", "reason"])
    for row in sorted(reasons):
        file, entry = manifest.place(row)
        writer.writerow([file, entry or "", reasons[row]])
    replace_file(path, text.getvalue().encode())


def measure_shard(task: Task, pictures: Pictures) -> tuple[Shard, int]:
    """Write the shard's file; return the shard and how many of its pictures are bad."""
    count = len(task.places)
    sizes, shas = np.zeros((2, count), np.int32), np.zeros((count, SHA_BYTES), np.uint8)
    greys, reasons = np.zeros((count, GRID, GRID), np.float32), {}
    for row, place in enumerate(task.places):
        try:
            found = measure(pictures.read(*place))
        except BadImage as error:
            reasons[row] = str(error)
            continue
        sizes[:, row] = found.width, found.height
        shas[row], greys[row] = np.frombuffer(found.sha256, np.uint8), found.grey
    hashes, structured = perceptual_hashes(greys)
    file = io.BytesIO()
    bad = (np.array(list(reasons), np.int64), np.array(list(reasons.values()), dtype=str))
    arrays = {"width": sizes[0], "height": sizes[1], "sha256": shas, "phash": hashes}
    np.savez(file, structured=structured, bad_rows=bad[0], bad_reasons=bad[1], **arrays)
    replace_file(task.shard.path, file.getvalue())
    return task.shard, len(reasons)


def _measured(
    manifest: Manifest, shards: list[Shard], workers: int
) -> Generator[tuple[Shard, int], None, None]:
    """Yield each shard when its file is written, with the number of bad pictures."""
    tasks = (Task(shard, _places(manifest, shard.start, shard.stop)) for shard in shards)
    if min(workers, len(shards)) <= 1:
        pictures = Pictures(manifest.root)
        yield from (measure_shard(task, pictures) for task in tasks)
        return
    import multiprocessing

    pool = ProcessPoolExecutor(
        min(workers, len(shards)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(str(manifest.root),),
    )
    waiting: set[Future] = set()
    try:
        for task in tasks:
            waiting.add(pool.submit(_measure_in_worker, task))
            if len(waiting) >= 2 * workers:  # the places of 10^7 pictures are not sent at once
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise UserError(
            f"workers: {workers}, and one of them was killed (out of memory?); accepted: the same command "
            "again, it goes on; or fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_in_worker: dict[str, Pictures] = {}


def _begin_worker(root: str) -> None:
    import multiprocessing
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    _in_worker["pictures"] = Pictures(root)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: object) -> None:
    """Wait for the parent's end: a worker whose parent was killed would wait for tasks for ever."""
    parent.join()  # type: ignore[attr-defined]
    os._exit(1)


def _measure_in_worker(task: Task) -> tuple[Shard, int]:
    return measure_shard(task, _in_worker["pictures"])


def _places(manifest: Manifest, start: int, stop: int) -> list[tuple[str, str | None]]:
    part = manifest.table.select(["file", "entry"]).slice(start, stop - start)
    return list(zip(part["file"].to_pylist(), part["entry"].to_pylist(), strict=True))


def _state(path: str) -> tuple[int, int] | None:
    """Return size and time of a file, None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _joined(shards: list[Shard]) -> Facts:
    """Read the shards' files, one behind the other; rows of shards that are missing are left out."""
    parts: list[dict[str, np.ndarray]] = []
    reasons: dict[int, str] = {}
    for shard in shards:
        try:
            with shard.path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                part = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            shard.path.unlink(missing_ok=True)
            raise UserError(
                f"{shard.path}: damaged ({error}) and removed; accepted: the same command again, it goes on"
            ) from None
        rows, texts = part.pop("bad_rows").tolist(), part.pop("bad_reasons").tolist()
        reasons |= {shard.start + row: text for row, text in zip(rows, texts, strict=True)}
        parts.append(part)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Facts(**joined, reasons=reasons)


def _refuse_bad(manifest: Manifest, facts: Facts, path: Path, max_bad_share: float) -> None:
    num_bad = len(facts.reasons)
    if num_bad <= max_bad_share * len(manifest):
        return
    list_bad(path, manifest, facts.reasons)
    first = min(facts.reasons)
    file, entry = manifest.place(first)
    place = file if entry is None else f"{file}[{entry}]"
    read = len(facts.width)
    raise UserError(
        f"bad_images: {num_bad:,} of {read:,} pictures read ({num_bad / read:.1%}) cannot be used, listed in "
        f"{path}; the first is {place} ({facts.reasons[first]}); accepted: at most {max_bad_share:.1%} of "
        f"all {len(manifest):,} (max_bad_share)"
    )


def _refuse_changed(manifest: Manifest, begun: list[Shard], ended: list[Shard]) -> None:
    """Compare the shards' names as the job began and as it ended: another name is another file behind it."""
    for before, now in zip(begun, ended, strict=True):
        if before.path != now.path:
            places = _places(manifest, before.start, before.stop)
            first, last = manifest.root / places[0][0], manifest.root / places[-1][0]
            raise UserError(
                f"raw: a file changed while it was read (among rows {before.start:,} to {before.stop - 1:,}: "
                f"{first} to {last}); accepted: the same command again when it is at rest"
            )
