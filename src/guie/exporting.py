"""The story of guie-export: a run, or several, as one file that gives what was evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from guie import assembly, checkpoint, evaluating, images
from guie.build import build, refuse_foreign
from guie.bundle.writing import Order
from guie.bundle.writing import write as write_bundle
from guie.comparing.pairing import read as read_evaluation
from guie.embed.ensemble import Ensemble
from guie.embed.pictures import vectors_of
from guie.embed.several import Models
from guie.errors import UserError
from guie.export.contract import stated
from guie.export.formats import check_formats
from guie.export.source import Request, Source, size_of
from guie.export.verify import Verified
from guie.export.writing import export
from guie.postprocess import saved
from guie.postprocess.layers import width_behind
from guie.postprocess.pipeline import Pipeline
from guie.postprocess.step import Step
from guie.search.exact import Exact
from guie.train.distributed import World

# Pictures from which int8 takes its ranges.
CALIBRATION = 64


def export_configured(cfg: Mapping[str, Any]) -> Verified:
    """Write `pt` as the config says; return what its verification found."""
    source, steps = chosen(cfg)
    return export(
        source,
        cfg["pt"],
        lambda pictures: evaluated(source, steps, pictures),
        format=cfg["format"],
        request=requested(cfg),
        overwrite=cfg["overwrite"],
    )


def bundle_configured(cfg: Mapping[str, Any]) -> str:
    """Write the folder `bundle` as the config says; return what is told of it."""
    source, steps = chosen(cfg)
    order = Order(
        source,
        lambda pictures: evaluated(source, steps, pictures),
        check_formats(cfg["format"]),
        runs_of(cfg),
        requested(cfg),
        Path(cfg["evaluation"]).expanduser() if cfg["evaluation"] else None,
    )
    folder, verified, digest = write_bundle(order, cfg["bundle"], overwrite=cfg["overwrite"])
    return "\n".join([*map(str, verified), f"bundle      {folder}", f"sha256 of manifest.json: {digest}"])


def runs_of(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Return the runs or checkpoints that an export is made of, by name; that of the gate among them."""
    places = {name: str(place) for name, place in evaluating.chosen_models(cfg).items()}
    return places | ({"ckpt_cls": cfg["ckpt_cls"]} if cfg["ckpt_cls"] else {})


def requested(cfg: Mapping[str, Any]) -> Request:
    """Return how the file is to be written."""
    calibration = training_pictures(cfg) if cfg["precision"] == "int8" else []
    return Request(cfg["precision"], cfg["batch"], size_of(cfg["size"]), cfg["pixels"], calibration)


def training_pictures(cfg: Mapping[str, Any], count: int = CALIBRATION) -> list[np.ndarray]:
    """Return `count` pictures (H,W,3) uint8, drawn by `seed`, of what trained the first of the models.

    They are below `data_root`, else where they were in training. Bad pictures are passed over, as there.
    """
    place = next(iter(runs_of(cfg).values()))
    trained = checkpoint.read(checkpoint.locate(Path(place).expanduser(), "last")).meta["config"]
    for name, node in trained["dataset"].items():
        refuse_foreign(node, "guie.datasets", f"{place}: dataset.{name}")
    rows = assembly.training_rows(
        assembly.manifests(trained["dataset"], cfg["data_root"] or trained["data_root"])
    )
    drawn = np.random.default_rng(cfg["seed"]).permutation(len(rows))
    return list(islice(_good(rows, drawn), count))


def _good(rows: Any, drawn: Iterable[int]) -> Iterator[np.ndarray]:
    for row in drawn:
        with suppress(images.BadImage):
            yield images.decode(rows.read(int(row)))


def chosen(cfg: Mapping[str, Any]) -> tuple[Source, list[Step]]:
    """Return what is to be exported, and the steps that its layers were made of."""
    if cfg["ckpt"] == "none":
        raise UserError("ckpt: none; accepted: a run or checkpoint, or several by name")
    models, views = evaluating.trained_models(cfg, World()), assembly.views(cfg)
    space = models.space_id(views)
    pipeline = fitted_steps(cfg, space)
    check_averaged(cfg, models.joined, space)
    facts = {"space_id": pipeline.space_id(space), "vectors_space_id": space, **described(models, pipeline)}
    facts |= {"views": views.told()} if views else {}
    contract = build(cfg["contract"], where="contract") if cfg["contract"] else None
    facts |= stated(contract)
    layers, joined = pipeline.layers(models.width), models.joined
    if contract:
        contract.check_width(width_behind(layers, models.width))
    source = Source(models.embedders, joined.weights, joined.combine, views, layers, facts)
    return source, list(pipeline.steps.values())


def fitted_steps(cfg: Mapping[str, Any], space: str) -> Pipeline:
    """Return the steps of `postprocess`, or all that the folder `fitted` holds, as fitted in `space`.

    Raises UserError where there is no fit of theirs, or one in another space.
    """
    nodes = cfg["postprocess"]
    if cfg["fitted"] and not nodes:
        try:
            nodes = saved.nodes(Path(cfg["fitted"]).expanduser())
        except UserError as error:
            raise UserError(f"fitted: {error}") from error
        for name, node in nodes.items():
            refuse_foreign(node, "guie.postprocess", f"{cfg['fitted']}: {name}")
    pipeline = saved.configured(nodes, Exact(), cfg["fitted"], space_id=space)
    for name, step in pipeline.steps.items():
        if step.unfitted:
            accepted = "fitted=FOLDER, the postprocess/ of an evaluation of the same model"
            raise UserError(f"postprocess.{name}: not fitted; accepted: {accepted}")
    return pipeline


def check_averaged(cfg: Mapping[str, Any], joined: Ensemble, space: str) -> None:
    """Raise UserError where models are averaged that were not evaluated so.

    Whether they share a space is measured on pictures, when they are embedded; an export has none. Steps that
    were fitted in the average's space prove as much as its evaluation.
    """
    if not joined.averages or cfg["fitted"]:
        return
    if not cfg["evaluation"]:
        raise UserError(
            "combine: average, not known to be of one space; accepted: with evaluation=FOLDER of guie-eval "
            "with the same models and weights, where that is measured, or concat"
        )
    seen = read_evaluation("evaluation", cfg["evaluation"])
    found = seen.numbers.get("vectors_space_id", seen.numbers.get("space_id"))
    if found != space:
        raise UserError(f"evaluation: {seen.folder} is of space {found}; accepted: {space}, of these models")


def described(models: Models, pipeline: Pipeline) -> dict[str, Any]:
    """Return what a file says of the models and steps in it, nothing where there is one model alone."""
    told: dict[str, Any] = {}
    if len(models.embedders) > 1:
        of_each = {name: asdict(one.preprocess) for name, one in models.embedders.items()}
        told |= {**models.joined.told(), "models": of_each}
    if pipeline.steps:
        told["postprocess"] = {name: _told(step) for name, step in pipeline.steps.items()}
    return told


def _told(step: Step) -> dict[str, Any]:
    """Return a step's kind and what its result depends on: no place on this machine."""
    return {"_target_": saved.node_of(step)["_target_"], **step.identity()}


def evaluated(source: Source, steps: Iterable[Step], pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return what evaluation makes of pictures (3,H,W) uint8, (N,D) float32: nothing of `export` is in it."""
    parts = {name: vectors_of(one, pictures, source.views) for name, one in source.embedders.items()}
    vectors = Ensemble(source.weights, source.combine).joined(parts)
    for step in steps:
        vectors = step.apply(vectors, "gallery")
    return vectors
