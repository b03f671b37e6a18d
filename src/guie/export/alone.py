"""Run a script of this folder in a process of its own, where neither guie nor a checkout of it is found."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run_alone(script: Path, *arguments: str, offline: bool = False, timeout_s: float | None = None) -> Any:
    """Return what became of `python -I -S script arguments... FOLDERS`, its output as text.

    FOLDERs are where installed packages live; `offline` in a network of its own, where the system lets it.
    Raises subprocess.TimeoutExpired.
    """
    command = [sys.executable, "-I", "-S", str(script), *arguments, *package_folders()]
    if offline and own_network():
        command = ["unshare", "-rn", *command]
    with tempfile.TemporaryDirectory() as elsewhere:
        return subprocess.run(
            command, cwd=elsewhere, capture_output=True, text=True, check=False, timeout=timeout_s
        )


@functools.cache
def own_network() -> bool:
    """Return whether this system lets a process have a network of its own, with nobody in it."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0


def last_words(done: Any) -> str:
    """Return the last line of what a process that failed said."""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def package_folders() -> list[str]:
    """Return where installed packages live; a checkout of the project is not among them."""
    folders = (Path(entry) for entry in sys.path if entry)
    return [str(folder) for folder in folders if folder.name in ("site-packages", "dist-packages")]
