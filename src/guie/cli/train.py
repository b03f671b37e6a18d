"""guie-train: data, model, fit, evaluate, report."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from guie.cli.processes import elsewhere, sweep
from guie.config.compose import enter


def run(cfg: dict[str, Any]) -> None:
    """Train as `cfg` says; the process ends with 143 or 130 where it was asked to stop."""
    from guie import training
    from guie.cli.console import Notices, speak
    from guie.train.distributed import world

    speak()
    if (done := elsewhere(cfg)) is not None:
        return sys.exit(done) if done else None
    with ExitStack() as stack:
        here = stack.enter_context(world(cfg["device"]))
        data = training.open_data(cfg, here)
        folder = here.on_main(lambda: str(training.choose_folder(cfg)))
        start = here.on_main(lambda: training.open_folder(stack, Path(folder), cfg))
        job = training.prepare(cfg, data, Path(folder), start, here, Notices())
        summary = training.fit_job(job)
        if summary.exit_code == 0:
            here.on_main(lambda: training.conclude(job))
    if summary.exit_code:  # otherwise return: under --multirun the next job follows
        sys.exit(summary.exit_code)


def main() -> None:
    """Console entry point."""
    enter("train", run, sweep)


if __name__ == "__main__":
    main()
