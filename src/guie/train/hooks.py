"""Who is told how training goes: files, screens, trackers. The loop knows only `Hook`."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Hook:
    """Told of every step, of each measurement, and of the end. All methods may stay as they are."""

    def start(self, step: int, steps: int) -> None:
        """Training begins at `step` of `steps`."""

    def tick(self, step: int) -> None:
        """`step` steps are done."""

    def record(self, values: Mapping[str, float]) -> None:
        """Take one line of measurements; `values` has `step`, `epoch` and what was measured."""

    def close(self) -> None:
        """Training ended, well or not."""


class JsonLines(Hook):
    """Append each record to `metrics.jsonl`; a record is one line, written through at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def record(self, values: Mapping[str, float]) -> None:
        """Write `values` as one line of strict JSON (what is not finite becomes null)."""
        line = {key: value if _is_finite(value) else None for key, value in values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


class NoTracker(Hook):
    """Config group `tracker=none`: metrics.jsonl is enough."""

    def __init__(self, *, folder: str) -> None:
        del folder


class LogLines(Hook):
    """Say to a logger (and so to log.txt) what is measured: each evaluation, and a step every `every_s`."""

    def __init__(self, logger: logging.Logger, every_s: float = 30.0) -> None:
        self._logger, self._every_s, self._last = logger, every_s, -math.inf

    def start(self, step: int, steps: int) -> None:
        """Say where training begins."""
        self._logger.info("training: step %d of %d", step, steps)

    def record(self, values: Mapping[str, float]) -> None:
        """Say the measurements; gradients of the parts are left to metrics.jsonl."""
        now = time.monotonic()
        if "loss" in values and now - self._last < self._every_s:
            return
        self._last = now if "loss" in values else self._last
        said = [f"{name} {value:.6g}" for name, value in values.items() if not name.startswith("grad_norm/")]
        self._logger.info("%s", "  ".join(said))


class TensorBoard(Hook):
    """Config group `tracker=tensorboard`: event files in `tensorboard/` of the run folder."""

    def __init__(self, flush_s: int = 30, *, folder: str) -> None:
        self._folder, self._flush_s = Path(folder) / "tensorboard", flush_s
        self._writer: Any = None

    def start(self, step: int, steps: int) -> None:
        """Open the file; what an interrupted run wrote after `step` is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(self._folder), flush_secs=self._flush_s, purge_step=step + 1 if step else None
        )

    def record(self, values: Mapping[str, float]) -> None:
        """Write each measurement as a scalar at its step."""
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(values["step"]))

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
