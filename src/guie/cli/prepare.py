"""guie-prepare: raw files of a data set to a checked manifest, with counts, findings and a preview."""

from __future__ import annotations

import sys
from typing import Any

from guie.config.compose import enter
from guie.config.schema import place_of


def run(cfg: dict[str, Any]) -> None:
    """Prepare as `cfg` says; what was read before an interruption is kept for the next time."""
    from guie import preparing
    from guie.cli.console import Notices, speak

    speak()
    targets = [node["_target_"] for node in cfg["dataset"].values()]
    try:
        preparing.prepare(cfg, place_of(targets[0]) if targets else None, Notices())
    except KeyboardInterrupt:
        print("\nguie-prepare: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Console entry point."""
    enter("prepare", run)


if __name__ == "__main__":
    main()
