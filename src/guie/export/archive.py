"""What torch's own files (TorchScript, .pt2) say of themselves: zip archives, handled without torch."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

METADATA = "guie.json"
# Members above this need the larger form of an archive.
LARGE_BYTES = 1 << 31


def read_facts(path: Path) -> dict[str, Any]:
    """Return what was written into the file; OSError or ValueError where nothing was."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((name for name in archive.namelist() if name.endswith(f"/{METADATA}")), None)
            if member is None:
                raise ValueError(f"no {METADATA} inside")
            return json.loads(archive.read(member))
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error


def damage(path: Path) -> str | None:
    """Return what is damaged, None where every checksum holds: torch loads a flipped byte silently."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        return str(error)


def rewrite(path: Path, replaced: Callable[[zipfile.ZipFile, zipfile.ZipInfo], str | bytes | None]) -> None:
    """Write an archive again: a member becomes what `replaced` gives; None leaves it, "" leaves it out."""
    smaller = path.with_name(f"{path.name}.smaller")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(smaller, "w") as once:
        for entry in whole.infolist():
            content = replaced(whole, entry)
            if content is None:
                large = entry.file_size > LARGE_BYTES
                with whole.open(entry) as read, once.open(entry.filename, "w", force_zip64=large) as write:
                    shutil.copyfileobj(read, write)
            elif content:
                once.writestr(entry.filename, content)
    os.replace(smaller, path)
