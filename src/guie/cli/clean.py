"""guie-clean: keep the training pictures whose label their neighbours confirm."""

from __future__ import annotations

from typing import Any

from guie.config.compose import enter


def run(cfg: dict[str, Any]) -> None:
    """Clean as `cfg` says; without torch where the embeddings are saved already."""
    from guie.cleaning import clean_configured
    from guie.cli.console import Notices, speak

    speak()
    clean_configured(cfg, Notices())


def main() -> None:
    """Console entry point."""
    enter("clean", run)


if __name__ == "__main__":
    main()
