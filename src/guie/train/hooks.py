"""Who is told how training goes: files, screens, trackers. The loop knows only `Hook`."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from guie.errors import UserError

log = logging.getLogger("guie")


class Hook:
    """Told of every step, of each measurement, and of the end. All methods may stay as they are.

    An error of one that is not `vital` is a warning, and training goes on without it.
    """

    vital = False

    def start(self, step: int, steps: int) -> None:
        """Training begins at `step` of `steps`."""

    def tick(self, step: int) -> None:
        """`step` steps are done."""

    def record(self, values: Mapping[str, float]) -> None:
        """Take one line of measurements; `values` has `step`, `epoch` and what was measured."""

    def close(self) -> None:
        """Training ended, well or not."""


class Hooks(Hook):
    """Several hooks as one; one that may fail is told no more after its first error but to close."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._hooks = list(hooks)
        self._failed: list[Hook] = []

    def start(self, step: int, steps: int) -> None:
        """Start each; an error of any ends the run, which has not begun."""
        for hook in self._hooks:
            hook.start(step, steps)

    def tick(self, step: int) -> None:
        """Tell each that has not failed."""
        self._tell(lambda hook: hook.tick(step))

    def record(self, values: Mapping[str, float]) -> None:
        """Tell each that has not failed."""
        self._tell(lambda hook: hook.record(values))

    def close(self) -> None:
        """Close each, also where another one fails or failed."""
        for hook in self._hooks:
            self._spare(hook, lambda hook: hook.close())

    def _tell(self, what: Callable[[Hook], None]) -> None:
        for hook in self._hooks:
            if hook not in self._failed:
                self._spare(hook, what)

    def _spare(self, hook: Hook, what: Callable[[Hook], None]) -> None:
        try:
            what(hook)
        except Exception as error:
            if hook.vital:
                raise
            if hook not in self._failed:
                self._failed.append(hook)
                name, reason = getattr(hook, "package", type(hook).__name__), " ".join(str(error).split())
                log.warning("tracker: %s failed (%s); training goes on without it", name, reason)


class JsonLines(Hook):
    """Append each record to `metrics.jsonl`; a record is one line, written through at once."""

    vital = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def start(self, step: int, steps: int) -> None:
        """Open the file."""
        self._file = self._path.open("a", encoding="utf-8")

    def record(self, values: Mapping[str, float]) -> None:
        """Write `values` as one line of strict JSON (what is not finite becomes null).

        Raises UserError where the disk is full or refuses.
        """
        line = {key: value if _is_finite(value) else None for key, value in values.items()}
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._path}: step {line['step']} could not be written ({error.strerror or error}); "
                "accepted: room on that disk, then resume=auto"
            ) from error

    def close(self) -> None:
        """Close the file; a line that could not be written has been told of."""
        if self._file is not None:
            with suppress(OSError):
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
