"""Several stages as one run, each a run of its own that starts from a checkpoint of the one before."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guie import checkpoint, runfolder, training
from guie.durable import replace_file
from guie.errors import UserError
from guie.train.distributed import World

log = logging.getLogger("guie")


@dataclass(frozen=True)
class Stage:
    """One stage: its complete config, and which checkpoint of the stage before it starts from."""

    name: str
    folder: Path
    cfg: Mapping[str, Any]
    init: training.Init = "last"


def train(cfg: Mapping[str, Any], here: World, notice: Any) -> int:
    """Train all stages, or the one that `only` names; return the exit code of the last one that ran.

    With `resume=auto` finished stages are passed over and an interrupted one goes on where it stopped. The
    data of all stages is opened first, so that what is missing is missed at once.
    """
    folder = Path(here.on_main(lambda: str(training.choose_folder(cfg))))
    stages = planned(cfg, folder)
    data = opened_data(stages, here)
    with ExitStack() as stack:
        here.on_main(lambda: _open(stack, folder, cfg, stages))
        for place, stage in enumerate(stages):
            if cfg["only"] not in (None, stage.name):
                continue
            ready = here.on_main(lambda place=place: _ready(stages, place))  # type: ignore[misc]
            if ready is None:
                log.info("stage %s: finished before", stage.name)
                continue
            log.info("stage %s, %d of %d", stage.name, place + 1, len(stages))
            keep = stages[place + 1].init if place + 1 < len(stages) else None
            code = training.train(ready, here, notice, data[place], keep)
            if code:
                return code
        here.on_main(lambda: _conclude(folder, stages))
    return 0


def planned(cfg: Mapping[str, Any], folder: Path) -> list[Stage]:
    """Return the stages in order, in folders `<number>-<name>` below `folder`."""
    found = []
    for number, (name, staged) in enumerate(cfg["staged"].items(), 1):
        place = folder / f"{number}-{name}"
        own = {"run_dir": str(place), "resume": "auto", "ckpt": cfg["ckpt"] if number == 1 else None}
        found.append(Stage(name, place, {**staged, **own}, cfg["stages"][name].get("init", "last")))
    return found


def opened_data(stages: Sequence[Stage], here: World) -> list[training.Data]:
    """Return each stage's data, its settings checked against it; stages with the same data share it."""
    found: dict[str, training.Data] = {}
    keys = []
    for stage in stages:
        keys.append(repr([stage.cfg[name] for name in ("dataset", "eval_on", "data_root", "leakage")]))
        try:
            found[keys[-1]] = training.open_data(stage.cfg, here, found.get(keys[-1]))
        except UserError as error:
            raise UserError(f"stages.{stage.name}.{error}") from error
    return [found[key] for key in keys]


def _open(stack: ExitStack, folder: Path, cfg: Mapping[str, Any], stages: Sequence[Stage]) -> None:
    """Hold the folder of all stages; refuse what changed in stages that have begun, before any goes on."""
    if cfg["resume"] not in ("never", "auto"):
        raise UserError(f"resume: '{cfg['resume']}' with stages; accepted: never, auto")
    held = stack.enter_context(runfolder.held(folder))
    runfolder.refuse_begun(folder, cfg["resume"])
    refuse_changes(folder, stages)
    runfolder.write_config(folder, {key: value for key, value in cfg.items() if key != "staged"})
    held.mark("running")
    stack.enter_context(runfolder.log_file(folder))
    log.info("run folder: %s", folder)


def refuse_changes(folder: Path, stages: Sequence[Stage]) -> None:
    """Raise UserError naming the keys of a stage that has begun which are not what they were.

    A stage that another one has begun from may not be trained longer either.
    """
    there = [path.name for path in checkpoint.stages(folder)]
    if there != [stage.folder.name for stage in stages][: len(there)] or (folder / "checkpoints").exists():
        held = ", ".join(there) or "a run without stages"
        raise UserError(f"run_dir: {folder} holds {held}; accepted: a new folder, or the same stages first")
    for place, stage in enumerate(stages[: len(there)]):
        if runfolder.start_state(stage.folder) is None:
            continue
        now = {**stage.cfg, "ckpt": _start_of(stages, place)}
        where = f"stages.{stage.name}"
        changed = runfolder.refuse_changes(runfolder.read_config(stage.folder), now, where)
        longer = [key for key in changed if key in runfolder.LIMITS]
        if longer and place + 1 < len(there):
            after = stages[place + 1].name
            raise UserError(f"{where}.{longer[0]}: changed, but {after} has begun; accepted: what it was")


def _ready(stages: Sequence[Stage], place: int) -> dict[str, Any] | None:
    """Return the config of a stage with the checkpoint it starts from, None where it is finished."""
    stage = stages[place]
    cfg = {**stage.cfg, "ckpt": _start_of(stages, place)}
    if runfolder.start_state(stage.folder) != "finished":
        return cfg
    changed = runfolder.changed_keys(runfolder.read_config(stage.folder), cfg)
    return cfg if set(changed) & set(runfolder.LIMITS) else None


def _start_of(stages: Sequence[Stage], place: int) -> str | None:
    """Return the checkpoint that a stage starts from; of a folder that has moved, by its former path."""
    stage = stages[place]
    if place == 0:
        return stage.cfg["ckpt"]
    found = initial(stages[place - 1].folder, stage.init, f"stages.{stage.name}.init")
    if runfolder.start_state(stage.folder) is None:
        return str(found)
    former = str(runfolder.read_config(stage.folder).get("ckpt"))
    return former if Path(former).parts[-3:] == found.parts[-3:] else str(found)


def initial(folder: Path, init: training.Init, where: str) -> Path:
    """Return the checkpoint of the run in `folder` that `init` means; UserError says which were kept."""
    kept = checkpoint.steps(folder / "checkpoints")
    if init == "last" and kept:
        return checkpoint.locate(folder, "last")
    if init == "best":
        found = checkpoint.pointed(folder / "checkpoints", "best")
    elif isinstance(init, str):
        found = next((path for path in kept if path.name == init), None)
    else:
        found = next((path for path in kept if round(init * _epoch(path)[1]) == _epoch(path)[0]), None)
    if found is None:
        there = ", ".join(f"{path.name} (epoch {_epoch(path)[0] / _epoch(path)[1]:.4g})" for path in kept)
        raise UserError(f"{where}: {init} is not among what {folder} kept; accepted: {there or 'none yet'}")
    return found


def _epoch(path: Path) -> tuple[int, int]:
    """Return a checkpoint's step and how many make an epoch."""
    meta = checkpoint.read(path, parts=()).meta
    return checkpoint.step_of(path), int(meta.get("steps_per_epoch", 1))


def _conclude(folder: Path, stages: Sequence[Stage]) -> None:
    """Where all are finished, say their numbers; those of the last are the run's."""
    for stage in stages:
        if runfolder.start_state(stage.folder) != "finished":
            return
        numbers = runfolder.read_json(stage.folder / "metrics.json")["trained"].get("merged", {})
        shown = [f"{name} {numbers[name]:.3f}" for name in ("mP@5", "R@1") if name in numbers]
        log.info("stage %s: %s", stage.name, ", ".join(shown))
    replace_file(folder / "metrics.json", (stages[-1].folder / "metrics.json").read_bytes())
    runfolder.RunFolder(folder).mark("finished")
