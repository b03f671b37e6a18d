"""The vectors of several models as one: side by side, or averaged where the models share a space. No torch.

Systems C and E0 of the reference systems put their networks side by side.

Two models share a space where they agree on where a picture lies, number by number. How they were trained
does not tell, so it is measured (`agreement`), on pictures of those that are to be embedded. An average of
models that do not agree is refused; side by side any models may stand.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from guie.errors import UserError

log = logging.getLogger("guie")

_BLOCK_ROWS = 8192
# Least agreement of models whose vectors may be averaged, and on how many pictures it is measured.
SHARED = 0.5
LEAST_ROWS, MOST_ROWS = 30, 500

Combine = Literal["concat", "average"]


@dataclass(frozen=True)
class Ensemble:
    """How vectors (N,D) of models become one: unit vectors times `weights`, joined as `combine` says, L2.

    The order of `weights` is that of the models; a model alone is called "". concat: one behind the other;
    average: added up.
    """

    weights: Mapping[str, float]
    combine: Combine = "concat"

    def width(self, widths: Mapping[str, int]) -> int:
        """Return how many numbers a joined vector has; UserError where these cannot be averaged."""
        if self.combine == "concat":
            return sum(widths.values())
        if len(set(widths.values())) > 1:
            told = ", ".join(f"{name} {width}-d" for name, width in widths.items())
            raise UserError(f"combine: average of {told}; accepted: models of one width, or concat")
        return next(iter(widths.values()))

    def space_id(self, spaces: Mapping[str, str]) -> str:
        """Return the space that the joined vectors live in, from those of the models."""
        if len(spaces) == 1:
            return next(iter(spaces.values()))
        from guie.embed.space import digest

        kind = {"concat": "side by side", "average": "averaged"}[self.combine]
        return digest(kind, *(f"{space} {self.weights[name]}" for name, space in spaces.items()))

    def told(self) -> dict[str, Any]:
        """Return how the vectors were joined, for those who read results."""
        return {"weights": dict(self.weights), "combine": self.combine}

    def joined(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return (N,D') float32 of parts (N,D); a model alone as it is."""
        if len(parts) == 1:
            return next(iter(parts.values()))
        weighted = [self.weights[name] * _unit(part.astype(np.float64)) for name, part in parts.items()]
        whole = np.concatenate(weighted, axis=1) if self.combine == "concat" else np.sum(weighted, axis=0)
        return _unit(whole).astype(np.float32)

    def write(self, path: Path, parts: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        """Write `rows` (M,) of the parts (N,D), joined, to `path`: (M,D') float32."""
        width = self.width({name: part.shape[1] for name, part in parts.items()})
        target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(rows), width))
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            target[start : start + len(block)] = self.joined(
                {name: part[block] for name, part in parts.items()}
            )
        target.flush()

    @property
    def averages(self) -> bool:
        """Tell whether vectors of several models are added up, which takes a space that they share."""
        return self.combine == "average" and len(self.weights) > 1

    def check_shared(self, found: Mapping[str, np.ndarray]) -> float:
        """Return the least agreement of two models, from the vectors (N,D) of each for the same pictures.

        Raises UserError where models do not agree, or pictures are too few to say.
        """
        self.width({name: part.shape[1] for name, part in found.items()})
        count = len(next(iter(found.values())))
        if count < LEAST_ROWS:
            raise UserError(
                f"combine: average judged by {count} pictures; accepted: {LEAST_ROWS} or more, or concat"
            )
        agreed = {pair: agreement(found[pair[0]], found[pair[1]]) for pair in combinations(found, 2)}
        (one, other), least = min(agreed.items(), key=lambda item: item[1])
        if not least >= SHARED:
            raise UserError(
                f"combine: average of {one} and {other}, whose vectors of the same pictures agree by "
                f"{least:.2f}; accepted: {SHARED} or more (runs that began with the same one, or learnt from "
                "it), or concat"
            )
        log.info("averaged models agree by %.2f (%s and %s the least)", least, one, other)
        return least


def chosen(weights: Any, combine: str, names: Sequence[str]) -> Ensemble:
    """Return how the models `names` are joined, as the keys `weights` and `combine` of a config say."""
    if combine not in ("concat", "average"):
        raise UserError(f"combine: '{combine}'; accepted: concat, average")
    return Ensemble(check_weights(weights, names), combine)  # type: ignore[arg-type]


def check_weights(weights: Any, names: Sequence[str]) -> dict[str, float]:
    """Return the weight of each model, 1 where `weights` does not name it; UserError for others."""
    given = dict(weights or {})
    for name, value in given.items():
        if name not in names:
            accepted = ", ".join(filter(None, names)) or "with several models, ckpt={a:PATH,b:PATH}"
            raise UserError(f"weights.{name}: there is no such model; accepted: {accepted}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"weights.{name}: {value!r}; accepted: a number above 0")
    return {name: float(given.get(name, 1.0)) for name in names}


def good_rows(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the rows (M,) of which every part (N,D) holds a vector; NaN means none."""
    return np.flatnonzero(np.all([np.isfinite(part[:, 0]) for part in parts.values()], axis=0))


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return by how much two models agree on vectors (N,D) of the same pictures, at most 1.

    The trace of the covariance of the two, over the geometric mean of their variances: the correlation of the
    numbers around their means. 1 in one space; about 0 in two that know nothing of each other, also where one
    is the other turned, and where a model gives all pictures the same.
    """
    centred = [_unit(part.astype(np.float64)) for part in (one, other)]
    centred = [part - part.mean(axis=0) for part in centred]
    spread = math.prod(np.linalg.norm(part) for part in centred)
    return float((centred[0] * centred[1]).sum() / max(spread, 1e-12))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
