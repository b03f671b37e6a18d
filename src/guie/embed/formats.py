"""Vectors and ids in the layouts that other programs read. No torch.

npy    ids.npy (N,) str, beside the vectors.npy that is there anyway
fvecs  vectors.fvecs: for each row D as little-endian int32, then D little-endian float32; ids.npy
isc    isc.h5 of the Image Similarity Challenge: query (Q,D) and reference (N,D) float32, of the splits query
       and index; query_ids S6, reference_ids S7
e0     e0.h5 of the landmark systems: ids (N,) S16, feats (N,D) float32
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from guie.errors import UserError

NAMES = ("npy", "fvecs", "isc", "e0")
ID_KINDS = ("stem", "file")
ISC_SPLITS = {"query": "query", "reference": "index"}
ISC_BYTES = {"query": 6, "reference": 7}
ISC_WIDTH = 256
E0_BYTES = 16

_BLOCK_ROWS = 8192


def check_names(formats: Any, ids: str) -> tuple[str, ...]:
    """Return the formats that a config names, one or a list; UserError for one that does not exist."""
    names = (formats,) if isinstance(formats, str) else tuple(formats or ())
    for name in names:
        if name not in NAMES:
            raise UserError(f"formats: '{name}'; accepted: {', '.join(NAMES)}")
    if ids not in ID_KINDS:
        raise UserError(f"ids: '{ids}'; accepted: {', '.join(ID_KINDS)}")
    return names


def picture_ids(places: Iterable[tuple[str, str | None]], kind: str) -> np.ndarray:
    """Return the id of each (file, entry), (N,) str: the name without folder and ending, or all of it.

    Raises UserError where two pictures have one id.
    """
    if kind == "stem":
        found = [PurePosixPath(file if entry is None else entry).stem for file, entry in places]
    else:
        found = [file if entry is None else f"{file}#{entry}" for file, entry in places]
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        told = f"{len(twice)} that two pictures share ('{twice[0]}')"
        raise UserError(f"ids: {kind} gives {told}; accepted: ids=file, or names that differ")
    return np.array(found, dtype=str)


def check(formats: Sequence[str], ids: np.ndarray, splits: np.ndarray) -> None:
    """Raise UserError where rows with these `ids` (N,) and `splits` (N,) do not fit a format."""
    if "e0" in formats:
        _encoded(ids, E0_BYTES, "e0")
    sides = _isc_rows(splits) if "isc" in formats else {}
    for side, rows in sides.items():
        if not len(rows):
            missing = ISC_SPLITS[side]
            raise UserError(f"formats: isc without rows of split {missing}; accepted: query and index")
    for side, rows in sides.items():
        _encoded(ids[rows], ISC_BYTES[side], f"isc {side}_ids")


def check_width(formats: Sequence[str], width: int) -> None:
    """Raise UserError where vectors of `width` do not fit a format."""
    if "isc" in formats and width > ISC_WIDTH:
        raise UserError(f"formats: isc of {width}-d vectors; accepted: at most {ISC_WIDTH}-d")


def write(
    formats: Sequence[str], folder: Path, vectors: np.ndarray, ids: np.ndarray, splits: np.ndarray
) -> None:
    """Write `vectors` (N,D) float32 of `ids` (N,) and `splits` (N,) into `folder` in every format."""
    if {"npy", "fvecs"} & set(formats):
        np.save(folder / "ids.npy", ids)
    if "fvecs" in formats:
        write_fvecs(folder / "vectors.fvecs", vectors)
    if "isc" in formats:
        sides = _isc_rows(splits)
        named = {f"{side}_ids": _encoded(ids[sides[side]], ISC_BYTES[side], "isc") for side in sides}
        write_h5(folder / "isc.h5", {side: (vectors, rows) for side, rows in sides.items()}, named)
    if "e0" in formats:
        every = np.arange(len(vectors))
        write_h5(folder / "e0.h5", {"feats": (vectors, every)}, {"ids": _encoded(ids, E0_BYTES, "e0")})


def write_fvecs(path: Path, vectors: np.ndarray) -> None:
    """Write (N,D) float32 as fvecs."""
    with path.open("wb") as file:
        for block in _blocks(vectors, np.arange(len(vectors))):
            rows = np.empty((len(block), 1 + block.shape[1]), "<f4")
            rows.view("<i4")[:, 0] = block.shape[1]
            rows[:, 1:] = block
            rows.tofile(file)


def write_h5(
    path: Path, arrays: Mapping[str, tuple[np.ndarray, np.ndarray]], named: Mapping[str, np.ndarray]
) -> None:
    """Write data sets: of `arrays` the given rows as float32, of `named` all as they are."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, (vectors, rows) in arrays.items():
            target, start = file.create_dataset(name, (len(rows), vectors.shape[1]), "<f4"), 0
            for block in _blocks(vectors, rows):
                target[start : start + len(block)] = block
                start += len(block)
        for name, values in named.items():
            file.create_dataset(name, data=values)


def _blocks(vectors: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield vectors[rows[start : start + _BLOCK_ROWS]]


def _isc_rows(splits: np.ndarray) -> dict[str, np.ndarray]:
    return {side: np.flatnonzero(np.asarray(splits) == split) for side, split in ISC_SPLITS.items()}


def _encoded(ids: np.ndarray, num_bytes: int, where: str) -> np.ndarray:
    """Return ids as fixed-width bytes; UserError for one that would be cut."""
    encoded = np.char.encode(np.asarray(ids, dtype=str), "utf-8")
    long = np.flatnonzero(np.char.str_len(encoded) > num_bytes)
    if len(long):
        raise UserError(
            f"formats: {where} with id '{ids[long[0]]}' of {len(encoded[long[0]])} bytes; accepted: at most "
            f"{num_bytes} (ids=stem, or another format)"
        )
    return encoded.astype(f"S{num_bytes}")
