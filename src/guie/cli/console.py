"""What the commands say while they work: log lines on the screen, a bar for what takes long."""

from __future__ import annotations

import logging
import sys
import time

from guie.launch import placement

log = logging.getLogger("guie")


def speak() -> None:
    """Send the log to standard error as plain lines, once; of several processes the first speaks."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Plain("%(message)s"))
        handler.setLevel(logging.ERROR if placement().rank else logging.NOTSET)
        handler.addFilter(lambda record: record.name == "guie")  # steps have their bar; they go to log.txt
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


class _Plain(logging.Formatter):
    """The message alone; a warning is named one."""

    def format(self, record: logging.LogRecord) -> str:
        said = super().format(record)
        return f"WARNING: {said}" if record.levelno == logging.WARNING else said


class Notices:
    """Tells how far a long job is: rewritten in place on a terminal, now and then a line elsewhere."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s, self._what, self._done, self._began, self._told = every_s, "", 0, 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say that `done` of `total` of `what` is done; total 0 means only that it begins."""
        now = time.monotonic()
        if what != self._what or done < self._done:  # another job, or the same one again
            self._what, self._began, self._told = what, now, now
            if total == 0:
                log.info("%s", what)
        self._done = done
        if placement().rank:
            return
        live = sys.stderr.isatty()
        if total and (live or now - self._told >= self._every_s):
            self._told = now
            rate = done / max(now - self._began, 1e-9)
            line = f"{what} {done:,}/{total:,}, {rate:,.0f}/s, {(total - done) / max(rate, 1e-9):.0f} s left"
            print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
            if live and done >= total:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
