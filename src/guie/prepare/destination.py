"""Where a prepared folder appears: whole, under its name, and never among the raw files.

Beside OUT, `.OUT.preparing` holds the unfinished work: shards to go on from, and what becomes the folder.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from guie.durable import sync
from guie.errors import UserError

MARK = "prepared.json"  # tells a prepared folder from any other


class Workplace:
    """The folder of unfinished work, locked for this process; `finished` becomes the prepared folder."""

    def __init__(self, out: Path):
        self.out = out
        self.folder = out.with_name(f".{out.name}.preparing")
        self.shards = self.folder / "shards"
        self.finished = self.folder / "finished"
        self.replaced = self.folder / "replaced"
        self.published = False

    def clear(self) -> None:
        """Remove what a killed job was about to publish; give back what it was about to replace."""
        shutil.rmtree(self.finished, ignore_errors=True)
        if self.replaced.exists() and not self.out.exists():
            self.replaced.rename(self.out)
        shutil.rmtree(self.replaced, ignore_errors=True)

    def publish(self) -> None:
        """Give `finished` its name, in the place of an older one."""
        for path in self.finished.iterdir():
            sync(path)
        sync(self.finished)
        if self.out.exists():
            self.out.rename(self.replaced)
        self.finished.rename(self.out)
        self.published = True
        sync(self.out.parent)


@contextmanager
def opened(out: Path, *, overwrite: bool) -> Iterator[Workplace]:
    """Hold the work on `out`; afterwards nothing is left of it but shards that a next time can use.

    Raises:
        UserError: `out` exists and may not be replaced, cannot be written, or another process works on it.

    """
    _refuse_existing(out, overwrite)
    work = Workplace(out)
    try:
        work.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: cannot write {out} ({error.strerror}); accepted: a writable folder") from None
    try:
        with FileLock(work.folder / "lock", timeout=0):
            work.clear()
            try:
                yield work
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise UserError(
                    f"out: {error.strerror} while writing {out}; what was read is kept; accepted: the same "
                    "command again where there is room"
                ) from None
            finally:
                if work.published or not work.shards.is_dir():
                    shutil.rmtree(work.folder, ignore_errors=True)
    except Timeout:
        raise UserError(
            f"out: another process prepares {out} now; accepted: a folder that no other process writes"
        ) from None


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"out: {out} is a file; accepted: a folder that is new or empty")
    if (out / MARK).exists():
        if not overwrite:
            raise UserError(
                f"out: {out} holds a prepared data set; accepted: a new folder, or overwrite=true"
            )
        return
    others = sorted(child.name for child in out.iterdir())
    if others:
        raise UserError(
            f"out: {out} is not a prepared folder (it holds {', '.join(others[:3])}); accepted: a new or "
            "empty folder"
        )


def refuse_inside(out: Path, raw: Path) -> None:
    """Refuse to write at or below the raw files; UserError."""
    if out.resolve().is_relative_to(raw.resolve()):
        raise UserError(
            f"out: {out} lies among the raw files of {raw}, which are only read; accepted: a folder elsewhere"
        )


def ground(place: Path) -> Path:
    """Return the folder of a raw place: of a glob pattern the part without wildcards."""
    wild = next((i for i, part in enumerate(place.parts) if any(c in part for c in "*?[{")), None)
    return place if wild is None or place.exists() else Path(*place.parts[:wild])
