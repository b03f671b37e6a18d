"""Fitted steps on disk: postprocess.json with settings, postprocess.safetensors with what was fitted.

{"format": 1, "fitted_in": space of the training vectors,
 "steps": {name: {"_target_": dotted path, parameter: value}}}      in the order in which they act
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guie.build import build
from guie.durable import replace_file
from guie.errors import UserError
from guie.postprocess.pipeline import Pipeline
from guie.postprocess.step import Step
from guie.types import Search

FORMAT = 1
PLAIN, ARRAYS = "postprocess.json", "postprocess.safetensors"


def save(pipeline: Pipeline, folder: str | Path, *, space_id: str) -> Path:
    """Write the steps and what was fitted in the space `space_id`; return `folder`.

    The settings are written last: a folder that has them is complete.
    """
    from safetensors.numpy import save as to_bytes

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAIN).unlink(missing_ok=True)
    steps = _kept(pipeline).items()
    arrays = {f"{name}/{key}": value for name, step in steps for key, value in step.state().items()}
    plain = {"format": FORMAT, "fitted_in": space_id, "steps": {name: node_of(step) for name, step in steps}}
    replace_file(folder / ARRAYS, to_bytes(arrays))
    replace_file(folder / PLAIN, (json.dumps(plain, indent=2) + "\n").encode())
    return folder


def configured(nodes: Mapping[str, Any], search: Search, fitted: str | None, *, space_id: str) -> Pipeline:
    """Return the steps that a config's `postprocess` names over `search`, with what the folder `fitted` has.

    Raises UserError as `load` does, and for `fitted` without steps.
    """
    if fitted and not nodes:
        raise UserError(f"fitted: {fitted} without steps; accepted: with 'postprocess=[NAME]'")
    steps = {name: build(node, where=f"postprocess.{name}") for name, node in nodes.items()}
    pipeline = Pipeline(steps, search)
    if fitted:
        load(pipeline, Path(fitted).expanduser(), space_id=space_id)
    return pipeline


def load(pipeline: Pipeline, folder: str | Path, *, space_id: str) -> None:
    """Give the steps of `pipeline` what was fitted, exactly as it was saved.

    Raises UserError where steps or settings differ from the saved ones, naming the first key that does, or
    where they were fitted in another space than `space_id`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    plain = _read(folder)
    if plain["fitted_in"] != space_id:
        raise UserError(
            f"{folder}: fitted in space {plain['fitted_in']}; accepted: {space_id} (fit again with it)"
        )
    _check_same(pipeline, plain["steps"], folder)
    try:
        arrays = load_file(folder / ARRAYS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / ARRAYS}: cannot be read ({error}); accepted: what guie wrote") from error
    for name, step in pipeline.steps.items():
        state = {key.partition("/")[2]: arrays[key] for key in arrays if key.startswith(f"{name}/")}
        if state:
            step.load(state)


def nodes(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return the saved steps as config nodes by name, in the order in which they act."""
    return _read(Path(folder))["steps"]


def node_of(step: Step) -> dict[str, Any]:
    """Return a step as the config node that makes it."""
    return {"_target_": f"{type(step).__module__}.{type(step).__qualname__}", **step.settings()}


def _kept(pipeline: Pipeline) -> dict[str, Step]:
    """Return what is fitted, and what it was fitted behind."""
    return {name: step for name, step in pipeline.steps.items() if step.kind != "rerank" or step.needs_bank}


def _read(folder: Path) -> dict[str, Any]:
    try:
        plain = json.loads((folder / PLAIN).read_bytes())
        if plain["format"] != FORMAT or not isinstance(plain["steps"], dict) or "fitted_in" not in plain:
            raise ValueError(f"format {plain['format']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: no saved post-processing ({error}); accepted: a folder with {PLAIN} and {ARRAYS}"
        ) from error
    return plain


def _check_same(pipeline: Pipeline, saved: dict[str, dict[str, Any]], folder: Path) -> None:
    steps = _kept(pipeline)
    if list(saved) != list(steps):
        given, kept = ", ".join(steps) or "no step", ", ".join(saved) or "no step"
        raise UserError(f"postprocess: {given}; accepted: {kept}, as {folder} has")
    for name, step in steps.items():
        node = node_of(step)
        for key in node | saved[name]:
            now, then = node.get(key), saved[name].get(key)
            if now != then:
                raise UserError(f"postprocess.{name}.{key}: {now!r}; accepted: {then!r}, as {folder} has")
