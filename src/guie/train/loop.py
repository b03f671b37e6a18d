"""The fit loop: plain torch, one optimiser step after another, each a function of (seed, step, weights).

What a step uses is drawn from (seed, step): the batch's rows and augmentation by the loader, the dropout by
the generators seeded here. So a run that was killed continues from an integer and ends in the same bits.
"""

from __future__ import annotations

import time

from guie.errors import UserError
from guie.train.distributed import Hardware, World
from guie.train.engine import Engine
from guie.train.hooks import Hook, Hooks
from guie.train.memory import memory_errors
from guie.train.model import load_weights as load_weights
from guie.train.settings import Settings
from guie.train.signals import StopRequests, stop_requests
from guie.train.task import Run, Summary, Task


def fit(task: Task, settings: Settings, hardware: Hardware, world: World, run: Run) -> Summary:
    """Train until the last step or until told to stop; save, evaluate and report on the way.

    Raises UserError for a loss that is not finite (before any checkpoint would hold it).
    """
    engine = Engine(task, settings.check(), hardware, world, run)
    hooks = Hooks(run.hooks if world.is_main else ())
    try:
        hooks.start(engine.step, engine.steps)
        with stop_requests() as requests:
            return _steps(engine, hooks, requests)
    finally:
        hooks.close()


def _steps(engine: Engine, hooks: Hook, requests: StopRequests) -> Summary:
    if engine.owes_evaluation():
        _milestone(engine, hooks, stopping=False)
    clock = _Clock()
    stop = 0
    for batch in engine.task.batches(engine.step, engine.steps):
        with memory_errors(engine.step + 1, engine.settings):
            engine.advance(batch)
        clock.pause(len(batch.labels) * engine.world.size)
        stop = engine.world.any(requests.signal)
        if engine.checks_now() or stop:
            engine.require_finite()
        hooks.tick(engine.step)
        if engine.logs_now():
            hooks.record({**engine.measured(), "images_per_s": clock.rate()})
        _milestone(engine, hooks, stopping=bool(stop))
        if stop:
            break
        clock.go_on()
    if engine.step < engine.steps and not stop:
        raise UserError(f"data: batches ended at step {engine.step} of {engine.steps}")
    return Summary(engine.step, engine.steps, engine.best, stop)


def _milestone(engine: Engine, hooks: Hook, stopping: bool) -> None:
    """Evaluate and save where the settings say so; being asked to stop saves at once and evaluates later."""
    evaluates, saves = engine.due()
    if not stopping:
        engine.refit()
    best = None
    if evaluates and not stopping:
        found = engine.evaluate()
        hooks.record({"step": engine.step, "epoch": engine.epoch, **found})
        best = engine.judge(found)
    if saves or evaluates or stopping:
        engine.save(best)


class _Clock:
    """Images per second of training alone: evaluation and saving are not counted."""

    def __init__(self) -> None:
        self._images, self._seconds, self._since = 0, 0.0, time.monotonic()

    def pause(self, images: int) -> None:
        self._images += images
        self._seconds += time.monotonic() - self._since

    def go_on(self) -> None:
        self._since = time.monotonic()

    def rate(self) -> float:
        rate = self._images / max(self._seconds, 1e-9)
        self._images, self._seconds = 0, 0.0
        return rate
