"""Pictures of the page: thumbnails within a budget of bytes, and how much two pictures differ."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

THUMBNAIL_PX = 96
COMPARED_PX = 24
# Neither white nor black drawings on a transparent ground vanish on it.
BEHIND_TRANSPARENT = (150, 150, 150)
# Of all pictures in the page, as text: it stays well under 10 MB.
MOST_CHARACTERS = 7_500_000

# (dataset, file) -> the picture's encoded bytes, or None where there is none.
ReadPicture = Callable[[str, str], bytes | None]


@dataclass
class Album:
    """The pictures that `read` gives; `left_out` counts those beyond the budget."""

    read: ReadPicture | None
    left_out: int = 0
    _spent: int = 0
    _thumbnails: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def thumbnail(self, dataset: str, file: str) -> str | None:
        """Return a picture as a data: address of a small JPEG, None where it cannot be shown."""
        key = dataset, file
        if key not in self._thumbnails:
            self._thumbnails[key] = self._made(dataset, file)
        made = self._thumbnails[key]
        if made and self._spent + len(made) > MOST_CHARACTERS:
            self.left_out += 1
            return None
        self._spent += len(made or "")
        return made

    def _made(self, dataset: str, file: str) -> str | None:
        picture = _decoded(self.read(dataset, file) if self.read else None)
        if picture is None:
            return None
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

    def difference(self, dataset: str, file: str, other: str) -> float | None:
        """Return how much two pictures differ, 0 (same bytes) to 1: mean over pixels of both made small.

        None where either cannot be read.
        """
        if not self.read:
            return None
        both = [self.read(dataset, one) for one in (file, other)]
        if None not in both and len({hashlib.sha256(data or b"").digest() for data in both}) == 1:
            return 0.0
        small = [_small(_decoded(data)) for data in both]
        if small[0] is None or small[1] is None:
            return None
        # Two files that look the same are not the same file.
        return max(1e-6, float(np.abs(small[0] - small[1]).mean()) / 255)


def _decoded(data: bytes | None) -> Any:
    if data is None:
        return None
    from PIL import Image

    from guie.images import BadImage, decode

    try:
        return Image.fromarray(decode(data, background=BEHIND_TRANSPARENT))
    except (BadImage, OSError):
        return None


def _small(picture: Any) -> np.ndarray | None:
    if picture is None:
        return None
    from PIL import Image

    shrunk = picture.resize((COMPARED_PX, COMPARED_PX), Image.Resampling.BOX)
    return np.asarray(shrunk, dtype=np.float32)
