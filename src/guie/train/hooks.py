"""Who is told how training goes: files, screens, trackers. The loop knows only `Hook`."""

from __future__ import annotations

import json
import math
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


class TensorBoard(Hook):
    """Config group `tracker=tensorboard`: event files in `tensorboard/` of the run folder."""

    def __init__(self, flush_s: int = 30, *, folder: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), flush_secs=flush_s)

    def start(self, step: int, steps: int) -> None:
        """Hide what an interrupted run wrote after `step`."""
        del steps
        if step:
            self._writer.purge_step = step

    def record(self, values: Mapping[str, float]) -> None:
        """Write each measurement as a scalar at its step."""
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(values["step"]))

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
