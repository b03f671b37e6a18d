"""Embeddings on disk: a folder with vectors.npy, rows.parquet and meta.json; read without torch.

A folder appears whole or not at all, and says which embedding space its vectors live in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guie.errors import UserError
from guie.types import Embeddings

COLUMNS = ("files", "labels", "domains", "splits")
PARTS = ("vectors.npy", "rows.parquet", "meta.json")


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
    )


def save(embeddings: Embeddings, folder: str | Path, **facts: object) -> Path:
    """Write `folder` atomically (an older one is replaced) and return it; `facts` go into meta.json.

    Raises UserError where rows do not fit together or vectors are not finite or zero.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    _check(embeddings, folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.save(partial / "vectors.npy", np.ascontiguousarray(embeddings.vectors, dtype=np.float32))
    table = pa.Table.from_arrays([to_arrow(getattr(embeddings, n)) for n in COLUMNS], names=list(COLUMNS))
    pq.write_table(table, partial / "rows.parquet")
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
        table = pq.ParquetFile(folder / "rows.parquet").read(columns=list(COLUMNS))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {str(error).splitlines()[0]}; accepted: {', '.join(PARTS)}") from error
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in COLUMNS}
    embeddings = Embeddings(vectors, space_id=meta["space_id"], **columns)
    _check(embeddings, folder)
    return embeddings


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
    """Join named embeddings of one space into one; labels become "<name>/<label>" so that they stay apart.

    Raises UserError where the spaces or widths differ.
    """
    first_name, first = next(iter(parts.items()))
    for name, part in parts.items():
        if part.space_id != first.space_id or part.vectors.shape[1] != first.vectors.shape[1]:
            raise UserError(
                f"{name}: embedding space {part.space_id}, {part.vectors.shape[1]}-d; accepted: "
                f"{first.space_id}, {first.vectors.shape[1]}-d as {first_name} has"
            )
    labels = [[f"{name}/{label}" for label in part.labels] for name, part in parts.items()]
    columns = {
        name: np.concatenate([np.asarray(getattr(part, name), dtype=object) for part in parts.values()])
        for name in ("files", "domains", "splits")
    }
    vectors = np.concatenate([part.vectors for part in parts.values()])
    joined = np.array([label for part in labels for label in part], dtype=object)
    return Embeddings(vectors, labels=joined, space_id=first.space_id, **columns)


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


def _check(embeddings: Embeddings, where: Path) -> None:
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


def _replace(partial: Path, folder: Path) -> None:
    """Put `partial` in the place of `folder`; a reader sees the old one or the new one."""
    for part in PARTS:
        with open(partial / part, "rb") as file:
            os.fsync(file.fileno())
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
