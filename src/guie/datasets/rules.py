"""Subset rules: a manifest in, fewer (or re-labelled) rows out; seeded, in stable order, logged with counts.

A data set's config holds them by name, in the order in which they act; null switches one off:

    rules:
      frequent: {_target_: guie.datasets.rules.MoreThan, images: 15}

Rules about classes count and judge rows of `splits` (train and val unless stated) and let all others pass.
What is drawn depends on the seed and on the class's or picture's own name (`datasets.hashed`): other rows
that come, go or change places do not change it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from guie.datasets.hashed import hashed
from guie.datasets.manifest import SPLITS, Manifest, make_table
from guie.datasets.rows import (
    FIVE,
    below,
    class_counts,
    drawn_classes,
    marked,
    moved_truth,
    of_splits,
    ranks,
    recoded,
    row_keys,
    with_classes,
)
from guie.errors import UserError

log = logging.getLogger("guie")

DISTRACTOR = "distractor"  # the label of a picture that answers no query


class Rule(Protocol):
    """A step of a data recipe."""

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return what is left; rows keep their order."""
        ...


Rules = Mapping[str, Rule] | None


def apply(rules: Rules, manifest: Manifest) -> Manifest:
    """Return `manifest` after all rules, each logged with images and classes before and after.

    Raises:
        UserError: something that is no rule, or a rule that leaves no row.

    """
    where = f"dataset {manifest.name}, rule"
    if not isinstance(rules, Mapping | None):
        raise UserError(f"{where}s: {rules!r}; accepted: name -> {{_target_: guie.datasets.rules.*, ...}}")
    for name, rule in (rules or {}).items():
        if rule is None:
            continue
        if not callable(rule):
            raise UserError(f"{where} {name}: {rule!r}; accepted: {{_target_: guie.datasets.rules.*, ...}}")
        left = rule(manifest)
        log.info(
            "dataset %s, rule %s: %s images of %s classes -> %s of %s",
            *(manifest.name, name, f"{len(manifest):,}", f"{manifest.num_classes:,}"),
            *(f"{len(left):,}", f"{left.num_classes:,}"),
        )
        if not len(left):
            raise UserError(
                f"{where} {name}: leaves none of {len(manifest):,} images; accepted: a rule that keeps some"
            )
        manifest = left
    return manifest


@dataclass(frozen=True)
class MinImages:
    """Keep classes with `images` or more."""

    images: int = 2
    splits: Sequence[str] = ("train", "val")

    def __post_init__(self):
        _whole(self, "images", 1)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return the rows of these classes."""
        return with_classes(manifest, self.splits, class_counts(manifest, self.splits) >= self.images)


@dataclass(frozen=True)
class MoreThan:
    """Keep classes with strictly more than `images`, then at most `cap` pictures of each, as `MaxImages`."""

    images: int
    cap: int | None = None
    seed: int = 0
    splits: Sequence[str] = ("train", "val")

    def __post_init__(self):
        _whole(self, "images", 0)
        if self.cap is not None:
            _whole(self, "cap", 1)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return the rows of these classes."""
        left = with_classes(manifest, self.splits, class_counts(manifest, self.splits) > self.images)
        return left if self.cap is None else MaxImages(self.cap, self.seed, self.splits)(left)


@dataclass(frozen=True)
class MaxImages:
    """Keep at most `images` pictures of each class: those that the hash of seed and file name puts first."""

    images: int
    seed: int = 0
    splits: Sequence[str] = ("train", "val")

    def __post_init__(self):
        _whole(self, "images", 1)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return all rows but those beyond the cap."""
        over = class_counts(manifest, self.splits) > self.images
        rows = np.flatnonzero(of_splits(manifest, self.splits) & over[manifest.labels])
        kept = np.ones(len(manifest), bool)
        kept[rows[ranks(manifest, rows, self.seed) >= self.images]] = False
        return manifest.select(kept)


@dataclass(frozen=True)
class MaxClasses:
    """Keep at most `classes` classes, drawn by hash of seed and label."""

    classes: int
    seed: int = 0
    splits: Sequence[str] = ("train", "val")

    def __post_init__(self):
        _whole(self, "classes", 1)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return the rows of these classes."""
        return with_classes(
            manifest, self.splits, drawn_classes(manifest, self.splits, self.seed, self.classes)
        )


@dataclass(frozen=True)
class TopClasses:
    """Keep the `classes` most frequent classes; of two alike the one whose label sorts first."""

    classes: int
    splits: Sequence[str] = ("train", "val")

    def __post_init__(self):
        _whole(self, "classes", 1)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return the rows of these classes."""
        chosen = np.zeros(manifest.num_classes, bool)
        chosen[np.argsort(-class_counts(manifest, self.splits), kind="stable")[: self.classes]] = True
        return with_classes(manifest, self.splits, chosen)


@dataclass(frozen=True)
class DropClasses:
    """Drop `classes` classes, drawn by hash of seed and label."""

    classes: int
    seed: int = 0
    splits: Sequence[str] = ("train", "val")

    def __post_init__(self):
        _whole(self, "classes", 0)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return the rows of the other classes; UserError where there are not so many."""
        present = int((class_counts(manifest, self.splits) > 0).sum())
        if self.classes >= present:
            raise UserError(
                f"dataset {manifest.name}: DropClasses.classes: {self.classes} of {present} classes; "
                f"accepted: fewer than {present}"
            )
        return with_classes(
            manifest, self.splits, ~drawn_classes(manifest, self.splits, self.seed, self.classes)
        )


@dataclass(frozen=True)
class KeepDomains:
    """Keep the rows of these domains, of every split."""

    domains: Sequence[str]

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return these rows; UserError for a domain that no row has."""
        return manifest.keep_domains(_listed(self, "domains"))


@dataclass(frozen=True)
class DropDomains:
    """Drop the rows of these domains, of every split."""

    domains: Sequence[str]

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return the other rows; UserError for a domain that no row has."""
        gone = _listed(self, "domains")
        _known(self, "domains", gone, manifest.domain_names)
        return manifest.select(~np.isin(manifest.domain_names, gone)[manifest.domains])


@dataclass(frozen=True)
class KeepSplits:
    """Keep the rows of these splits."""

    splits: Sequence[str]

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return these rows."""
        return manifest.select(of_splits(manifest, self.splits))


@dataclass(frozen=True)
class KeepLabels:
    """Keep the rows, of every split, whose `column` (label, super_label ...) is one of `labels`."""

    labels: Sequence[str]
    column: str = "label"

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return these rows; UserError for a value that no row has."""
        return manifest.select(_with_values(self, manifest))


@dataclass(frozen=True)
class ExcludeLabels:
    """Drop the rows, of every split, whose `column` (label, super_label ...) is one of `labels`."""

    labels: Sequence[str]
    column: str = "label"

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return the other rows; UserError for a value that no row has."""
        return manifest.select(~_with_values(self, manifest))


@dataclass(frozen=True)
class ExcludeLabelsOf:
    """Drop the rows of train and val whose class another data set asks about or answers with.

    `of`: that data set, as a nested node (`{_target_: guie.datasets.products10k.products10k, root: ...}`);
    `splits`: its rows that count. Labels are compared as text.
    """

    of: Any
    splits: Sequence[str] = ("query", "index", "test")

    def __post_init__(self):
        _manifest(self)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return the rows of the other classes."""
        asked = np.asarray(self.of.label_names, dtype=object)[class_counts(self.of, self.splits) > 0]
        seen = np.isin(np.asarray(manifest.label_names, dtype=object), asked)
        return with_classes(manifest, ("train", "val"), ~seen)


@dataclass(frozen=True)
class HoldOutClasses:
    """Give some classes the split test, class by class, in each domain the same share of them.

    `share` of the classes; or, where `folds` is given, the classes of number `fold` of so many equal parts.
    A class of several domains counts in the first of them, by name.
    """

    share: float = 0.2
    folds: int | None = None
    fold: int = 0
    seed: int = 0
    splits: Sequence[str] = ("train", "val")

    def __post_init__(self):
        if not isinstance(self.share, int | float) or not 0 <= self.share < 1:
            raise UserError(f"HoldOutClasses.share: {self.share!r}; accepted: 0 to below 1")
        if self.folds is not None:
            _fold(self, self.folds, self.fold)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return all rows, those of the chosen classes with split test."""
        acting = of_splits(manifest, self.splits)
        domains = np.full(manifest.num_classes, len(manifest.domain_names))
        np.minimum.at(domains, manifest.labels[acting], manifest.domains[acting])
        low, high = (0.0, self.share) if self.folds is None else (self.fold, self.fold + 1)
        parts = self.folds or 1
        chosen = np.zeros(manifest.num_classes, bool)
        order = np.lexsort((hashed(self.seed, pa.array(manifest.label_names)), domains))
        for domain in np.unique(domains[domains < len(manifest.domain_names)]):
            mine = order[domains[order] == domain]
            first, last = (int(len(mine) * edge / parts + 0.5) for edge in (low, high))
            chosen[mine[first:last]] = True
        return recoded(manifest, "split", acting & chosen[manifest.labels], "test")


@dataclass(frozen=True)
class Folds:
    """Give one of `folds` equal parts of every class's train rows the split val.

    Classes with fewer images than folds stay in train.
    """

    folds: int = 10
    fold: int = 0
    seed: int = 0

    def __post_init__(self):
        _fold(self, self.folds, self.fold)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return all rows, those of the fold with split val."""
        large = class_counts(manifest, ("train",)) >= self.folds
        rows = np.flatnonzero(of_splits(manifest, ("train",)) & large[manifest.labels])
        # each class begins at a fold of its own, or the first folds would get all the remainders
        begins = hashed(self.seed, pa.array(manifest.label_names)) % np.uint64(self.folds)
        folds = (
            ranks(manifest, rows, self.seed) + begins.astype(np.int64)[manifest.labels[rows]]
        ) % self.folds
        return recoded(manifest, "split", marked(manifest, rows[folds == self.fold]), "val")


@dataclass(frozen=True)
class PickVal:
    """Give `images` train rows the split val, drawn from all classes with `min_images` or more."""

    images: int = 200
    min_images: int = 1
    seed: int = 0

    def __post_init__(self):
        _whole(self, "images", 1)
        _whole(self, "min_images", 1)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return all rows, the drawn ones with split val."""
        large = class_counts(manifest, ("train",)) >= self.min_images
        rows = np.flatnonzero(of_splits(manifest, ("train",)) & large[manifest.labels])
        first = np.argsort(row_keys(manifest, self.seed)[rows], kind="stable")[: self.images]
        return recoded(manifest, "split", marked(manifest, rows[first]), "val")


@dataclass(frozen=True)
class ValOf:
    """Give the split val to the pictures that are val in `of`, another list of the same folder, nested."""

    of: Any

    def __post_init__(self):
        _manifest(self)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return all rows; UserError where that data set's validation pictures are not among them."""
        val = self.of.split("val")
        mask = np.isin(row_keys(manifest, 0), row_keys(val, 0))
        if not mask.any() or self.of.root != manifest.root:
            raise UserError(
                f"dataset {manifest.name}: ValOf.of: {len(val)} val pictures below {self.of.root}, "
                f"{int(mask.sum())} of them here; accepted: a list of the same folder, a rule giving it val"
            )
        return recoded(manifest, "split", mask, "val")


@dataclass(frozen=True)
class SetSplit:
    """Give the rows of the splits `of` (empty: all) the split `split`: a test set taken for training, say."""

    split: str
    of: Sequence[str] = ()

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return all rows."""
        _known(self, "split", [self.split], SPLITS)
        return recoded(manifest, "split", of_splits(manifest, self.of or SPLITS), self.split)


@dataclass(frozen=True)
class SetDomain:
    """Give all rows the domain `domain`."""

    domain: str

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return all rows."""
        return recoded(manifest, "domain", np.ones(len(manifest), bool), self.domain)


@dataclass(frozen=True)
class LabelFrom:
    """Take another column (super_label, group ...) as the label."""

    column: str

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return all rows, labelled by that column; UserError where it is missing or has empty values."""
        values = _column(self, manifest, self.column)
        table = manifest.table.set_column(manifest.table.column_names.index("label"), "label", values)
        return Manifest(manifest.name, manifest.root, make_table(table, manifest.name), manifest.truth)


@dataclass(frozen=True)
class Distractors:
    """Add another data set's pictures to the gallery: split index, label `distractor`.

    `of`: that data set, as a nested node; `splits`: which of its rows (empty: all); `images`: at most so
    many, drawn by hash of seed and file name; `domain`: instead of their own. Files become relative to the
    folder that both data sets lie in.
    """

    of: Any
    splits: Sequence[str] = ()
    images: int | None = None
    domain: str | None = None
    seed: int = 0

    def __post_init__(self):
        _manifest(self)
        if self.images is not None:
            _whole(self, "images", 1)

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return all rows, then the distractors."""
        rows = np.flatnonzero(of_splits(self.of, self.splits or SPLITS))
        if self.images is not None:
            first = np.argsort(row_keys(self.of, self.seed)[rows], kind="stable")[: self.images]
            rows = np.sort(rows[first])
        root = Path(os.path.commonpath([manifest.root.resolve(), self.of.root.resolve()]))
        own, other = manifest.table, self.of.table.take(pa.array(rows, pa.int64()))
        made = {"label": DISTRACTOR, "split": "index"} | ({"domain": self.domain} if self.domain else {})
        for column, value in made.items():
            place = other.column_names.index(column)
            other = other.set_column(place, column, pa.repeat(pa.scalar(value), other.num_rows))
        joined = pa.concat_tables(
            [below(own, manifest.root, root), below(other, self.of.root, root).select(FIVE)],
            promote_options="default",
        )
        truth = moved_truth(manifest, root)
        return Manifest(manifest.name, root, make_table(joined, manifest.name), truth)


def _column(rule: Any, manifest: Manifest, name: str) -> pa.ChunkedArray:
    _known(rule, "column", [name], manifest.table.column_names)
    return manifest.table[name].cast(pa.string())


def _with_values(rule: Any, manifest: Manifest) -> np.ndarray:
    wanted = _listed(rule, "labels")
    values = _column(rule, manifest, rule.column)
    _known(rule, "labels", wanted, values.unique().to_pylist())
    return pc.is_in(values, pa.array(wanted)).to_numpy(zero_copy_only=False)


def _manifest(rule: Any) -> None:
    if not isinstance(rule.of, Manifest):
        raise UserError(
            f"{type(rule).__name__}.of: {rule.of!r}; accepted: a data set, {{_target_: ..., ...}}"
        )


def _whole(rule: Any, key: str, least: int) -> None:
    value = getattr(rule, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{type(rule).__name__}.{key}: {value!r}; accepted: a whole number from {least}")


def _fold(rule: Any, folds: int, fold: int) -> None:
    _whole(rule, "folds", 2)
    _whole(rule, "fold", 0)
    if fold >= folds:
        raise UserError(f"{type(rule).__name__}.fold: {fold}; accepted: 0 to {folds - 1}")


def _listed(rule: Any, key: str) -> list[str]:
    value = getattr(rule, key)
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise UserError(f"{type(rule).__name__}.{key}: {value!r}; accepted: a list of names")
    return [str(item) for item in value]


def _known(rule: Any, key: str, wanted: Sequence[str], accepted: Sequence[Any]) -> None:
    unknown = sorted(set(wanted) - {str(item) for item in accepted})
    if unknown:
        shown = ", ".join(sorted(str(item) for item in accepted if item is not None)[:20])
        raise UserError(f"{type(rule).__name__}.{key}: unknown {unknown[0]!r}; accepted: {shown}")
