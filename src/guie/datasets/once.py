"""A folder that is made once, appears whole or not at all, and is not made twice at the same time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def made_once(folder: Path, last: str, make: Callable[[Path], None]) -> Path:
    """Return `folder`; where its file `last` is missing, `make` fills a new folder that then takes its name.

    Other processes (ranks) wait meanwhile. What a killed maker left behind is removed.
    """
    if (folder / last).exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if (folder / last).exists():
            return folder
        partial = folder.parent / f".{folder.name}.partial"
        for unfinished in (partial, folder):
            shutil.rmtree(unfinished, ignore_errors=True)
        partial.mkdir()
        try:
            make(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
