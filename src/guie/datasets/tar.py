"""Tar archives in the layout of webdataset: a picture, and what it shows in a member of the same key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from guie.datasets import shards
from guie.datasets.folder import PICTURES
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules, apply
from guie.errors import UserError
from guie.records.tar import TAR_ENDS, Member, TarArchive

_LABEL_KEY = "label"


def tar(  # noqa: PLR0913  (the keys of configs/dataset/tar.yaml)
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
    """Return the pictures of the archives (plain or gzip) that the glob `pattern` finds, below `data_root`.

    Members of one picture have one key, their name up to the first dot, and stand together:
    `shop/0001.jpg`, `shop/0001.cls`. The label is the text of `.cls`, else `label` of `.json`; with
    `label_key`, that key of `.json`. `split=auto` holds a share `test_classes` of the labels out as split
    `test`. The archives are read once; the list is kept in `data_root/.guie`, keyed by their names, sizes
    and times; `rules` act on what is opened.

    Raises:
        UserError: no archive found, one that is damaged or unsafe, a picture without a label.

    """
    base = Path(data_root).expanduser()
    root, archives = _archives(pattern, base)
    settings = (label_key, domain, split, test_classes, seed)

    def read() -> shards.Columns:
        return shards.completed(pictures(root, archives, label_key), domain, split, test_classes, seed)

    return apply(rules, shards.listed_once("tar", root, archives, base, settings, read))


def pictures(root: Path, archives: list[Path], label_key: str | None = None) -> dict[str, list[str]]:
    """Return columns file (relative to `root`), entry (member) and label of all pictures of `archives`."""
    columns: dict[str, list[str]] = {"file": [], "entry": [], "label": []}
    for path in archives:
        archive = TarArchive(path)
        for key, sample in _samples(archive):
            picture = _picture(path, key, sample)
            if picture is not None:
                columns["file"].append(path.relative_to(root).as_posix())
                columns["entry"].append(picture)
                columns["label"].append(_label(archive, key, sample, label_key))
    if not columns["file"]:
        raise UserError(
            f"dataset.tar.pattern: no picture in {len(archives)} archives; accepted: {', '.join(PICTURES)}"
        )
    return columns


def _archives(pattern: str, base: Path) -> tuple[Path, list[Path]]:
    """Return the pattern's folder and its archives; UserError for files of another kind."""
    root, found = shards.found("dataset.tar.pattern", pattern, base, "tar archives")
    wrong = next((path for path in found if not path.name.lower().endswith(TAR_ENDS)), None)
    if wrong:
        raise UserError(
            f"dataset.tar.pattern: finds {wrong}; accepted: names that end in {', '.join(TAR_ENDS)}"
        )
    return root, found


def _samples(archive: TarArchive) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield (key, {ending: member}) for each run of members of one key."""
    key, sample = "", dict[str, Member]()
    for member in archive.members():
        above, _, name = member.name.rpartition("/")
        if name.startswith("."):  # hidden files, and the doubles of Apple computers
            continue
        stem, _, ending = name.partition(".")
        found = f"{above}/{stem}" if above else stem
        if found != key and sample:
            yield key, sample
            sample = {}
        key, sample[ending.lower()] = found, member
    if sample:
        yield key, sample


def _picture(path: Path, key: str, sample: dict[str, Member]) -> str | None:
    names = [member.name for ending, member in sample.items() if f".{ending}".endswith(PICTURES)]
    if len(names) > 1:
        raise UserError(
            f"{path}: {key!r} has {len(names)} pictures ({', '.join(names)}); accepted: one per key"
        )
    return names[0] if names else None


def _label(archive: TarArchive, key: str, sample: dict[str, Member], label_key: str | None) -> str:
    if label_key is None and "cls" in sample:
        return _text(archive, sample["cls"]).strip()
    wanted = label_key or _LABEL_KEY
    if "json" in sample:
        label = _fields(archive, sample["json"]).get(wanted)
        if isinstance(label, str | int) and not isinstance(label, bool):
            return str(label)
    accepted = f"{wanted!r} in {key}.json" + ("" if label_key else f", or {key}.cls")
    raise UserError(
        f"{archive.path}: no label for {key!r}, which has {', '.join(sorted(sample))}; accepted: {accepted}"
    )


def _fields(archive: TarArchive, member: Member) -> dict:
    try:
        fields = json.loads(_text(archive, member))
    except json.JSONDecodeError as error:
        raise UserError(f"{archive.path}: member {member.name!r}: {error}; accepted: a JSON object") from None
    return fields if isinstance(fields, dict) else {}


def _text(archive: TarArchive, member: Member) -> str:
    try:
        return archive.read(member.name).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{archive.path}: member {member.name!r}: byte {error.start} is not UTF-8; accepted: UTF-8 text"
        ) from None
