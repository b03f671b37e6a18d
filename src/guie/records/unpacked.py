"""A gzip file's content, mapped from an unnamed temporary file: random access to what has none."""

from __future__ import annotations

import gzip
import mmap
import shutil
import tempfile
import zlib
from typing import IO

DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


def unpacked(file: IO[bytes]) -> mmap.mmap | bytes:
    """Return the content of an open gzip file; raises one of DAMAGED."""
    with tempfile.TemporaryFile() as plain:
        with gzip.open(file) as packed:
            shutil.copyfileobj(packed, plain, 1 << 20)
        plain.flush()
        return mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ) if plain.tell() else b""
