"""Files of many records, found by a pattern and listed once: what TFRecord and tar sets share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from guie.datasets.folder import held_out
from guie.datasets.manifest import Manifest, from_columns, open_manifest
from guie.errors import UserError

Columns = dict[str, list[str]]


def found(key: str, pattern: str, base: Path, accepted: str) -> tuple[Path, list[Path]]:
    """Return the deepest folder of `pattern` without a wildcard, and the files that it finds, sorted.

    Raises UserError where there is none: `key` is the config key, `accepted` what it takes.
    """
    parts = (base / Path(pattern).expanduser()).parts
    wild = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts) - 1)
    root = Path(*parts[:wild])
    files = sorted(path for path in root.glob("/".join(parts[wild:])) if path.is_file())
    if not files:
        raise UserError(f"{key}: nothing at {Path(*parts)}; accepted: a glob pattern of {accepted}")
    return root, files


def listed_once(
    kind: str, root: Path, files: list[Path], base: Path, settings: tuple, read: Callable[[], Columns]
) -> Manifest:
    """Return the manifest of `read()`, kept in `base/.guie` by settings and the files' state."""
    seen = [(path.relative_to(root).as_posix(), path.stat()) for path in files]
    state = repr(((*settings, str(root)), [(name, stat.st_size, stat.st_mtime_ns) for name, stat in seen]))
    kept = base / ".guie" / f"{kind}-{hashlib.sha256(state.encode()).hexdigest()[:16]}.parquet"
    if not kept.exists():
        columns = read()
        kept.parent.mkdir(parents=True, exist_ok=True)
        from_columns(root.name, root, columns).write(kept)
    return open_manifest(kept, root, root.name, cache_dir=kept.parent)


def completed(columns: Columns, domain: str, split: str, test_classes: float, seed: int) -> Columns:
    """Return `columns` with domain and split; `auto` holds a share of the labels out as test."""
    labels = columns["label"]
    unseen = held_out(labels, test_classes, seed) if split == "auto" else set()
    other = "train" if split == "auto" else split
    splits = ["test" if label in unseen else other for label in labels]
    return {**columns, "domain": [domain] * len(labels), "split": splits}
