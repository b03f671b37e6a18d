"""The story of guie-export huggingface=FOLDER: a run's weights, config and card as the hub keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from guie import assembly, checkpoint, evaluating, huggingface
from guie.bundle.lineage import lineage
from guie.checkpoint import State
from guie.embed.pictures import vectors_of
from guie.embed.space import space_id
from guie.errors import UserError
from guie.export.golden import draw
from guie.publishing.card import Told, card, measured_in

# What a config says of one machine, or of how a run was begun, and not of the model.
OF_THE_MACHINE = {"run_dir", "resume", "hw", "launch", "tracker", "device", "dry_run"}
OF_THE_MACHINE |= {"stages", "only", "leakage", "memory_mib", "bad_images", "max_bad_share"}
# Keys of guie-export that have no meaning for weights, with the value that says nothing.
OF_A_FILE: dict[str, Any] = {
    **{"format": "torchscript", "precision": "fp32", "batch": None, "size": None, "pixels": "levels"},
    **{"ckpt_cls": None, "views": None, "weights": None, "postprocess": {}, "fitted": None, "contract": None},
}


def publish_configured(cfg: Mapping[str, Any]) -> str:
    """Write the folder that the config says; return a line on what was written and read back."""
    folder = huggingface.check_new(cfg["huggingface"], overwrite=cfg["overwrite"])
    _check_alone(cfg)
    place = evaluating.chosen_models(cfg).get("")
    if place is None:
        raise UserError(f"ckpt: {cfg['ckpt']} with huggingface; accepted: one run or checkpoint")
    embedder, meta = assembly.trained_embedder(place)
    if cfg["keep"] is not None:
        embedder.cut_to(cfg["keep"])
    results = cfg["evaluation"] or place
    return publish(folder, embedder, meta, place, Path(results).expanduser(), asked=bool(cfg["evaluation"]))


def _check_alone(cfg: Mapping[str, Any]) -> None:
    for key, nothing in OF_A_FILE.items():
        if cfg.get(key, nothing) != nothing:
            raise UserError(
                f"{key}: {cfg[key]} with huggingface, which holds a run's weights as trained; "
                "accepted: an export to a file of its own (pt=FILE)"
            )


def publish(
    folder: Path, embedder: Any, meta: Mapping[str, Any], place: str, results: Path, *, asked: bool
) -> str:
    """Write, read back and compare; only then the folder has its name. Return a line on it.

    `place` is the run's, `results` the folder of an evaluation whose metrics go into the card; one that was
    `asked` for has to be there.
    """
    told = published_meta(embedder, meta)
    found = measured_in(results, told["space_id"], asked=asked)
    text = card(Told(folder.name, told, lineage([place]), found))
    state = State(meta["step"], {"embedder": embedder.state_dict()}, meta=told)
    try:
        with checkpoint.published(folder, state, text) as written:
            _check_read_back(written, embedder, told["space_id"])
    except OSError as error:
        raise UserError(
            f"huggingface: writing {folder} failed: {error.strerror or error}; nothing was replaced"
        ) from error
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return f"{folder}: {size:.1f} MB, read back as space {told['space_id']}; hf upload OWNER/NAME {folder}"


def published_meta(embedder: Any, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says: what was saved with the weights, but for what is of one machine."""
    config = {key: value for key, value in meta["config"].items() if key not in OF_THE_MACHINE}
    if hasattr(embedder.neck, "keep"):
        config["neck"] = {**config["neck"], "keep": embedder.keep}
    kept = {key: value for key, value in meta.items() if key != "ckpt"}
    own = {"library_name": "guie", "guie": version("guie"), "space_id": space_id(embedder)}
    return own | {"embed_dim": embedder.embed_dim} | portable({**kept, "config": config, **own})


def portable(value: Any) -> Any:
    """Return nested values in which a folder of this machine is its last name."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value


def _check_read_back(written: Path, embedder: Any, space: str) -> None:
    """Raise UserError unless what lies in the folder makes the space and the vectors of the embedder."""
    again, meta = assembly.trained_embedder(written)
    if meta["space_id"] != space:
        raise UserError(f"huggingface: read back as space {meta['space_id']}; accepted: {space}, the run's")
    pictures = [draw(size, 1, seed=0)[0] for size in ((37, 50), (64, 31))]
    if not np.array_equal(vectors_of(embedder, pictures), vectors_of(again, pictures)):
        raise UserError("huggingface: read back it gives other vectors; accepted: those of the run")
