"""Folders of pictures whose names alone say what they show."""

from __future__ import annotations

import os
import re
from pathlib import Path

from guie.datasets.folder import PICTURES
from guie.errors import UserError


def picture_names(folder: Path) -> list[str]:
    """Return the names of the pictures directly in `folder`, sorted; UserError where there is none."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.lower().endswith(PICTURES))
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}; accepted: the complete download, unpacked, at {folder.parent}"
        ) from None
    # the second file that some archivers of Apple computers put beside each one
    names = [name for name in names if not name.startswith("._")]
    if not names:
        raise UserError(f"{folder}: no picture; accepted: {', '.join(PICTURES)}")
    return names


def number_in(folder: Path, name: str, pattern: str, example: str) -> int:
    """Return the number that group 1 of the regular expression `pattern` finds in all of `name`.

    Raises:
        UserError: the name has another form; it shows the file and the `example` that is accepted.

    """
    found = re.fullmatch(pattern, name)
    if not found:
        raise UserError(f"{folder / name}: a name without its number; accepted: names like {example}")
    return int(found[1])
