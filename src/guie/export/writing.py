"""Write what was evaluated as a file that runs without guie, and prove it before it gets its name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from guie.durable import sync
from guie.errors import UserError
from guie.export.contract import check_promise, promised
from guie.export.destination import check_beside, check_destination, move_in_place, staging
from guie.export.drawn import drawing
from guie.export.formats import FORMATS, Tolerance, check_gated, check_precision, tolerance, writer
from guie.export.golden import GOLDEN_BATCHES, GOLDEN_SIZES, Evaluate, Golden, make_golden, normalised
from guie.export.quantise import check_calibration
from guie.export.source import Request, Source, evaluating
from guie.export.verify import Verified, compare, describe

log = logging.getLogger("guie")

GOLDEN_NAME = "golden.npz"
# The golden pairs and the archive's own bookkeeping, on top of the weights.
SPARE_BYTES = 32_000_000


def export(
    source: Source,
    path: str | Path,
    evaluate: Evaluate,
    *,
    format: str = "torchscript",
    request: Request | None = None,
    overwrite: bool = False,
) -> Verified:
    """Write `path` and the golden file beside it; return what the verification found.

    The file takes (B,3,H,W) RGB, uint8 or float 0..255, and gives (B,D) float32 unit vectors. It is built in
    a folder of its own, loaded in a process without the project, compared with what `evaluate` gives, and
    only then moved in place: when anything fails, what lay at `path` before is untouched. Raises UserError
    (destination, format, verification).
    """
    request = request or Request()
    check_request(source, request, format)
    target = check_destination(path, overwrite=overwrite, need_bytes=source.size_bytes + SPARE_BYTES)
    told = _told(target)
    check_beside(FORMATS[format].weights_of(target), told.get("parts", {}))
    name = golden_name(target, told.get("golden"))
    with staging(target) as folder, evaluating(source) as still:
        log.info("embedding the golden pictures as the evaluation does")
        golden = golden_of(still, request, evaluate)
        digest = golden.save(folder / name)
        facts = {"golden": name, "golden_sha256": digest}
        verified, files = written(still, request, format, folder / target.name, folder / name, facts)
        made = (folder / name, *reversed(files))  # the file that names the others comes last
        for file in made:  # before the first has its name: a crash finds all of one export, nearly always
            sync(file)
        for file in made:
            move_in_place(file, target.parent / file.name)
    return replace(verified, path=target, golden=target.parent / name)


def written(
    source: Source, request: Request, format: str, path: Path, golden: Path, facts: Mapping[str, Any]
) -> tuple[Verified, list[Path]]:
    """Write a file of a source in eval mode and verify it; return with it all files, `path` first.

    `facts` are put into the file beside those of source and request.
    """
    allowed = tolerance(format, request.precision)
    contract = promised(source.facts)
    with np.load(golden) as pairs:
        vectors = np.concatenate([pairs[key] for key in pairs.files if key.startswith("vectors_")])
    width = vectors.shape[1]
    told = {
        "format": format,
        "guie": _version(),
        **request.told(),
        "preprocess": asdict(source.preprocess),
        "embed_dim": width,
        "tolerance": asdict(allowed),
        **source.facts,
        **facts,
    }
    if contract:
        contract.check_width(width)
    if alike(vectors, allowed):
        log.warning("the golden vectors differ by less than is allowed: verifying tells little of this model")
    log.info("writing %s as %s, %s", path.name, format, request.precision)
    files = writer(format).write(source, request, path, told)
    log.info("verifying it in a process of its own")
    verified = compare(path, golden, allowed)
    check_promise(path, told)
    return verified, files


def alike(vectors: np.ndarray, allowed: Tolerance) -> bool:
    """Return whether unit vectors (N,D) of different pictures could be taken for one another."""
    apart = float(np.ptp(vectors, axis=0).max())
    return allowed.kept(apart, float((vectors @ vectors.T).min()))


def check_request(source: Source, request: Request, formats: str | Sequence[str]) -> None:
    """Raise UserError where a source cannot be written so, before anything is embedded."""
    check_precision(formats, request.precision)
    if source.views is not None and source.views.gating is not None:
        check_gated(formats)
    if request.precision == "int8":
        check_calibration(request)
    if request.pixels == "levels":
        return
    sided = any(getattr(one, "side_dim", 0) for one in source.embedders.values())
    refused = {
        "several embedders": len(source.embedders) > 1,
        "views": source.views is not None,
        "side inputs": sided,
    }
    if found := [what for what, holds in refused.items() if holds]:
        raise UserError(
            f"pixels: normalised with {found[0]}; accepted: levels, which the file needs for them"
        )


def golden_of(source: Source, request: Request, evaluate: Evaluate) -> Golden:
    """Return the pairs that a file must reproduce: of any size and batch, or of the one that it takes."""
    batches = GOLDEN_BATCHES if request.batch is None else (request.batch,)
    if request.pixels == "normalised":
        inputs = _normalised(source)
        return make_golden(evaluate, sizes=[source.preprocess.size_px], batches=batches, inputs=inputs)
    sizes = (request.size_px,) if request.size_px else GOLDEN_SIZES
    return make_golden(evaluate, sizes=sizes, batches=batches, drawing=drawing(source))


def _normalised(source: Source) -> Callable[[np.ndarray], np.ndarray]:
    """Return how pictures become what the network reads: (N,3,H,W) uint8 to (N,3,h,w) float32."""
    spec = source.preprocess
    return lambda pictures: np.stack([normalised(p.transpose(1, 2, 0), spec) for p in pictures])


def golden_name(target: Path, recorded: str | None = None) -> str:
    """Return the name that the file at `target` has `recorded` for its golden pairs, else one that is free.

    `golden.npz`, or `<stem>.golden.npz` where that one belongs to another file of the folder, or
    `<name>.golden.npz`.
    """
    if recorded:
        return recorded
    free = [GOLDEN_NAME, f"{target.stem}.{GOLDEN_NAME}"]
    own = f"{target.name}.{GOLDEN_NAME}"
    return next((n for n in free if n != target.name and not (target.parent / n).exists()), own)


def _told(target: Path) -> dict[str, Any]:
    """Return what the file that is to be replaced says of itself, nothing where there is none."""
    try:
        return describe(target)
    except UserError:
        return {}


def _version() -> str:
    try:
        return version("guie")
    except PackageNotFoundError:
        return "unknown"
