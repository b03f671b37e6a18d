"""guie-export: a run as one file, a bundle or a folder for the Hugging Face hub, verified after writing."""

from __future__ import annotations

import sys
from typing import Any

from guie.config.compose import enter


def run(cfg: dict[str, Any]) -> None:
    """Export as `cfg` says; what can be refused is refused before a checkpoint is loaded.

    The process ends with 130 where Ctrl-C stopped it.
    """
    from guie.cli.console import speak
    from guie.ordering import ordered

    try:
        job = ordered(cfg)
        speak()
        print(job())
    except KeyboardInterrupt:
        print("guie-export: stopped; nothing was written or replaced", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Console entry point."""
    enter("export", run)


if __name__ == "__main__":
    main()
