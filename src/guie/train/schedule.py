"""Learning rate as a pure function of the step: a resumed run needs no state for it."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def lr_factor(
    step: int, steps: int, warmup_steps: int = 0, schedule: Schedule = "cosine", final: float = 0.0
) -> float:
    """Return what the base rate is multiplied by at `step` (0 .. steps - 1).

    Warm-up rises linearly to 1 over `warmup_steps`, its first value is 1 / warmup_steps; then `cosine` or
    `linear` falls from 1 towards `final`, which is reached at `steps` (one past the end).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    falling = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final + (1.0 - final) * falling
