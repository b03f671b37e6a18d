"""Where guie-train runs: in this process, in several of this machine, or not yet (`dry_run`)."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from guie.build import build
from guie.config import sweeps
from guie.errors import UserError
from guie.launch import command, placement, run_ranks

log = logging.getLogger("guie")


def elsewhere(cfg: dict[str, Any]) -> int | None:
    """Return the exit code of what was done in place of training here; None where this process is to train.

    Takes `launch` and `dry_run` out of `cfg`: they do not say what a run computes, so no run records them.
    """
    launch = build(cfg.pop("launch"), where="launch")
    dry = cfg.pop("dry_run")
    for stage in cfg.get("staged", {}).values():
        stage.pop("launch", None), stage.pop("dry_run", None)
    if launch.slots:
        raise UserError(f"launch.slots: {launch.slots} without --multirun; accepted: with it, or null")
    ranks = launch.num_ranks(cfg["device"], _num_gpus() if launch.gpus or launch.processes else 0)
    place = placement()
    if place.size > 1 and ranks > 1:
        log.info("launch: ignored, %d processes were started from outside", place.size)
    if dry:
        return 0 if place.rank else _rehearsed(cfg, max(ranks, place.size))
    if ranks == 1 or place.size > 1:
        return None
    return run_ranks(command(sweeps.again(cfg["run_dir"])), ranks)


def _rehearsed(cfg: dict[str, Any], ranks: int) -> int:
    from guie import rehearsal

    print(rehearsal.described(cfg, ranks))
    return 0


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def sweep(jobs: list[list[str]], folder: str | None, slots: list[list[int]]) -> int:
    """Run a sweep in slots: in `folder`, else in the newest one below runs/ that has the same jobs."""
    from guie.cli.console import speak
    from guie.slots import run_jobs, same_sweep

    speak()
    chosen = Path(folder).expanduser() if folder else same_sweep(jobs, Path("runs"))
    chosen = chosen or Path("runs") / f"multirun-{time.strftime('%Y%m%d-%H%M%S')}"
    return run_jobs(jobs, chosen, slots, 0 if "device=cpu" in jobs[0] else _num_gpus())
