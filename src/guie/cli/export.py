"""guie-export: a run as one file, verified after writing, or as a folder for the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from guie.config.compose import enter
from guie.errors import UserError


def run(cfg: dict[str, Any]) -> None:
    """Export as `cfg` says; what can be refused is refused before a checkpoint is loaded."""
    from guie.cli.console import speak

    told = _published(cfg) if cfg["huggingface"] else _exported(cfg)
    speak()
    print(told())


def _exported(cfg: dict[str, Any]) -> Callable[[], Any]:
    from guie.export.destination import check_destination
    from guie.export.formats import check_formats

    if not cfg["pt"]:
        raise UserError("pt: a value is required: the file to write (or huggingface=FOLDER)")
    check_formats(cfg["format"])
    check_destination(cfg["pt"], overwrite=cfg["overwrite"])
    from guie.exporting import export_configured

    return partial(export_configured, cfg)


def _published(cfg: dict[str, Any]) -> Callable[[], str]:
    from guie import huggingface

    huggingface.check_new(cfg["huggingface"], overwrite=cfg["overwrite"])
    from guie.publishing.story import publish_configured

    return partial(publish_configured, cfg)


def main() -> None:
    """Console entry point."""
    enter("export", run)


if __name__ == "__main__":
    main()
