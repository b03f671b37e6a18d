"""guie-soup: averages of trained weights, the best of them as a checkpoint."""

from __future__ import annotations

from typing import Any

from guie.config.compose import enter


def run(cfg: dict[str, Any]) -> None:
    """Average as `cfg` says."""
    from guie import souping
    from guie.cli.console import Notices, speak

    speak()
    souping.soup(cfg, Notices())


def main() -> None:
    """Console entry point."""
    enter("soup", run)


if __name__ == "__main__":
    main()
