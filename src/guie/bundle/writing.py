"""Write a bundle: all of it into a folder of its own, verified as whoever gets it would, then in place."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from guie import checkpoint, runfolder
from guie.bundle import check, decoding, measured
from guie.bundle.card import Contents, card
from guie.bundle.licences import of_software
from guie.bundle.lineage import lineage
from guie.bundle.measured import Measured
from guie.bundle.verifying import SHIPPED, alone
from guie.durable import replace_folder
from guie.errors import UserError
from guie.export import writing
from guie.export.destination import check_place, staging
from guie.export.formats import FORMATS, check_formats
from guie.export.golden import Evaluate
from guie.export.source import Request, Source, evaluating
from guie.export.verify import Verified, describe, sha256_of

log = logging.getLogger("guie")

GOLDEN, DECODING, TOLD = "golden.npz", "decoding.npz", "preprocess.json"
# What runs a format, and the package that brings it.
ENGINES = {"torchscript": "torch", "pt2": "torch", "onnx": "onnxruntime", "openvino": "openvino"}
READS = ("numpy", "pillow", "simplejpeg")
MADE_BY = ("guie", "torch", "timm", "open_clip_torch")
LICENCE = "LICENSE-guie.txt"  # of the scripts that are shipped
# What preprocess.json says is what every model file says of itself.
FACTS: tuple[str, ...] = ("space_id", "vectors_space_id", "embed_dim", "preprocess", "views", "models")
FACTS += ("weights", "combine", "postprocess")
FACTS += ("pixels", "size_px", "batch", "precision", "contract", "guie")


@dataclass(frozen=True)
class Order:
    """What a bundle is to hold: `source` in each of `formats`, as `evaluate` saw it.

    `runs` are the runs or checkpoints by the source's names; `evaluation` is a folder of guie-eval.
    """

    source: Source
    evaluate: Evaluate
    formats: Sequence[str]
    runs: Mapping[str, str | Path]
    request: Request = field(default_factory=Request)
    evaluation: Path | None = None


def check_folder(folder: str | Path, *, overwrite: bool = False, need_bytes: int = 0) -> Path:
    """Return the absolute path of the bundle's folder.

    Raises UserError where it cannot be written, where it exists and `overwrite` is false, and where it holds
    something else than a bundle, which is never replaced.
    """
    target = Path(folder).expanduser().absolute()
    check_place(target, need_bytes=need_bytes, key="bundle")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not overwrite:
        raise UserError(f"bundle: {folder} exists; choose another name or say overwrite=true")
    try:
        check.read_manifest(target)
    except ValueError as error:
        raise UserError(f"bundle: {folder} is no bundle ({error}); accepted: a new name") from error
    return target


def write(order: Order, folder: str | Path, *, overwrite: bool = False) -> tuple[Path, list[Verified], str]:
    """Write the bundle; return its folder, what each model's verification found, the manifest's sha256.

    What lay there before is untouched until all of the new one is written and verified. Raises UserError.
    """
    formats = check_formats(order.formats)
    check_request(order)
    writing.check_request(order.source, order.request, formats)
    need = order.source.size_bytes * len(formats) + writing.SPARE_BYTES
    target = check_folder(folder, overwrite=overwrite, need_bytes=need)
    found = measured.read(order.evaluation, order.source.facts) if order.evaluation else measured.NOTHING
    with staging(target, "bundle") as beside:
        made = beside / target.name
        made.mkdir()
        verified = _filled(made, target.name, order, formats, found)
        digest = write_manifest(made, _models(made, formats))
        alone(made, run=False)
        replace_folder(made, target, beside / "former")
    there = [replace(one, path=target / one.path.name, golden=target / GOLDEN) for one in verified]
    return target, there, digest


def check_request(order: Order) -> None:
    """Raise UserError where a bundle could not read pictures as the model needs them."""
    if order.request.pixels != "levels":
        raise UserError(
            "pixels: normalised in a bundle, which would have to resize outside of the model; accepted: "
            "levels, or pt=FILE"
        )
    models: list[Any] = list(order.source.embedders.values())
    grounds = {tuple(model.preprocess.background) for model in models}
    if len(grounds) > 1:
        told = " and ".join(map(str, sorted(grounds)))
        raise UserError(f"ckpt: models that see transparency on {told}; accepted in a bundle: one background")


def _filled(folder: Path, name: str, order: Order, formats: Sequence[str], found: Measured) -> list[Verified]:
    """Write all but the manifest; return what the verification of each model found."""
    labels = write_labels(folder, order.runs)
    decoding.save(folder / DECODING, order.source.preprocess.background)
    kept = {part: sha256_of(folder / part) for part in (DECODING, *labels)}
    verified = _write_models(folder, order, formats, kept)
    told = _told(describe(verified[0].path))
    _write_json(folder / TOLD, told)
    if found.thresholds:
        found.thresholds.save(folder)
    ship(folder, formats)
    software = [*of_software("runs it", needed(formats)), *of_software("made it", made_by(formats))]
    made_of = lineage(list(order.runs.values()))
    contents = Contents(name, told, _models(folder, formats), verified, found, made_of, software, labels)
    (folder / "card.md").write_text(card(contents), encoding="utf-8")
    _write_json(folder / "licences.json", contents.licences)
    return verified


def _write_models(
    folder: Path, order: Order, formats: Sequence[str], kept: Mapping[str, str]
) -> list[Verified]:
    """Write the golden pairs and a model in each format, which names them and `kept` by their sha256."""
    with evaluating(order.source) as still:
        log.info("embedding the golden pictures as the evaluation does")
        golden = writing.golden_of(still, order.request, order.evaluate)
        facts = {"golden": GOLDEN, "golden_sha256": golden.save(folder / GOLDEN), "kept": dict(kept)}
        return [
            writing.written(still, order.request, one, folder / model_name(one), folder / GOLDEN, facts)[0]
            for one in formats
        ]


def model_name(format: str) -> str:
    """Return what a bundle calls its model of a format."""
    return f"model{FORMATS[format].suffix}"


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in FACTS if key in facts}


def _models(folder: Path, formats: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the manifest says of the models, read from their files."""
    found = []
    for one in formats:
        facts = describe(folder / model_name(one))
        files = [model_name(one), *facts.get("parts", {})]
        told = {key: facts[key] for key in ("format", "precision", "golden", "tolerance")}
        size = sum((folder / name).stat().st_size for name in files)
        found.append({"file": files[0], "parts": files[1:], "engine": ENGINES[one], "bytes": size, **told})
    return found


def write_labels(folder: Path, runs: Mapping[str, str | Path]) -> list[str]:
    """Write labels.csv (id, label, full), one for each run where they differ; return the files' names.

    That of a model alone keeps the name beside the one of its gate.
    """
    tables = {name: _labels(Path(place).expanduser()) for name, place in runs.items()}
    alike = len(set(tables.values())) == 1
    written = {
        f"labels-{name}.csv" if name and not alike else "labels.csv": text
        for name, text in tables.items()
        if text
    }
    for file, text in written.items():
        (folder / file).write_text(text, encoding="utf-8", newline="")
    return sorted(written)


def _labels(place: Path) -> str:
    """Return the classes of a run or of one of its checkpoints as CSV, '' where they are not at hand."""
    try:
        found = checkpoint.locate(place, "last")  # of a run in stages that of the last one
    except UserError:
        return ""
    run = found.parent.parent if found.parent.name == "checkpoints" else found
    rows = runfolder.read_labels(run) or []
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def ship(folder: Path, formats: Sequence[str]) -> None:
    """Copy what runs without guie with its licence, and write down what that needs."""
    for path in SHIPPED:
        shutil.copyfile(path, folder / path.name)
    (folder / LICENCE).write_text(distribution("guie").read_text("licenses/LICENSE") or "", encoding="utf-8")
    lines = [f"{package}  # made with {version(package).partition('+')[0]}" for package in needed(formats)]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def needed(formats: Sequence[str]) -> list[str]:
    """Return the packages that a bundle of these formats runs with."""
    return [*READS, *dict.fromkeys(ENGINES[one] for one in formats)]


def made_by(formats: Sequence[str]) -> list[str]:
    """Return the packages that wrote it."""
    return [*MADE_BY, *dict.fromkeys(package for one in formats for package in FORMATS[one].packages)]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_manifest(folder: Path, models: Sequence[Mapping[str, Any]]) -> str:
    """List the models and every file with its sha256 and length; return the manifest's own sha256."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.name != check.MANIFEST
    }
    data = check.sealed({"format": check.FORMAT, "files": files, "models": list(models)})
    (folder / check.MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()
