"""What guie-export is asked to do, judged before torch is loaded and a checkpoint read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from guie import assembly, huggingface
from guie.build import build
from guie.errors import UserError
from guie.export.destination import check_destination, check_place
from guie.export.formats import check_formats, check_gated, check_name, check_precision
from guie.export.source import Request, size_of


def ordered(cfg: Mapping[str, Any]) -> Callable[[], Any]:
    """Return the job that a config asks for; it gives what is told at its end.

    Raises UserError for all that can be known to fail: keys that contradict each other, names and places.
    """
    kinds = {"pt": _file, "bundle": _bundle, "huggingface": _for_hub, "verify": _check}
    asked = [key for key in kinds if cfg[key]]
    if len(asked) != 1:
        given = " and ".join(asked) or "nothing"
        raise UserError(f"pt: {given} given; accepted: one of pt=FILE, bundle, huggingface or verify=PATH")
    if cfg["device"] != "cpu" and not cfg["verify"]:
        raise UserError(f"device: {cfg['device']} with {asked[0]}; accepted: cpu, or any with verify=PATH")
    return kinds[asked[0]](cfg)


def _file(cfg: Mapping[str, Any]) -> Callable[[], Any]:
    _check_request(cfg)
    format, *others = check_formats(cfg["format"])
    if others:
        raise UserError(f"format: {cfg['format']} in one file; accepted: one of them, or bundle=FOLDER")
    if cfg["evaluation"] and cfg["combine"] != "average":
        raise UserError(
            f"evaluation: {cfg['evaluation']} with pt, which has no card to tell of it; accepted: with "
            "bundle or huggingface, or with combine=average"
        )
    check_name(cfg["pt"], format)
    check_destination(cfg["pt"], overwrite=cfg["overwrite"])
    from guie.exporting import export_configured

    return partial(export_configured, {**cfg, "format": format})


def _bundle(cfg: Mapping[str, Any]) -> Callable[[], str]:
    from guie.bundle.writing import check_folder

    check_formats(cfg["format"])
    _check_request(cfg)
    check_folder(cfg["bundle"], overwrite=cfg["overwrite"])
    from guie.exporting import bundle_configured

    return partial(bundle_configured, cfg)


def _check_request(cfg: Mapping[str, Any]) -> None:
    gated = bool(cfg["views"] and cfg["views"].get("gate"))
    if gated:
        check_gated(cfg["format"])
    if gated != bool(cfg["ckpt_cls"]):
        assembly.views(cfg)  # says which of the two is missing
    Request(cfg["precision"], cfg["batch"], size_of(cfg["size"]), cfg["pixels"])
    check_precision(cfg["format"], cfg["precision"])
    if cfg["contract"]:
        contract = build(cfg["contract"], where="contract")
        contract.check_order(check_formats(cfg["format"]), cfg["pixels"], cfg["batch"], cfg["size"])


def _check(cfg: Mapping[str, Any]) -> Callable[[], Any]:
    path = Path(cfg["verify"]).expanduser()
    if (path / huggingface.WEIGHTS).exists():
        from guie import checkpoint

        checkpoint.verify(path)
        return lambda: f"{path}: every file is as it was written"
    if path.is_dir():
        from guie.bundle.verifying import verify

        return lambda: "\n".join(verify(path, device=cfg["device"]))
    from guie.export.verify import verify as verify_file

    return partial(verify_file, path, device=cfg["device"])


def _for_hub(cfg: Mapping[str, Any]) -> Callable[[], str]:
    folder = huggingface.check_new(cfg["huggingface"], overwrite=cfg["overwrite"])
    check_place(folder, key="huggingface")
    from guie.publishing.story import publish_configured

    return partial(publish_configured, cfg)
