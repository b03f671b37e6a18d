"""guie-train: data, model, fit, evaluate, report; in one stage or in several."""

from __future__ import annotations

import sys
from typing import Any

from guie.cli.processes import elsewhere, sweep
from guie.config.compose import enter


def run(cfg: dict[str, Any]) -> None:
    """Train as `cfg` says; the process ends with 143 or 130 where it was asked to stop."""
    from guie import staging, training
    from guie.cli.console import Notices, speak
    from guie.train.distributed import world

    speak()
    if (done := elsewhere(cfg)) is not None:
        return sys.exit(done) if done else None
    train = staging.train if cfg["stages"] else training.train
    with world(cfg["device"]) as here:
        code = train(cfg, here, Notices())
    if code:  # otherwise return: under --multirun the next job follows
        sys.exit(code)


def main() -> None:
    """Console entry point."""
    enter("train", run, sweep)


if __name__ == "__main__":
    main()
