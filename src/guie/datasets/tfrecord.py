"""TFRecord shards of tf.train.Example: the pictures stay inside, the labels are read once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from guie.datasets.folder import held_out
from guie.datasets.manifest import Manifest, from_columns, open_manifest
from guie.errors import UserError
from guie.records.tfrecord import TFRecordFile

LABEL_KEYS = ("image/class/label", "class_id", "label")


def tfrecord(
    pattern: str,
    domain: str = "",
    split: Literal["auto", "train", "val", "test", "query", "index"] = "auto",
    label_key: str | None = None,
    test_classes: float = 0.2,
    seed: int = 0,
    *,
    data_root: str,
) -> Manifest:
    """Return the records of the shards that the glob `pattern` finds, below `data_root` or absolute.

    A record's label is under `label_key`, else under the first of image/class/label, class_id, label that
    it has. `split=auto` holds a share `test_classes` of the labels out as split `test`. The labels are
    read once; the list is kept in `data_root/.guie`, keyed by the shards' names, sizes and times.

    Raises:
        UserError: no shard found, a record without a label, a shard that is cut short.

    """
    root, shards = _shards(pattern, Path(data_root).expanduser())
    seen = [(shard.relative_to(root).as_posix(), shard.stat()) for shard in shards]
    settings = (label_key, domain, split, test_classes, seed, str(root))
    state = repr((settings, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in seen]))
    kept = (
        Path(data_root).expanduser()
        / ".guie"
        / f"tfrecord-{hashlib.sha256(state.encode()).hexdigest()[:16]}.parquet"
    )
    if not kept.exists():
        manifest = _read(root, shards, label_key, domain)
        kept.parent.mkdir(parents=True, exist_ok=True)
        _with_splits(manifest, split, test_classes, seed).write(kept)
    return open_manifest(kept, root, root.name, cache_dir=kept.parent)


def _shards(pattern: str, base: Path) -> tuple[Path, list[Path]]:
    """Return the deepest folder without a wildcard, and the shards below it, sorted."""
    parts = (base / Path(pattern).expanduser()).parts
    wild = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts) - 1)
    root = Path(*parts[:wild])
    found = sorted(path for path in root.glob("/".join(parts[wild:])) if path.is_file())
    if not found:
        raise UserError(
            f"dataset.tfrecord.pattern: nothing at {Path(*parts)}; accepted: a glob pattern of shards"
        )
    return root, found


def _read(root: Path, shards: list[Path], label_key: str | None, domain: str) -> Manifest:
    names: list[str] = []
    entries: list[str] = []
    labels: list[str] = []
    for shard in shards:
        name = shard.relative_to(root).as_posix()
        for number, label in enumerate(_labels(shard, label_key)):
            names.append(name)
            entries.append(str(number))
            labels.append(label)
    columns = {"file": names, "entry": entries, "label": labels, "domain": [domain] * len(names)}
    return from_columns(root.name, root, columns)


def _labels(shard: Path, label_key: str | None) -> Iterator[str]:
    keys = (label_key,) if label_key else LABEL_KEYS
    for number, features in enumerate(TFRecordFile(shard)):
        values = next((features[key] for key in keys if features.get(key)), None)
        if values is None:
            raise UserError(
                f"{shard}: record {number} has keys {sorted(features)}; "
                f"accepted: a label in {' or '.join(keys)}"
            )
        value = values[0]
        yield value.decode() if isinstance(value, bytes) else str(value)


def _with_splits(manifest: Manifest, split: str, test_classes: float, seed: int) -> Manifest:
    table = manifest.table
    labels = table["label"].to_pylist()
    unseen = held_out(labels, test_classes, seed) if split == "auto" else set()
    other = "train" if split == "auto" else split
    columns = {name: table[name] for name in ("file", "entry", "label", "domain")}
    columns["split"] = ["test" if label in unseen else other for label in labels]
    return from_columns(manifest.name, manifest.root, columns)
