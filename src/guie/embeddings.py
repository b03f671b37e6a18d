"""Embeddings on disk: a folder with vectors.npy, rows.parquet and meta.json; read without torch.

A protocol's pairs are in truth.parquet. A folder appears whole or not at all, and says which embedding space
its vectors live in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from guie.errors import UserError
from guie.types import Embeddings, Pairs

COLUMNS = ("files", "labels", "domains", "splits")
PARTS = ("vectors.npy", "rows.parquet", "meta.json")
TRUTH, STATED = "truth.parquet", ("query", "item", "relation", "usage")
DISTRACTORS = "distractors"
# Columns of a manifest that protocols ask for, beyond those that all rows have.
SEVERAL = "class_ids"
FURTHER = ("usage", "landmarks", SEVERAL, "group")


def picture_names(manifest: Any, rows: np.ndarray) -> list[str]:
    """Return the file of each of `rows` of a manifest; a picture inside an archive is "file#entry"."""
    places = (manifest.place(i) for i in rows.tolist())
    return [file if entry is None else f"{file}#{entry}" for file, entry in places]


def from_manifest(
    vectors: np.ndarray, manifest: Any, *, rows: np.ndarray | None = None, space_id: str
) -> Embeddings:
    """Return vectors (N,D) with what a `Manifest` knows of their `rows` (all by default)."""
    rows = np.arange(len(manifest)) if rows is None else np.asarray(rows)
    return Embeddings(
        vectors,
        files=np.array(picture_names(manifest, rows), dtype=object),
        labels=np.array(manifest.label_names, dtype=object)[manifest.labels[rows]],
        domains=np.array(manifest.domain_names, dtype=object)[manifest.domains[rows]],
        splits=np.asarray(manifest.splits, dtype=object)[rows],
        space_id=space_id,
        truth=None if manifest.truth is None else _pairs(manifest.truth),
        further={name: _texts(manifest.table[name])[rows] for name in _present(manifest.table)},
    )


def _present(table: Any) -> list[str]:
    return [name for name in FURTHER if name in table.column_names]


def _pairs(table: Any) -> Pairs:
    return Pairs(*(_texts(table[name]) for name in STATED))


def _texts(column: Any) -> np.ndarray:
    """Return a column of text, (N,) object, with '' for null."""
    return np.array([value or "" for value in column.to_pylist()], dtype=object)


def save(embeddings: Embeddings, folder: str | Path, **facts: object) -> Path:
    """Write `folder` atomically (an older one is replaced) and return it; `facts` go into meta.json.

    Raises UserError where rows do not fit together or vectors are not finite or zero.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    sound(embeddings, folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.save(partial / "vectors.npy", np.ascontiguousarray(embeddings.vectors, dtype=np.float32))
    columns = {name: getattr(embeddings, name) for name in COLUMNS} | dict(embeddings.further)
    pq.write_table(_table(columns), partial / "rows.parquet")
    if embeddings.truth is not None:
        pq.write_table(_table(vars(embeddings.truth)), partial / TRUTH)
    rows, dim = embeddings.vectors.shape
    meta = {"space_id": embeddings.space_id, "rows": rows, "dim": dim} | facts
    (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    _replace(partial, folder)
    return folder


def load(folder: str | Path, *, space_id: str | None = None) -> Embeddings:
    """Return the embeddings of `folder`; vectors are mapped from disk, strings are object arrays.

    Raises UserError where a file is missing or damaged, rows differ in number, vectors are not finite or
    zero, or the space is not `space_id` (when given).
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    meta = read_meta(folder)
    if space_id is not None and meta["space_id"] != space_id:
        raise UserError(
            f"{folder}: embedding space {meta['space_id']}; accepted: {space_id} (embed again with one model)"
        )
    try:
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        # Neither read_table nor to_numpy: both import pandas, a second of CPU.
        table = pq.ParquetFile(folder / "rows.parquet").read()
        pairs = pq.ParquetFile(folder / TRUTH).read() if (folder / TRUTH).exists() else None
        missing = set(COLUMNS) - set(table.column_names)
        if missing:
            raise ValueError(f"rows.parquet without {min(missing)}")
        truth = None if pairs is None else _pairs(pairs)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: {str(error).splitlines()[0]}; accepted: {', '.join(PARTS)}") from error
    columns: dict[str, Any] = {name: np.array(table[name].to_pylist(), dtype=object) for name in COLUMNS}
    further = {name: _texts(table[name]) for name in _present(table)}
    embeddings = Embeddings(vectors, space_id=meta["space_id"], truth=truth, further=further, **columns)
    sound(embeddings, folder)
    return embeddings


def is_saved(folder: Path) -> bool:
    """Tell whether `folder` is one that `save` wrote."""
    return (folder / "meta.json").exists()


def read_meta(folder: str | Path) -> dict:
    """Return meta.json of a saved folder; UserError where it is not one."""
    path = Path(folder) / "meta.json"
    try:
        meta = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: not saved embeddings ({error}); accepted: a folder with {PARTS}"
        ) from error
    if not isinstance(meta, dict) or "space_id" not in meta:
        raise UserError(f"{path}: no space_id; accepted: what guie wrote")
    return meta


def concatenate(parts: Mapping[str, Embeddings]) -> Embeddings:
    """Join named embeddings of one space into one; labels and files get "<name>/" before them.

    Of the further columns `class_ids` stays, which tells of labels beside the first. Raises UserError where
    the spaces or widths differ.
    """
    one_space(parts)
    columns: dict[str, Any] = {
        column: np.concatenate([np.asarray(getattr(part, column), dtype=object) for part in parts.values()])
        for column in ("domains", "splits")
    }
    for column in ("files", "labels"):
        named = [f"{name}/{value}" for name, part in parts.items() for value in getattr(part, column)]
        columns[column] = np.array(named, dtype=object)
    if any(SEVERAL in part.further for part in parts.values()):
        nothing = [np.full(len(part.files), "", dtype=object) for part in parts.values()]
        several = [
            part.further.get(SEVERAL, none) for part, none in zip(parts.values(), nothing, strict=True)
        ]
        columns["further"] = {SEVERAL: np.concatenate(several)}
    vectors = np.concatenate([part.vectors for part in parts.values()])
    return Embeddings(vectors, space_id=next(iter(parts.values())).space_id, **columns)


def of_splits(part: Embeddings, splits: Sequence[str]) -> Embeddings:
    """Return the rows of these splits."""
    rows = np.flatnonzero(np.isin(np.asarray(part.splits, dtype=str), list(splits)))
    columns: dict[str, Any] = {name: np.asarray(getattr(part, name), dtype=object)[rows] for name in COLUMNS}
    further = {name: np.asarray(column, dtype=object)[rows] for name, column in part.further.items()}
    return replace(part, vectors=part.vectors[rows], further=further, **columns)


def with_distractors(part: Embeddings, others: Mapping[str, Embeddings], split: str) -> Embeddings:
    """Return `part` with the rows of `others`, by name, of no query's label, as rows of `split`.

    Their files begin with `distractors/<name>/`; their domain is that of `part`, where it has only one.
    """
    one_space({"": part, **others})
    own = sorted(set(part.domains))
    files = [f"{DISTRACTORS}/{name}/{file}" for name, other in others.items() for file in other.files]
    count = len(files)
    added = {
        "files": files,
        "labels": [f"{DISTRACTORS}/{i}" for i in range(count)],
        "domains": [own[0] if len(own) == 1 else DISTRACTORS] * count,
        "splits": [split] * count,
    }
    columns: dict[str, Any] = {
        name: np.concatenate([np.asarray(getattr(part, name), dtype=object), np.array(rows, dtype=object)])
        for name, rows in added.items()
    }
    nothing = np.full(count, "", dtype=object)
    further = {name: np.concatenate([column, nothing]) for name, column in part.further.items()}
    vectors = np.concatenate([part.vectors, *(other.vectors for other in others.values())])
    return replace(part, vectors=vectors, further=further, **columns)


def one_space(parts: Mapping[str, Embeddings]) -> None:
    """Raise UserError where the spaces or widths of named embeddings differ."""
    first_name, first = next(iter(parts.items()))
    for name, part in parts.items():
        if part.space_id != first.space_id or part.vectors.shape[1] != first.vectors.shape[1]:
            raise UserError(
                f"{name}: embedding space {part.space_id}, {part.vectors.shape[1]}-d; accepted: "
                f"{first.space_id}, {first.vectors.shape[1]}-d as {first_name} has"
            )


def to_arrow(values: np.ndarray | Sequence) -> Any:
    """Return a pyarrow.Array of numbers, strings, or lists of either.

    Built from buffers: pa.array and pa.table import pandas, a second of CPU, to ask whether it was given.
    """
    import pyarrow as pa

    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        buffer = pa.py_buffer(np.ascontiguousarray(values))
        return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])
    if len(values) and isinstance(values[0], list):
        flat = [item for items in values for item in items]
        numbers = bool(flat) and isinstance(flat[0], float)
        inner = to_arrow(np.array(flat, dtype=np.float64) if numbers else flat)
        return pa.ListArray.from_arrays(to_arrow(_offsets(values)), inner)
    encoded = [str(value).encode() for value in values]
    buffers = [pa.py_buffer(_offsets(encoded)), pa.py_buffer(b"".join(encoded))]
    return pa.StringArray.from_buffers(len(encoded), *buffers)


def _offsets(values: np.ndarray | Sequence) -> np.ndarray:
    """Return (len(values) + 1,) int32: where each value begins when they are laid end to end."""
    return np.cumsum([0, *map(len, values)], dtype=np.int32)


def _table(columns: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    return pa.Table.from_arrays([to_arrow(column) for column in columns.values()], names=list(columns))


def sound(embeddings: Embeddings, where: str | Path) -> None:
    """Raise UserError naming rows that do not fit together, vectors not finite or zero, or a file twice."""
    vectors = embeddings.vectors
    if vectors.ndim != 2:
        raise UserError(f"{where}: vectors of shape {vectors.shape}; accepted: (rows, width)")
    for name in COLUMNS:
        if len(getattr(embeddings, name)) != len(vectors):
            count = len(getattr(embeddings, name))
            raise UserError(f"{where}: {count} {name} for {len(vectors)} vectors; accepted: one each")
    with np.errstate(all="ignore"):
        squares = np.einsum("nd,nd->n", vectors, vectors)
    bad = np.flatnonzero(~(np.isfinite(squares) & (squares > 0)))
    if len(bad):
        examples = ", ".join(f"row {i} ({embeddings.files[i]})" for i in bad[:3])
        raise UserError(
            f"{where}: {len(bad)} vectors not finite or zero: {examples}; accepted: finite, not zero"
        )
    _refuse_twice(embeddings.files, where)


def _refuse_twice(files: np.ndarray, where: str | Path) -> None:
    if len(set(files)) == len(files):
        return
    seen: dict[str, int] = {}
    twice = [(seen[file], i, file) for i, file in enumerate(files) if seen.setdefault(file, i) != i]
    first, again, file = twice[0]
    raise UserError(
        f"{where}: {len(twice)} files listed again, such as {file} in rows {first} and {again}; "
        "accepted: each file once"
    )


def _replace(partial: Path, folder: Path) -> None:
    """Put `partial` in the place of `folder`; a reader sees the old one or the new one."""
    for part in partial.iterdir():
        with part.open("rb") as file:
            os.fsync(file.fileno())
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
