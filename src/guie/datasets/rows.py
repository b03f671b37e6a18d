"""Rows and classes of a manifest, counted, drawn, marked and moved: what subset rules are made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from guie.datasets.hashed import hashed, mixed
from guie.datasets.manifest import SPLITS, Manifest
from guie.errors import UserError

FIVE = ["file", "entry", "label", "domain", "split"]


def of_splits(manifest: Manifest, splits: Sequence[str]) -> np.ndarray:
    """Return (N,) bool: rows of these splits; UserError for a split that does not exist."""
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or isinstance(splits, str):
        raise UserError(
            f"dataset {manifest.name}: splits {splits!r}; accepted: a list of {', '.join(SPLITS)}"
        )
    coded = manifest.table["split"].combine_chunks()
    chosen = np.isin(coded.dictionary.to_pylist(), list(splits))
    return chosen[coded.indices.to_numpy(zero_copy_only=False)]


def class_counts(manifest: Manifest, splits: Sequence[str]) -> np.ndarray:
    """Return (C,) images per class in these splits."""
    return np.bincount(manifest.labels[of_splits(manifest, splits)], minlength=manifest.num_classes)


def with_classes(manifest: Manifest, splits: Sequence[str], chosen: np.ndarray) -> Manifest:
    """Return rows of classes `chosen` (C,) bool, and all rows of other splits."""
    return manifest.select(chosen[manifest.labels] | ~of_splits(manifest, splits))


def drawn_classes(manifest: Manifest, splits: Sequence[str], seed: int, number: int) -> np.ndarray:
    """Return (C,) bool: `number` of the classes that occur in these splits."""
    present = np.flatnonzero(class_counts(manifest, splits))
    keys = hashed(seed, pa.array(manifest.label_names))[present]
    chosen = np.zeros(manifest.num_classes, bool)
    chosen[present[np.argsort(keys, kind="stable")[:number]]] = True
    return chosen


def row_keys(manifest: Manifest, seed: int) -> np.ndarray:
    """Return (N,) uint64: the hash of seed, file and entry."""
    files, entries = manifest.table["file"], manifest.table["entry"]
    keys = hashed(seed, files)
    return keys if entries.null_count == len(entries) else mixed(keys ^ hashed(seed, entries))


def ranks(manifest: Manifest, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return, for `rows` (M,), each one's place within its class by `row_keys`, (M,) int64 from 0."""
    labels = manifest.labels[rows]
    order = np.lexsort((row_keys(manifest, seed)[rows], labels))
    sizes = np.bincount(labels)
    places = np.empty(len(rows), np.int64)
    places[order] = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return places


def marked(manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """Return (N,) bool, true at `rows` (M,)."""
    mask = np.zeros(len(manifest), bool)
    mask[rows] = True
    return mask


def recoded(manifest: Manifest, column: str, mask: np.ndarray, value: str) -> Manifest:
    """Return the manifest with `value` in `column` where `mask` (N,) holds."""
    coded = manifest.table[column].combine_chunks()
    names = coded.dictionary.to_pylist()
    known = sorted({*names, value})
    places = np.array([known.index(name) for name in names], np.int32)
    codes = np.where(mask, np.int32(known.index(value)), places[coded.indices.to_numpy(zero_copy_only=False)])
    made = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(known))
    table = manifest.table.set_column(manifest.table.column_names.index(column), column, made)
    return Manifest(manifest.name, manifest.root, table, manifest.truth)


def below(table: pa.Table, old: Path, new: Path) -> pa.Table:
    """Return the table in plain text columns, its files relative to `new` instead of `old`."""
    files = _prefixed(table["file"], old, new)
    made = {name: table[name].cast(pa.string()) for name in FIVE[1:]}
    return pa.table({"file": files} | made | {n: table[n] for n in table.column_names if n not in FIVE})


def _prefixed(files: pa.ChunkedArray, old: Path, new: Path) -> pa.ChunkedArray:
    prefix = os.path.relpath(old.resolve(), new)
    kind = pa.large_string()
    lead = pa.scalar("" if prefix == "." else prefix + "/", kind)
    return pc.binary_join_element_wise(lead, files.cast(kind), pa.scalar("", kind))


def moved_truth(manifest: Manifest, root: Path) -> pa.Table | None:
    """Return the protocol's pairs with files relative to `root`."""
    truth: pa.Table | None = manifest.truth
    if truth is None:
        return None
    for column in ("query", "item"):
        moved = _prefixed(truth[column], manifest.root, root).cast(pa.string())
        truth = truth.set_column(truth.column_names.index(column), column, moved)
    return truth
