"""OmniBenchmark (Zhang et al., ECCV 2022): pictures of 21 realms, from activity to vascular plants."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from guie.datasets.known import Listing, known, numbered_lines, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.errors import UserError

_SPLITS = ("train", "val", "test")
_LISTS = ("records.txt", "record.txt")  # what the download tool writes, what the description says
_DOMAINS = {"car": "cars", "bird": "bird", "food": "food"}
_NATURE = ("amphibian", "aquatic_vertebrate", "geological_formation", "mammal", "plant", "vascular_plant")


def omnibenchmark(
    root: str = "omnibenchmark", realms: list[str] | None = None, rules: Rules = None, *, data_root: str
) -> Manifest:
    """Return what `REALM/SPLIT/records.txt` or `REALM.SPLIT/records.txt` list; `realms` keeps some of them.

    The label is `realm/number`, `super_label` the realm; the domain is food, cars, bird, nature or object.
    A test list whose labels are all the same number holds hidden labels and is left out. A picture that is
    listed again keeps its first label.
    """
    return known("omnibenchmark", root, data_root, partial(listed, realms=realms), rules)


def listed(place: Path, realms: list[str] | None = None) -> Listing:
    """List the records of each realm and split."""
    found = _lists(place)
    unknown = sorted(set(realms or ()) - {realm for realm, _, _ in found})
    if unknown or not found:
        there = ", ".join(sorted({realm for realm, _, _ in found})) or "none"
        asked = f"realm {unknown[0]!r}" if unknown else "no realm"
        raise UserError(
            f"{place}: {asked} (found {there}); accepted: REALM/train/records.txt, as the download tool makes"
        )
    listing = Listing({name: [] for name in ("file", "label", "super_label", "domain", "split")})
    for realm, split, path in found:
        if realms is None or realm in realms:
            _add(listing, place, realm, split, path)
    return listing


def _lists(place: Path) -> list[tuple[str, str, Path]]:
    """Return (realm, split, list of records), sorted by realm, then split."""
    found = []
    for name in _LISTS:
        for path in sorted(place.glob(f"*/{name}")):
            realm, _, split = path.parent.name.rpartition(".")
            found.append((realm, split, path))
        found += [(p.parent.parent.name, p.parent.name, p) for p in sorted(place.glob(f"*/*/{name}"))]
    return sorted(
        (entry for entry in found if entry[0] and entry[1] in _SPLITS),
        key=lambda entry: (entry[0], _SPLITS.index(entry[1])),
    )


def _add(listing: Listing, place: Path, realm: str, split: str, path: Path) -> None:
    labels, again = _records(path)
    if split == "test" and len(set(labels.values())) == 1 and len(labels) > 1:
        listing.notes.append(f"{path}: the labels are hidden, {len(labels):,} pictures left out")
        return
    if again:
        listing.notes.append(f"{path}: {again:,} pictures listed again, their first label kept")
    above = path.parent.relative_to(place).as_posix()
    domain = _DOMAINS.get(realm, "nature" if realm in _NATURE else "object")
    for column, values in (
        ("file", [f"{above}/{file}" for file in labels]),
        ("label", [f"{realm}/{label}" for label in labels.values()]),
        ("super_label", [realm] * len(labels)),
        ("domain", [domain] * len(labels)),
        ("split", [split] * len(labels)),
    ):
        listing.columns[column].extend(values)


def _records(path: Path) -> tuple[dict[str, str], int]:
    """Return label by picture, and how many lines name a picture that an earlier line names."""
    required(path.parent, path.name)
    labels: dict[str, str] = {}
    lines = numbered_lines(path)
    for number, line in lines:
        cells = line.split()
        if len(cells) != 2 or not cells[1].isdecimal():
            raise UserError(f"{path}: line {number}: {line!r}; accepted: a picture and its class number")
        labels.setdefault(*cells)
    return labels, len(lines) - len(labels)
