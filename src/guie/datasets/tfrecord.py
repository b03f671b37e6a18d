"""TFRecord shards of tf.train.Example: the pictures stay inside, the labels are read once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from guie.datasets.folder import held_out
from guie.datasets.manifest import Manifest, from_columns, open_manifest
from guie.datasets.rules import Rules, apply
from guie.errors import UserError
from guie.records.tfrecord import TFRecordFile

LABEL_KEYS = ("image/class/label", "class_id", "label")


def tfrecord(  # noqa: PLR0913  (the keys of configs/dataset/tfrecord.yaml)
    pattern: str,
    domain: str = "",
    split: Literal["auto", "train", "val", "test", "query", "index"] = "auto",
    label_key: str | None = None,
    test_classes: float = 0.2,
    seed: int = 0,
    rules: Rules = None,
    *,
    data_root: str,
) -> Manifest:
    """Return the records of the shards that the glob `pattern` finds, below `data_root` or absolute.

    A record's label is under `label_key`, else under the first of image/class/label, class_id, label that
    it has. `split=auto` holds a share `test_classes` of the labels out as split `test`. The labels are
    read once; the list is kept in `data_root/.guie`, keyed by the shards' names, sizes and times; `rules` act
    on what is opened.

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
        columns = records(root, shards, label_key)
        columns["domain"] = [domain] * len(columns["label"])
        columns["split"] = _splits(columns["label"], split, test_classes, seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        from_columns(root.name, root, columns).write(kept)
    return apply(rules, open_manifest(kept, root, root.name, cache_dir=kept.parent))


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


def records(root: Path, shards: list[Path], label_key: str | None = None) -> dict[str, list[str]]:
    """Return columns file (relative to `root`), entry (record number) and label of all records of `shards`.

    A label is under `label_key`, else under the first of LABEL_KEYS that the record has.

    Raises:
        UserError: a record without a label, a shard that is cut short.

    """
    columns: dict[str, list[str]] = {"file": [], "entry": [], "label": []}
    for shard in shards:
        labels = list(_labels(shard, label_key))
        columns["file"] += [shard.relative_to(root).as_posix()] * len(labels)
        columns["entry"] += [str(number) for number in range(len(labels))]
        columns["label"] += labels
    return columns


def guie_records(place: Path, labels: range) -> dict[str, list[str]]:
    """Return `records` of the shards `*-train-*.tfrec` in `place`: the sets made for GUIE (motono0223).

    Their names end in the number of records (`guie-products10k-train-00-7097.tfrec`), and each set has its
    own `labels`. Without any such shard the columns are empty.

    Raises:
        UserError: a shard with another number of records, or a label outside `labels`.

    """
    shards = sorted(place.glob("*-train-*.tfrec"))
    columns = records(place, shards, "image/class/label")
    found = Counter(columns["file"])
    for shard in shards:
        stated = shard.stem.rsplit("-", 1)[-1]
        if stated.isdecimal() and found[shard.name] != int(stated):
            raise UserError(
                f"{shard}: {found[shard.name]} records; accepted: {stated}, as its name says (cut short?)"
            )
    for file, entry, label in zip(columns["file"], columns["entry"], columns["label"], strict=True):
        if int(label) not in labels:
            raise UserError(
                f"{place / file}: record {entry} has label {label}; "
                f"accepted: {labels[0]}..{labels[-1]} (another data set's shard?)"
            )
    return columns


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


def _splits(labels: list[str], split: str, test_classes: float, seed: int) -> list[str]:
    unseen = held_out(labels, test_classes, seed) if split == "auto" else set()
    other = "train" if split == "auto" else split
    return ["test" if label in unseen else other for label in labels]
