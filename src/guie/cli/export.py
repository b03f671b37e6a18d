"""guie-export: a run as one file, verified after writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guie.config.compose import enter


def run(cfg: dict[str, Any]) -> None:
    """Export as `cfg` says; what can be refused is refused before the checkpoint is loaded."""
    from guie.export.destination import check_destination, check_format

    check_format(cfg["format"])
    check_destination(cfg["pt"], overwrite=cfg["overwrite"])

    from guie import assembly, evaluating
    from guie.cli.console import speak
    from guie.embed.space import space_id
    from guie.export.torchscript import export_torchscript

    speak()
    folder = Path(cfg["ckpt"]).expanduser() if cfg["ckpt"] else evaluating.newest_run(Path("runs"))
    embedder, meta = assembly.trained_embedder(folder)
    space = meta["space_id"]
    if cfg["keep"] is not None:
        embedder.cut_to(cfg["keep"])
        space = space_id(embedder)
    print(export_torchscript(embedder, cfg["pt"], space_id=space, overwrite=cfg["overwrite"]))


def main() -> None:
    """Console entry point."""
    enter("export", run)


if __name__ == "__main__":
    main()
