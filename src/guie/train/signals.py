"""Being asked to stop: a signal becomes a request that the loop reads between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequests:
    """Remembers the first signal that asked to stop; a second one ends the process at once."""

    signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Turn SIGTERM and SIGINT into a request that the loop reads after each step (main thread only)."""
    requests = StopRequests()
    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        former = {number: signal.signal(number, requests) for number in numbers}
    except ValueError:  # signals belong to the main thread
        former = {}
    try:
        yield requests
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
