"""What was found of pictures and of pairs of them, on disk: by their bytes, not by their names.

One file per picture, one per query with all that it was compared with: each appears whole or not at all, so
a job that was killed goes on, and jobs side by side may share a folder (the last to write a query stays).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from guie.durable import replace_file
from guie.local.matchers import Features

FORMAT = 1  # one more where the same settings find something else: then nothing older is taken
KEY_BYTES = 16
_PAIR = np.dtype([("item", f"V{KEY_BYTES}"), ("inliers", "<i4")])

_WRITING = [Lock() for _ in range(64)]  # threads of one process would take the same name for a new file


def key_of(data: bytes) -> bytes:
    """Return the key of a picture's bytes."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


class Cache:
    """Features and inliers below `folder` (None: nothing is kept), each by the settings that made them."""

    def __init__(self, folder: Path | None, describing: Mapping[str, Any], comparing: Mapping[str, Any]):
        self._features = folder and folder / f"features-{_digest(describing)}"
        self._pairs = folder and folder / f"pairs-{_digest({**describing, **comparing})}"

    def features(self, key: bytes) -> Features | None:
        """Return what is kept of a picture; None where there is nothing, or nothing that can be read."""
        try:
            with np.load(io.BytesIO(_place(self._features, key, "npz").read_bytes())) as arrays:
                return dict(arrays)
        except Exception:  # a damaged archive raises nearly everything; it is made anew
            return None

    def keep_features(self, key: bytes, features: Features) -> None:
        """Keep the features of a picture."""
        out = io.BytesIO()
        np.savez(out, **features)  # type: ignore[arg-type]
        _keep(self._features, key, "npz", out.getvalue())

    def inliers(self, query: bytes) -> dict[bytes, int]:
        """Return the inliers of a query with each picture that it was compared with."""
        try:
            found = np.frombuffer(_place(self._pairs, query, "bin").read_bytes(), _PAIR)
        except (OSError, ValueError):
            return {}
        return dict(zip(found["item"].tolist(), found["inliers"].tolist(), strict=True))

    def keep_inliers(self, query: bytes, found: Mapping[bytes, int]) -> None:
        """Keep the inliers of a query in the place of what was kept of it."""
        rows = np.empty(len(found), _PAIR)
        rows["item"] = np.frombuffer(b"".join(found), rows["item"].dtype)
        rows["inliers"] = list(found.values())
        _keep(self._pairs, query, "bin", rows.tobytes())


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True).encode()).hexdigest()[:16]


def _place(folder: Path | None, key: bytes, ending: str) -> Path:
    if folder is None:
        raise FileNotFoundError
    return folder / key.hex()[:2] / f"{key.hex()}.{ending}"


def _keep(folder: Path | None, key: bytes, ending: str, data: bytes) -> None:
    if folder is None:
        return
    path = _place(folder, key, ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _WRITING[key[0] % len(_WRITING)]:
        replace_file(path, data)
