"""How far training is: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from guie.train.hooks import Hook


def progress(stream: TextIO | None = None) -> Hook:
    """Return what suits `stream` (default stderr): a rich bar on a terminal, else plain lines."""
    stream = stream or sys.stderr
    return Bar() if stream.isatty() else Lines(stream)


class Bar(Hook):
    """A bar with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
        ]
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("training", total=None, said="")

    def start(self, step: int, steps: int) -> None:
        """Show the bar."""
        self._bar.update(self._task, completed=step, total=steps)
        self._bar.start()

    def tick(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step)

    def record(self, values: Mapping[str, float]) -> None:
        """Show the measurements beside the bar."""
        self._bar.update(self._task, said=_said(values))

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


class Lines(Hook):
    """A line at most every `every_s` seconds, with rate and time left."""

    def __init__(self, stream: TextIO, every_s: float = 10.0) -> None:
        self._stream = stream
        self._every_s = every_s
        self._said = ""
        self._last = -float("inf")

    def start(self, step: int, steps: int) -> None:
        """Note where the rate is counted from."""
        self._first, self._steps, self._began = step, steps, time.monotonic()

    def tick(self, step: int) -> None:
        """Print a line where one is due."""
        now = time.monotonic()
        if now - self._last >= self._every_s or step == self._steps:
            self._last = now
            rate = (step - self._first) / max(now - self._began, 1e-9)
            left = duration((self._steps - step) / max(rate, 1e-9))
            self._stream.write(f"step {step}/{self._steps}  {self._said}  {rate:.2f} steps/s, {left} left\n")
            self._stream.flush()

    def record(self, values: Mapping[str, float]) -> None:
        """Remember the measurements for the next line; an evaluation gets its own."""
        said = _said(values)
        if "loss" in values:
            self._said = said
        else:
            self._stream.write(f"step {int(values['step'])}/{self._steps}  {said}\n")


def duration(seconds: float) -> str:
    """Return `seconds` as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _said(values: Mapping[str, float]) -> str:
    hidden = ("step", "epoch", "lr", "grad_norm")
    shown = [key for key in values if key.split("/")[0] not in hidden]
    return "  ".join(f"{key} {values[key]:.4g}" for key in shown)
