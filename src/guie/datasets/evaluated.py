"""The rows that an evaluation reads: those of its splits, cropped to their boxes, at most so many of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from guie.datasets.hashed import hashed
from guie.datasets.manifest import CROP, Manifest
from guie.datasets.rows import row_keys
from guie.errors import UserError
from guie.images import Box, decode

_SEED = 0


def cropped(manifest: Manifest, splits: Sequence[str]) -> Manifest:
    """Return the manifest with the pictures of `splits` cropped to their `box`, where they have one.

    Raises UserError where there are such rows, but no column `box`.
    """
    asked = np.isin(manifest.splits, list(splits))
    if not asked.any():
        return manifest
    if "box" not in manifest.table.column_names:
        raise UserError(
            f"dataset {manifest.name}: no column box to crop to; accepted: protocol.{manifest.name}.crops=[]"
        )
    boxes = manifest.table["box"].cast(pa.string()).combine_chunks()
    crops = pc.if_else(pa.array(asked), boxes, pa.scalar(None, pa.string()))
    table = manifest.table.append_column(CROP, crops).combine_chunks()
    return Manifest(manifest.name, manifest.root, table, manifest.truth)


def reader(manifest: Manifest) -> Callable[[str], bytes]:
    """Return how to read a picture by its name in embeddings, `file` or `file#entry`; raises as `picture`.

    Of a picture that is cropped (`cropped`) it is the part that was embedded, as PNG.
    """
    table = manifest.table

    @cache
    def boxes() -> dict[tuple[str, str | None], Box | None]:
        boxed = np.flatnonzero(pc.is_valid(table[CROP])) if CROP in table.column_names else np.empty(0, int)
        return {manifest.place(row): manifest.crop(row) for row in boxed.tolist()}

    whole_names = table["entry"].null_count == len(table)  # a plain file may have a # in its name

    def read(name: str) -> bytes:
        file, _, entry = (name, "", "") if whole_names else name.partition("#")
        data = manifest.picture(file, entry or None)
        box = boxes().get((file, entry or None))
        return data if box is None else _as_png(decode(data, box=box))

    return read


def _as_png(image: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def capped(manifest: Manifest, asks: Sequence[str], answers: Sequence[str], cap: int) -> Manifest:
    """Return at most `cap` rows that ask and `cap` that only answer, on any machine the same.

    Those that ask are taken class by class, in the order of hashes, so that what searches itself keeps whole
    classes; those that answer by what is relevant to them, then by the hash of rows. Stated pairs stay where
    both of their pictures do. Raises UserError for a `cap` below 1.
    """
    if cap < 1:
        raise UserError(f"eval_cap: {cap}; accepted: 1 or more pictures, or null for all")
    splits = manifest.splits
    asking, answering = (np.flatnonzero(np.isin(splits, list(names))) for names in (asks, answers))
    if len(asking) <= cap and len(answering) <= cap:
        return manifest
    by_class = hashed(_SEED, pa.array(manifest.label_names, pa.string()))[manifest.labels]
    by_row = row_keys(manifest, _SEED)
    queries = asking[np.lexsort((by_row[asking], by_class[asking]))[:cap]]
    others = np.setdiff1d(answering, asking)
    wanted = _relevant(manifest, queries)[others]
    kept = np.union1d(queries, others[np.lexsort((by_row[others], ~wanted))[:cap]])
    selected = manifest.select(kept)
    if manifest.truth is None:
        return selected
    files = pa.array(selected.table["file"].to_pylist(), pa.string())
    both = pc.and_(*(pc.is_in(manifest.truth[side], value_set=files) for side in ("query", "item")))
    return Manifest(selected.name, selected.root, selected.table, manifest.truth.filter(both))


def _relevant(manifest: Manifest, queries: np.ndarray) -> np.ndarray:
    """Return (N,) bool: rows that share a query's label; where pairs are stated, those that they name."""
    if manifest.truth is None:
        return np.isin(manifest.labels, np.unique(manifest.labels[queries]))
    asked = pa.array(manifest.table["file"].take(pa.array(queries)).to_pylist(), pa.string())
    named = manifest.truth["item"].filter(pc.is_in(manifest.truth["query"], value_set=asked))
    found = pc.is_in(manifest.table["file"].cast(pa.string()), value_set=pc.unique(named))
    return found.to_numpy(zero_copy_only=False)
