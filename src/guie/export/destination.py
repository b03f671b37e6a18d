"""Where an exported file may go, judged before the heavy work begins. No torch here: it answers at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from guie.durable import sync
from guie.errors import UserError


def check_destination(path: str | Path, *, overwrite: bool = False, need_bytes: int = 0) -> Path:
    """Return the absolute path to write to.

    Raises UserError when its folder is missing, cannot be written or has less than `need_bytes` free,
    when `path` is a folder, or when it exists and `overwrite` is false.
    """
    target = Path(path).expanduser().absolute()
    if target.is_dir():
        raise UserError(f"pt: {path} is a folder; accepted: the name of a file, such as {path}/model.pt")
    if target.exists() and not overwrite:
        raise UserError(f"pt: {path} exists; choose another name or say overwrite=true")
    check_place(target, need_bytes=need_bytes)
    return target


def check_beside(weights: Path | None, own: Container[str]) -> None:
    """Raise UserError where a file's weights would replace what is not among its `own` parts, by name."""
    if weights is not None and weights.exists() and weights.name not in own:
        raise UserError(f"pt: its weights go to {weights}, which exists; accepted: another name")


def check_place(target: Path, *, need_bytes: int = 0, key: str = "pt") -> None:
    """Raise UserError where nothing can be written beside `target`, or not `need_bytes`."""
    if not target.parent.is_dir():
        raise UserError(
            f"{key}: the folder {target.parent} does not exist; accepted: one in an existing folder"
        )
    _check_writable(target, key)
    free = shutil.disk_usage(target.parent).free
    if free < need_bytes:
        have, need = f"{free / 1e6:.0f} MB", f"{need_bytes / 1e6:.0f} MB"
        raise UserError(f"{key}: {target.parent} has {have} free; the export needs about {need}")


def _check_writable(target: Path, key: str) -> None:
    """Try it with a real file: permission bits say nothing about read-only mounts or the superuser."""
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{key}: cannot write {target}: {reason}; accepted: a folder you may write to"
        ) from error


@contextmanager
def staging(target: Path, key: str = "pt") -> Iterator[Path]:
    """Yield an empty folder beside `target`, on the same file system; gone afterwards, whatever happened.

    Disk trouble while it is filled becomes a UserError; nothing in place has been touched by then.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
    except OSError as error:
        raise UserError(
            f"{key}: writing {target} failed: {error.strerror or error}; nothing was replaced"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_in_place(source: Path, target: Path) -> None:
    """Make `source` durable, then give it its name in one step: a reader sees the old file or the new one."""
    sync(source)
    os.replace(source, target)
    # Some file systems cannot open or sync a folder; the rename is atomic there all the same.
    with suppress(OSError):
        sync(target.parent)
