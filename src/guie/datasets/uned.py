"""UnED (Ypsilantis et al., ICCV 2023): eight data sets of eight domains, trained and searched as one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from guie.datasets.known import Listing, known
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError
from guie.records.tfrecord import TFRecordFile

_SHARD = re.compile(r"(\w+)\.(\w+)\.tfrecord(?:-(\d{5})-of-(\d{5}))?")
_SPLITS_OF = {"train": ("train", "val"), "test": ("test", "index")}
_ROW = ("file", "entry", "label", "class_ids", "domain", "split")


class _Source(NamedTuple):
    """A file that lists pictures of one set and split: a TFRecord shard or an info json."""

    path: Path
    domain: str
    split: str


def uned(
    root: str = "uned", part: Literal["train", "test"] = "train", rules: Rules = None, *, data_root: str
) -> Manifest:
    """Return train and val (`part=train`), or test with its index (`part=test`), of all sets below `root`.

    Two layouts are read: TFRecord shards `<set>.<split>.tfrecord[-00000-of-00010]` in any folders, with
    keys image_bytes, class_id and key; where there is none, `info_files/<set>/<split>.json` with `images/`.
    A split's folder counts before its file's name: `index/met.train.tfrecord` is an index. The small
    copies (small_train, small_index) are left out.

    The domain is the set (cars, sop, inshop, inat, met, gldv2, food2k, rp2k), the label `set/class_id`.
    Of several ids, the label is the first; `class_ids` has all, with blanks between; pictures of an index
    without an id are distractors. Test pictures are split `query` where their set has an index.
    """
    return known("uned", root, data_root, partial(listed, part=part), rules)


def listed(place: Path, part: str = "train") -> Listing:
    """List one part by the records, or by the info files."""
    found = sorted(path for path in place.rglob("*.tfrecord*") if path.is_file())
    sources = [_shard(path) for path in found] or _infos(place)
    _refuse_missing_shards(found)
    wanted = [source for source in sources if source.split in _SPLITS_OF[part]]
    if not wanted:
        raise UserError(
            f"{place}: no {' or '.join(_SPLITS_OF[part])} of any set; accepted: files of part={part}"
        )
    indexed = {source.domain for source in wanted if source.split == "index"}
    columns: dict[str, list[str | None]] = {name: [] for name in _ROW}
    for source in wanted:
        split = "query" if source.split == "test" and source.domain in indexed else source.split
        for file, entry, ids in _pictures(place, source):
            label = f"{source.domain}/{ids[0]}" if ids else "distractor"
            row = (file, entry, label, " ".join(map(str, ids)), source.domain, split)
            for name, value in zip(_ROW, row, strict=True):
                columns[name].append(value)
    skipped = sorted(source.path.name for source in sources if source.split.startswith("small"))
    return Listing(
        columns, notes=[f"left out, as small copies of others: {', '.join(skipped)}"] if skipped else []
    )


def _shard(path: Path) -> _Source:
    found = _SHARD.fullmatch(path.name)
    if not found:
        raise UserError(
            f"{path}: a name without set and split; accepted: names like sop.test.tfrecord or "
            "sop.train.tfrecord-00000-of-00005"
        )
    folder = _split(path.parent.name)
    return _Source(path, found[1], folder or _split(found[2]) or _unknown(path, found[2]))


def _infos(place: Path) -> list[_Source]:
    found = sorted(place.glob("info_files/*/*.json"))
    if not found:
        raise UserError(
            f"{place}: no <set>.<split>.tfrecord and no info_files/<set>/<split>.json; accepted: either"
        )
    return [_Source(path, path.parent.name, _split(path.stem) or _unknown(path, path.stem)) for path in found]


def _split(name: str) -> str | None:
    """Return the split of a folder or file: gldv2 has train_clean and val_train, met has small_train."""
    return next((key for key in ("small", "train", "val", "test", "index") if name.startswith(key)), None)


def _unknown(path: Path, split: str) -> str:
    raise UserError(
        f"{path}: split {split!r}; accepted: train, val, test, index (or small_train, small_index)"
    )


def _refuse_missing_shards(paths: Sequence[Path]) -> None:
    have = set(paths)
    for path in paths:
        found = _SHARD.fullmatch(path.name)
        if found and found[4]:
            stem = path.name[: -len("-00000-of-00000")]
            for number in range(int(found[4])):
                other = path.with_name(f"{stem}-{number:05d}-of-{found[4]}")
                if other not in have:
                    raise UserError(
                        f"{other}: missing; accepted: all {int(found[4])} shards (download it again)"
                    )


def _pictures(place: Path, source: _Source) -> Iterator[tuple[str, str | None, list[int]]]:
    """Yield (file relative to `place`, record number or None, class ids) of each picture."""
    if source.path.suffix == ".json":
        for number, item in enumerate(_items(source.path)):
            try:
                file, given = f"images/{item['path']}", item["class_id"]
            except (KeyError, TypeError):
                raise UserError(
                    f"{source.path}: item {number}: {str(item)[:80]}; accepted: path and class_id"
                ) from None
            yield file, None, _ids(given, source, f"item {number}")
    else:
        file = source.path.relative_to(place).as_posix()
        for number, features in enumerate(TFRecordFile(source.path)):
            yield file, str(number), _ids(features.get("class_id"), source, f"record {number}")


def _items(path: Path) -> list[Any]:
    try:
        items = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}; accepted: the complete JSON file (download it again)") from None
    if not isinstance(items, list):
        raise UserError(f"{path}: a JSON {type(items).__name__}; accepted: a list of path and class_id")
    return items


def _ids(given: Any, source: _Source, where: str) -> list[int]:
    """Return the class ids from 0 of one picture; only an index may have none."""
    values = given if isinstance(given, list) else [given]
    ids = [value for value in values if isinstance(value, int) and value >= 0]
    if not ids and source.split != "index":
        raise UserError(f"{source.path}: {where}: class_id {given}; accepted: one number from 0 or several")
    return ids
