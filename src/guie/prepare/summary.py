"""What a person wants to know of a data set before training on it: as numbers, and as lines to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from guie.datasets.manifest import SPLITS, Manifest
from guie.datasets.published import Stated
from guie.prepare.duplicates import Leaks

DISTRACTOR = "distractor"
_EXAMPLES = 5


def summarised(
    manifest: Manifest,
    *,
    bad: int,
    copies: int,
    torn: Sequence[np.ndarray],
    found: Leaks,
    near_bits: int,
    min_images: int,
) -> dict[str, Any]:
    """Return the counts of a manifest (good pictures only) as plain values for summary.json.

    `bad` pictures were left out; `copies` have the bytes of an earlier picture; `torn` are groups of rows
    with the same bytes and several labels; `found` leaks differ in at most `near_bits`. Distractors are
    images, but no class.
    """
    splits = manifest.splits
    parts = {name: splits == name for name in SPLITS if (splits == name).any()}
    domains = {name: manifest.domains == i for i, name in enumerate(manifest.domain_names)}
    evaluated = int(np.isin(splits, ("query", "index", "test")).sum())
    return {
        "dataset": manifest.name,
        **counts(manifest, np.ones(len(manifest), bool)),
        "splits": {name: counts(manifest, rows) for name, rows in parts.items()},
        "domains": {name: counts(manifest, rows) for name, rows in domains.items()},
        "distractors": int((class_of(manifest) < 0).sum()),
        "bad_images": bad,
        "identical_copies": copies,
        "under_two_labels": {"groups": len(torn), "images": sum(map(len, torn))},
        "leakage": {
            "evaluated": evaluated,
            "identical": int(found.exact.sum()),
            "near": int((~found.exact).sum()),
            "near_bits": near_bits,
        },
        "small_classes": small_classes(manifest, min_images),
    }


def class_of(manifest: Manifest) -> np.ndarray:
    """Return class ids (N,) as the manifest's, -1 for distractors."""
    if DISTRACTOR not in manifest.label_names:
        return manifest.labels
    return np.where(manifest.labels == manifest.label_names.index(DISTRACTOR), -1, manifest.labels)


def class_sizes(manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """Return images per class among `rows` (N,) bool, of the classes that occur there, by class id."""
    classes = class_of(manifest)[rows]
    sizes = np.bincount(classes[classes >= 0], minlength=1)
    return sizes[sizes > 0]


def counts(manifest: Manifest, rows: np.ndarray) -> dict[str, Any]:
    """Return images, classes and images per class (min, median, max) of `rows` (N,) bool."""
    sizes = class_sizes(manifest, rows)
    per_class = {"min": 0, "median": 0.0, "max": 0}
    if len(sizes):
        per_class = {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())}
    return {"images": int(rows.sum()), "classes": len(sizes), "per_class": per_class}


def small_classes(manifest: Manifest, min_images: int) -> dict[str, Any]:
    """Return how many classes have fewer than `min_images` images, and the first of them by name."""
    classes = class_of(manifest)
    sizes = np.bincount(classes[classes >= 0], minlength=manifest.num_classes)
    small = np.flatnonzero((sizes > 0) & (sizes < min_images))
    names = [manifest.label_names[i] for i in small[:_EXAMPLES]]
    return {
        "below": min_images,
        "classes": len(small),
        "images": int(sizes[small].sum()),
        "examples": names,
    }


def with_stated(summary: Mapping[str, Any], stated: Mapping[str, Stated]) -> dict[str, Any]:
    """Return the summary with the makers' counts by split beside those that were found."""
    return {**summary, "stated": {name: count._asdict() for name, count in stated.items()}}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the summary as lines of plain text."""
    text = [
        f"{summary['dataset']}: {_many(summary['images'], 'image')}, {_many(summary['classes'], 'class')}, "
        f"{_many(len(summary['domains']), 'domain')}"
    ]
    text += _table("split", summary["splits"])
    if len(summary["domains"]) > 1:
        text += _table("domain", summary["domains"])
    return text + [f"{what:<18}{said}" for what, said in findings(summary)]


def findings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what may be wrong with the data, each with where the full list is."""
    small, torn, leakage = summary["small_classes"], summary["under_two_labels"], summary["leakage"]
    few = f"{small['classes']:,} of {summary['classes']:,} have fewer than {small['below']} images"
    if small["examples"]:
        few += f" ({', '.join(small['examples'])}{', ...' if small['classes'] > _EXAMPLES else ''})"
    both = leakage["identical"] + leakage["near"]
    leaking = (
        f"{both:,} of {leakage['evaluated']:,} evaluated images are in training: {leakage['identical']:,} "
        f"identical, {leakage['near']:,} near (at most {leakage['near_bits']} of 64 bits differ)"
    )
    conflicts = f"{_many(torn['groups'], 'picture')} under several labels"
    said = {
        "unusable": _listed(_many(summary["bad_images"], "image"), summary["bad_images"], "bad_images.csv"),
        "identical bytes": f"{_many(summary['identical_copies'], 'image')} repeat an earlier one",
        "two labels": _listed(conflicts, torn["groups"], "label_conflicts.csv"),
        "leakage": _listed(leaking, both, "leakage.csv"),
        "small classes": few,
    }
    if summary["stated"]:
        said["makers' counts"] = "; ".join(differences(summary)) or "all images and classes are there"
    if summary["distractors"]:
        said["distractors"] = _many(summary["distractors"], "image")
    return list(said.items())


def differences(summary: Mapping[str, Any]) -> list[str]:
    """Return where the counts of a split are not those that the makers of the data set state."""
    found = []
    for name, stated in summary["stated"].items():
        here = summary["splits"].get(name, {"images": 0, "classes": 0})
        for what in ("images", "classes"):
            if stated[what] is not None and stated[what] != here[what]:
                found.append(f"{name}: {here[what]:,} of {stated[what]:,} {what}")
    return found


def _listed(text: str, count: int, file: str) -> str:
    return f"{text} ({file})" if count else text


def _many(count: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _table(head: str, parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    width = max(len(head), *(len(name) for name in parts), 14)
    rows = [f"  {head:<{width}}{'images':>12}{'classes':>10}   images per class: min / median / max"]
    for name, part in parts.items():
        few = part["per_class"]
        sizes = f"{few['min']:,} / {few['median']:,g} / {few['max']:,}"
        rows.append(f"  {name or '(none)':<{width}}{part['images']:>12,}{part['classes']:>10,}   {sizes}")
    return rows
