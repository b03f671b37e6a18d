"""Image Similarity Challenge files: matching `query_id,reference_id,score`, and descriptors in an h5.

Ids are Q and five digits, R and six; 500,000 pairs at most; h5 data sets query (Q,D) and reference (N,D)
float32, D at most 256, query_ids S6, reference_ids S7 (Douze et al. 2021).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guie.durable import sync
from guie.embed import formats
from guie.errors import UserError
from guie.metrics.copies import MOST_PAIRS, ScoredPairs
from guie.submit.tables import number, read_rows, stems, write_rows, wrong

HEADER = ("query_id", "reference_id", "score")
NAMES = {"query": re.compile(r"Q\d{5}"), "reference": re.compile(r"R\d{6}")}
BLOCK = 8192


def write_matching(path: Path, pairs: ScoredPairs, queries: Sequence[str], references: Sequence[str]) -> Path:
    """Write scored pairs of positions in the files `queries` and `references`, best first."""
    if len(pairs.query) > MOST_PAIRS:
        raise UserError(f"max_pairs: {len(pairs.query):,} pairs; accepted: at most {MOST_PAIRS:,}")
    asks, answers = (
        _named(side, stems(files, side)) for side, files in (("query", queries), ("reference", references))
    )
    order = np.argsort(-pairs.scores, kind="stable")
    columns = (pairs.query[order].tolist(), pairs.item[order].tolist(), pairs.scores[order].tolist())
    rows = ((asks[query], answers[item], f"{score:.9g}") for query, item, score in zip(*columns, strict=True))
    return write_rows(path, HEADER, rows)


def _named(side: str, ids: list[str]) -> list[str]:
    for name in ids:
        if not NAMES[side].fullmatch(name):
            raise UserError(f"{side}: picture {name!r}; accepted: names as {_example(side)}")
    return ids


def _example(side: str) -> str:
    return {"query": "Q00001", "reference": "R000001"}[side]


def check_matching(path: Path) -> str:
    """Return a line that says what the file holds; UserError naming line and value of what is wrong."""
    seen: dict[tuple[str, str], int] = {}
    for line, (query, reference, score) in read_rows(path, HEADER):
        for side, name in (("query", query), ("reference", reference)):
            if not NAMES[side].fullmatch(name):
                raise wrong(path, line, f"{side}_id {name!r}", f"ids as {_example(side)}")
        number(path, line, score, "score")
        if (query, reference) in seen:
            again = f"pair {query},{reference} again, after line {seen[query, reference]}"
            raise wrong(path, line, again, "each pair once")
        seen[query, reference] = line
        if len(seen) > MOST_PAIRS:
            raise wrong(path, line, f"pair number {len(seen):,}", f"at most {MOST_PAIRS:,} pairs")
    return f"{len(seen):,} pairs of {len({query for query, _ in seen}):,} queries"


def write_descriptors(path: Path, vectors: np.ndarray, files: Sequence[str], splits: np.ndarray) -> Path:
    """Write the vectors (N,D) of the splits query and index, by the name of their files."""
    formats.check_width(["isc"], vectors.shape[1])
    sides = {side: np.flatnonzero(np.asarray(splits) == split) for side, split in formats.ISC_SPLITS.items()}
    names = np.asarray(files, dtype=object)
    named = {}
    for side, rows in sides.items():
        ids = np.array(_named(side, stems(names[rows], side)), dtype=str)
        if not len(rows):
            raise UserError(
                f"embeddings: no rows of split {formats.ISC_SPLITS[side]}; accepted: query and index"
            )
        named[f"{side}_ids"] = np.char.encode(ids).astype(f"S{formats.ISC_BYTES[side]}")
    partial = path.with_name(f".{path.name}.partial")
    try:
        formats.write_h5(partial, {side: (vectors, rows) for side, rows in sides.items()}, named)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def check_descriptors(path: Path) -> str:
    """Return a line that says what the file holds; UserError naming data set, row and value."""
    import h5py

    try:
        with h5py.File(path) as file:
            told = [_check_side(path, file, side) for side in NAMES]
            widths = [file[side].shape[1] for side in NAMES]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); accepted: an h5 file") from error
    if widths[0] != widths[1]:
        raise UserError(f"{path}: query of {widths[0]}-d, reference of {widths[1]}-d; accepted: one width")
    return f"{', '.join(told)}, {widths[0]}-d"


def _check_side(path: Path, file: Any, side: str) -> str:
    for name in (side, f"{side}_ids"):
        if name not in file:
            raise UserError(
                f"{path}: no data set {name}; accepted: query, reference, query_ids, reference_ids"
            )
    vectors, ids = file[side], file[f"{side}_ids"]
    _check_kind(path, side, vectors, "<f4", 2)
    _check_kind(path, f"{side}_ids", ids, f"S{formats.ISC_BYTES[side]}", 1)
    if len(vectors) != len(ids):
        raise UserError(f"{path}: {len(ids):,} {side}_ids for {len(vectors):,} rows; accepted: one each")
    if not 1 <= vectors.shape[1] <= formats.ISC_WIDTH:
        raise UserError(f"{path}: {side} of {vectors.shape[1]}-d; accepted: 1 to {formats.ISC_WIDTH}-d")
    _check_names(path, side, ids[:])
    for start in range(0, len(vectors), BLOCK):
        bad = np.flatnonzero(~np.isfinite(vectors[start : start + BLOCK]).all(axis=1))
        if len(bad):
            row = start + int(bad[0])
            raise UserError(
                f"{path}: {side} row {row} ({ids[row].decode()}) is not finite; accepted: numbers"
            )
    return f"{len(vectors):,} {side}"


def _check_kind(path: Path, name: str, values: Any, dtype: str, num_axes: int) -> None:
    if values.dtype != np.dtype(dtype) or values.ndim != num_axes:
        found = f"{name} of {values.dtype}, shape {values.shape}"
        raise UserError(f"{path}: {found}; accepted: {np.dtype(dtype)} of {num_axes} axes")


def _check_names(path: Path, side: str, ids: np.ndarray) -> None:
    seen: dict[str, int] = {}
    for row, name in enumerate(ids.astype(str).tolist()):
        if not NAMES[side].fullmatch(name):
            raise UserError(f"{path}: {side}_ids row {row}: {name!r}; accepted: ids as {_example(side)}")
        if seen.setdefault(name, row) != row:
            raise UserError(
                f"{path}: {side}_ids row {row}: {name!r} again, after row {seen[name]}; accepted: once"
            )
