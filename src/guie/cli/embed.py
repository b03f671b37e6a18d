"""guie-embed: pictures to vectors in files; by one process or those that torchrun started."""

from __future__ import annotations

import sys
from typing import Any

from guie.config.compose import enter


def run(cfg: dict[str, Any]) -> None:
    """Embed as `cfg` says; the process ends with 130 where Ctrl-C stopped it."""
    from guie.embed import formats

    formats.check_names(cfg["formats"], cfg["ids"])

    from guie import embedding
    from guie.cli.console import Notices, speak
    from guie.train.distributed import world

    speak()
    try:
        with world(cfg["device"]) as here:
            embedding.embed_configured(cfg, here, Notices())
    except KeyboardInterrupt:
        print("guie-embed: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Console entry point."""
    enter("embed", run)


if __name__ == "__main__":
    main()
