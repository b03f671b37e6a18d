"""Files that appear whole or not at all, and are on the disk when the call returns."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Give `path` new content in one step: a reader, or a crash, sees the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        write_durably(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_folder(made: Path, target: Path, former: Path) -> None:
    """Give the folder `made`, once it is on the disk, the name `target`.

    What has that name goes to `former`, a free name on the same file system, and from there for good; where
    the new one cannot have it, it is put back.
    """
    for path in (*made.iterdir(), made):
        sync(path)
    there = target.exists()
    if there:
        target.replace(former)
    try:
        made.replace(target)
    except OSError:
        if there:
            former.replace(target)
        raise
    sync(target.parent)
    shutil.rmtree(former, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
