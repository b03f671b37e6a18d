"""Mixup (Zhang et al. 2018): which rows a step blends, and in what share, as a function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from guie.data.draws import permutation, uniforms

_STREAM = 1 << 32  # its draws are not those of the batch's own slots


@dataclass(frozen=True)
class Mixup:
    """Blend with probability `p` until step `stop`, by a share from Beta(`alpha`, `alpha`)."""

    alpha: float
    p: float
    stop: int
    seed: int

    def drawn(self, step: int, size: int) -> tuple[np.ndarray, float] | None:
        """Return each slot's partner (size,) and the share of its own that it keeps, None: no blending.

        The same on every rank: partners are slots of the global batch.
        """
        seed = self.seed + _STREAM
        if step >= self.stop or uniforms(seed, step, np.zeros(1), 1)[0, 0] >= self.p:
            return None
        share = np.random.default_rng([seed, step]).beta(self.alpha, self.alpha)
        return permutation(seed, step, size), float(share)
