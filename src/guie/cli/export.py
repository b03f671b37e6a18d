"""guie-export: a run as one file, verified after writing."""

from __future__ import annotations

from typing import Any

from guie.config.compose import enter


def run(cfg: dict[str, Any]) -> None:
    """Export as `cfg` says; what can be refused is refused before a checkpoint is loaded."""
    from guie.export.destination import check_destination
    from guie.export.formats import check_formats

    check_formats(cfg["format"])
    check_destination(cfg["pt"], overwrite=cfg["overwrite"])

    from guie.cli.console import speak
    from guie.exporting import export_configured

    speak()
    print(export_configured(cfg))


def main() -> None:
    """Console entry point."""
    enter("export", run)


if __name__ == "__main__":
    main()
