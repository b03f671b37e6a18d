"""TFRecord shards of tf.train.Example: the pictures stay inside, the labels are read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from guie.datasets import shards
from guie.datasets.manifest import Manifest
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
    base = Path(data_root).expanduser()
    root, files = shards.found("dataset.tfrecord.pattern", pattern, base, "shards")
    settings = (label_key, domain, split, test_classes, seed)

    def read() -> shards.Columns:
        return shards.completed(records(root, files, label_key), domain, split, test_classes, seed)

    return apply(rules, shards.listed_once("tfrecord", root, files, base, settings, read))


def records(root: Path, files: list[Path], label_key: str | None = None) -> dict[str, list[str]]:
    """Return columns file (relative to `root`), entry (record number) and label of all records of `files`.

    A label is under `label_key`, else under the first of LABEL_KEYS that the record has.

    Raises:
        UserError: a record without a label, a shard that is cut short.

    """
    columns: dict[str, list[str]] = {"file": [], "entry": [], "label": []}
    for shard in files:
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
    files = sorted(place.glob("*-train-*.tfrec"))
    columns = records(place, files, "image/class/label")
    found = Counter(columns["file"])
    for shard in files:
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
