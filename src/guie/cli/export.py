"""guie-export: a run as one file, a bundle or a folder for the Hugging Face hub, verified after writing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from guie.config.compose import enter
from guie.errors import UserError


def run(cfg: dict[str, Any]) -> None:
    """Export as `cfg` says; what can be refused is refused before a checkpoint is loaded.

    The process ends with 130 where Ctrl-C stopped it.
    """
    from guie.cli.console import speak

    kinds = {"pt": _exported, "bundle": _bundled, "huggingface": _published, "verify": _verified}
    asked = [key for key in kinds if cfg[key]]
    if len(asked) != 1:
        given = " and ".join(asked) or "nothing"
        raise UserError(f"pt: {given} given; accepted: one of pt=FILE, bundle, huggingface or verify=PATH")
    if cfg["device"] != "cpu" and not cfg["verify"]:
        raise UserError(f"device: {cfg['device']} with {asked[0]}; accepted: cpu, or any with verify=PATH")
    try:
        told = kinds[asked[0]](cfg)
        speak()
        print(told())
    except KeyboardInterrupt:
        print("guie-export: stopped; nothing was written or replaced", file=sys.stderr)
        sys.exit(130)


def _exported(cfg: dict[str, Any]) -> Callable[[], Any]:
    from guie.export.destination import check_destination
    from guie.export.formats import check_formats, check_name

    _check_order(cfg)
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


def _bundled(cfg: dict[str, Any]) -> Callable[[], str]:
    from guie.bundle.writing import check_folder
    from guie.export.formats import check_formats

    check_formats(cfg["format"])
    _check_order(cfg)
    check_folder(cfg["bundle"], overwrite=cfg["overwrite"])
    from guie.exporting import bundle_configured

    return partial(bundle_configured, cfg)


def _check_order(cfg: dict[str, Any]) -> None:
    from guie import assembly
    from guie.build import build
    from guie.export.formats import check_formats, check_gated, check_precision
    from guie.export.source import Request, size_of

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


def _verified(cfg: dict[str, Any]) -> Callable[[], Any]:
    from guie import huggingface

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


def _published(cfg: dict[str, Any]) -> Callable[[], str]:
    from guie import huggingface
    from guie.export.destination import check_place

    folder = huggingface.check_new(cfg["huggingface"], overwrite=cfg["overwrite"])
    check_place(folder, key="huggingface")
    from guie.publishing.story import publish_configured

    return partial(publish_configured, cfg)


def main() -> None:
    """Console entry point."""
    enter("export", run)


if __name__ == "__main__":
    main()
