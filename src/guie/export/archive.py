"""What torch's own files (TorchScript, .pt2) say of themselves: zip archives, read without torch."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

METADATA = "guie.json"


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
