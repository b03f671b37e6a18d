"""Too little memory for a step: one line that says what to lower."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from guie.errors import UserError
from guie.train.settings import Settings


@contextmanager
def memory_errors(step: int, settings: Settings) -> Iterator[None]:
    """Turn torch's errors of no memory, on a GPU or the CPU, into a UserError that names what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_of_memory(error):
            raise
        raise UserError(
            f"training: out of memory at step {step}{_asked(error)}; lower trainer.batch_size "
            f"({settings.batch_size}), raise trainer.accumulate ({settings.accumulate}), "
            "lower backbone.image_px, or set backbone.checkpointing=true"
        ) from error


def _is_of_memory(error: BaseException) -> bool:
    words = ("can't allocate memory", "out of memory", "Cannot allocate memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(w in str(error) for w in words)


def _asked(error: BaseException) -> str:
    asked = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
    return f" (a piece of {asked.group(1)} was asked for)" if asked else ""
