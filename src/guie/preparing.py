"""One data set from raw files to a prepared folder: what guie-prepare does.

OUT/manifest.parquet      the good pictures; beside the usual columns width, height, sha256, phash
OUT/truth.parquet         the protocol's pairs, where it states some
OUT/prepared.json         where the pictures are and how the folder was made
OUT/summary.json          counts and findings, printed as well
OUT/bad_images.csv        pictures that cannot be used, each with its reason
OUT/label_conflicts.csv   the same bytes under several labels
OUT/leakage.csv           evaluated pictures that are in training, too
OUT/preview.html          pictures and class sizes to look at
OUT/augment.html          with preview=AUGMENTATION: pictures as training would show them
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from guie import assembly
from guie.build import build, signature
from guie.datasets.known import FACTS, MANIFEST, TRUTH, opened, refuse_other
from guie.datasets.manifest import Manifest
from guie.datasets.published import published
from guie.durable import write_durably
from guie.errors import UserError
from guie.prepare import destination, duplicates, summary
from guie.prepare.shards import Facts, Notice, examined, list_bad
from guie.types import Preprocess


def prepare(cfg: Mapping[str, Any], place: str | None, notice: Notice) -> Path:
    """Prepare the one data set of `cfg` and return its folder; `place` is its parameter that takes `raw`.

    Raises:
        UserError: settings that cannot be, raw files that are incomplete or change meanwhile, too many bad
            pictures, or a folder that may not be written. Nothing half-made gets the folder's name.

    """
    _check(cfg)
    source = _source(cfg, place)
    out = Path(cfg["out"]).expanduser().absolute()
    source.refuse(out)
    if not (cfg["augment"] and (out / FACTS).exists() and not cfg["overwrite"]):
        _prepare(source, out, cfg, place, notice)
    if cfg["augment"]:
        _draw_sheet(source, out, cfg, notice)
    return out


def _prepare(source: _Source, out: Path, cfg: Mapping[str, Any], place: str | None, notice: Notice) -> None:
    with destination.opened(out, overwrite=cfg["overwrite"]) as work:
        data_root = source.data_root or str(work.folder / "listing")
        manifest = assembly.manifests({source.name: source.node}, data_root)[source.name]
        source.refuse(out, manifest.root)
        facts = examined(
            manifest,
            work.shards,
            workers=cfg["workers"] or os.cpu_count() or 1,
            max_bad_share=cfg["max_bad_share"],
            notice=notice,
        )
        work.finished.mkdir()
        found = _write(work.finished, source, manifest, facts, cfg, notice)
        work.publish()
    print("\n".join(summary.lines(found)))
    print(f"prepared    {out}")
    if cfg["preview"]:
        print(f"preview     {out / 'preview.html'}")
    print(f"train on it guie-train {_way_back(source, place, out, manifest.root.resolve())}")


def _draw_sheet(source: _Source, out: Path, cfg: Mapping[str, Any], notice: Notice) -> None:
    """Draw the augmentation's page from the prepared folder."""
    import yaml

    from guie.prepare.sheet import write_sheet

    refuse_other(source.name, {**source.node, "root": str(out)}, str(out))
    rows = opened(out, source.name)
    rows = rows.split("train") if "train" in rows.splits else rows
    preprocess = Preprocess()
    facts = {"preprocess": preprocess, "pictures": rows, "num_steps": 1}
    augment = build(cfg["augment"], where="augment", **facts)
    notice("drawing the augmentation", 0, 0)
    settings = yaml.safe_dump(dict(cfg["augment"]), sort_keys=False)
    path = out / "augment.html"
    write_sheet(path, rows, augment, preprocess, seed=cfg["seed"], settings=settings)
    print(f"augmentation {path}")


def _check(cfg: Mapping[str, Any]) -> None:
    if not cfg["out"]:
        raise UserError("out: a value is required: the folder that will hold the manifest")
    for key, least, most in (("min_images", 1, None), ("near_bits", 0, 8), ("max_bad_share", 0, 1)):
        if cfg[key] < least or (most is not None and cfg[key] > most):
            upper = "or more" if most is None else f"to {most}"
            raise UserError(f"{key}: {cfg[key]}; accepted: {least} {upper}")
    if cfg["workers"] is not None and cfg["workers"] < 1:
        raise UserError(f"workers: {cfg['workers']}; accepted: 1 or more, or null for all cores")


@dataclass(frozen=True)
class _Source:
    """A data set's config as it is listed here: at its raw place, without rules.

    `data_root` is None where `raw` was given: what the listing wants to keep goes to the folder of the
    work, for the data root itself may be what is prepared. `raw` is None where the set needs no files.
    """

    name: str
    node: dict[str, Any]
    data_root: str | None
    raw: Path | None

    def refuse(self, out: Path, root: Path | None = None) -> None:
        """Refuse an `out` among the raw files, or among the pictures below `root`; UserError.

        Beside a list is not among them: a list in a home folder has all of it for its root.
        """
        if self.raw is None or (self.raw.is_file() and root in (None, self.raw.parent)):
            return
        destination.refuse_inside(out, root or destination.ground(self.raw))


def _source(cfg: Mapping[str, Any], place: str | None) -> _Source:
    nodes = cfg["dataset"]
    if len(nodes) != 1:
        raise UserError(f"dataset: {', '.join(nodes) or 'nothing chosen'}; accepted: one name")
    name, node = next(iter(nodes.items()))
    node = dict(node)
    if any(p.name == "rules" for p in signature(node["_target_"])):
        node["rules"] = None  # they act when the prepared folder is opened
    base = Path(cfg["data_root"]).expanduser().absolute()
    if cfg["raw"] is None:
        if place is not None and node.get(place) is None:
            raise UserError(f"raw: a value is required: where the raw files of {name} are ({place})")
        raw = base / Path(node[place]).expanduser() if place is not None else None
        data_root = str(base)
    else:
        if place is None:
            raise UserError(f"raw: {cfg['raw']}, but {name} needs none; accepted: no raw=")
        raw = Path(cfg["raw"]).expanduser().absolute()
        # Other places that a data set has (the pictures of a list) stay relative to the data root.
        node |= {key: str(base / node[key]) for key in {"root"} & set(node) - {place} if node[key]}
        node[place], data_root = str(raw), None
    if raw is not None and (raw / FACTS).exists():
        raise UserError(f"raw: {raw} is a prepared folder ({FACTS}); accepted: the raw files")
    return _Source(name, node, data_root, raw)


def _write(
    folder: Path, source: _Source, manifest: Manifest, facts: Facts, cfg: Mapping[str, Any], notice: Notice
) -> dict[str, Any]:
    """Fill the folder and return the summary."""
    good = np.setdiff1d(np.arange(len(manifest)), np.fromiter(facts.reasons, np.int64))
    if not len(good):
        raise UserError(
            f"dataset {source.name}: none of {len(manifest):,} pictures can be used; accepted: at least one"
        )
    kept, kept_facts = manifest.select(good), facts.of(good)
    kept = Manifest(source.name, manifest.root, with_facts(kept.table, kept_facts), manifest.truth)
    notice("looking for duplicates", 0, 0)
    codes = duplicates.content_codes(kept_facts.sha256)
    torn = duplicates.under_two_labels(codes, kept.labels)
    hashes = (kept_facts.phash, kept_facts.structured)
    leaks = duplicates.leaks(codes, *hashes, kept.splits, cfg["near_bits"])
    copies = len(codes) - len(np.unique(codes))
    limits = {key: cfg[key] for key in ("near_bits", "min_images")}
    bad = len(facts.reasons)
    counted = summary.summarised(kept, bad=bad, copies=copies, torn=torn, found=leaks, **limits)
    packed = kept.table["entry"].null_count < len(kept)
    found = summary.with_stated(counted, published(source.name, source.node, packed=packed))
    kept.write(folder / MANIFEST)
    _write_truth(folder / TRUTH, manifest, facts)
    list_bad(folder / "bad_images.csv", manifest, facts.reasons)
    _write_csv(folder / "label_conflicts.csv", _CONFLICT, _conflicts(kept, torn))
    _write_csv(folder / "leakage.csv", _LEAK, _leaks(kept, leaks))
    _write_json(folder / "summary.json", found)
    if cfg["preview"]:
        from guie.prepare.preview import write_preview

        notice("drawing the preview", 0, 0)
        write_preview(folder / "preview.html", kept, found, leaks, seed=cfg["seed"])
    settings = {key: value for key, value in source.node.items() if key != "rules"}
    root = str(manifest.root.resolve())
    _write_json(folder / FACTS, {"format": 1, "dataset": source.name, "root": root, "settings": settings})
    return found


def with_facts(table: pa.Table, facts: Facts) -> pa.Table:
    """Return a table with the columns width, height, sha256 (hex) and phash (null: no structure)."""
    made = {
        "width": pa.array(facts.width),
        "height": pa.array(facts.height),
        "sha256": _hex(facts.sha256),
        "phash": pa.array(facts.phash, mask=~facts.structured),
    }
    for column, values in made.items():
        if column in table.column_names:
            table = table.drop_columns([column])
        table = table.append_column(column, values)
    return table


def _hex(values: np.ndarray) -> pa.Array:
    """Return (N,W) uint8 as text, without a Python string per row."""
    digits = 2 * values.shape[1]
    offsets = pa.py_buffer(np.arange(len(values) + 1, dtype=np.int64) * digits)
    text = pa.py_buffer(values.tobytes().hex().encode())
    return pa.LargeStringArray.from_buffers(len(values), offsets, text)


def _write_truth(path: Path, manifest: Manifest, facts: Facts) -> None:
    """Write the pairs whose pictures can both be used."""
    if manifest.truth is None:
        return
    import pyarrow.compute as pc
    from pyarrow import parquet

    bad = pa.array([manifest.place(row)[0] for row in facts.reasons], pa.string())
    lost = pc.or_(pc.is_in(manifest.truth["query"], bad), pc.is_in(manifest.truth["item"], bad))
    parquet.write_table(manifest.truth.filter(pc.invert(lost)), path)


_CONFLICT = ("group", "file", "entry", "label", "split")
_LEAK = ("kind", "distance", "split", "file", "entry", "label", "train_file", "train_entry", "train_label")


def _conflicts(manifest: Manifest, torn: Iterable[np.ndarray]) -> Iterable[tuple]:
    for number, group in enumerate(torn):
        for row in map(manifest.row, group.tolist()):
            yield number, row.file, row.entry or "", row.label, row.split


def _leaks(manifest: Manifest, leaks: duplicates.Leaks) -> Iterable[tuple]:
    for at, (here, there) in enumerate(zip(leaks.rows.tolist(), leaks.sources.tolist(), strict=True)):
        row, source = manifest.row(here), manifest.row(there)
        kind = ("identical", "") if leaks.exact[at] else ("near", int(leaks.distance[at]))
        places = (row.split, row.file, row.entry or "", row.label)
        yield *kind, *places, source.file, source.entry or "", source.label


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_durably(path, text.getvalue().encode())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_durably(path, (json.dumps(content, indent=1) + "\n").encode())


def _way_back(source: _Source, place: str | None, out: Path, root: Path) -> str:
    """Return the arguments that open the prepared folder: by its own function where that can, else as a list.

    Opening it makes the copy that later openings map.
    """
    name = source.name
    try:
        if place == "root":
            opened = assembly.manifests({name: {**source.node, place: str(out)}}, str(out))
            if opened[name].root == root:
                return f"dataset={name} dataset.{name}.root={out}"
    except UserError:
        pass
    return f"dataset=csv dataset.csv.path={out / MANIFEST} dataset.csv.root={root}"
