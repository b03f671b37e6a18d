"""What is exported, in the objects of the evaluation, and how it is to be written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from guie.errors import UserError
from guie.export.formats import PRECISIONS
from guie.postprocess.layers import Layer
from guie.types import Preprocess

if TYPE_CHECKING:  # an order is judged before torch is loaded
    from torch import nn

    from guie.views import Views

Precision = Literal["fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True)
class Source:
    """One embedder, under the name "", or several whose unit vectors are combined; then fitted steps.

    `embedders` are as evaluated (a prefix is cut before). Each looks through `views`. Of several, `combine`
    concat puts unit vectors times `weights` (1 where none is named) side by side, average adds them up.
    `layers` are what steps do to a vector, in order. `facts` go into the file as they are.
    """

    embedders: Mapping[str, nn.Module]
    weights: Mapping[str, float] = field(default_factory=dict)
    combine: Literal["concat", "average"] = "concat"
    views: Views | None = None
    layers: Sequence[Layer] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def preprocess(self) -> Preprocess:
        """Return the preprocessing of the first embedder."""
        return next(iter(self.embedders.values())).preprocess  # type: ignore[return-value]

    @property
    def size_bytes(self) -> int:
        """Return what the weights take, and what was fitted."""
        modules = self.embedders.values()
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        fitted = [array for layer in self.layers for array in layer if isinstance(array, np.ndarray)]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return weights + sum(array.nbytes for array in fitted)

    def weight(self, name: str) -> float:
        """Return the weight of an embedder."""
        return float(self.weights.get(name, 1.0))


@dataclass(frozen=True)
class Request:
    """How a file is written. `batch` and `size_px` (height, width of what comes in): None takes any.

    `pixels`: levels are RGB pictures, uint8 or float 0..255, brought to the network inside; normalised are
    (B,3,h,w) float32 as the network reads them, for those who bring pictures to it themselves. `calibration`
    are pictures (H,W,3) uint8 that int8 takes its ranges from.
    """

    precision: Precision = "fp32"
    batch: int | None = None
    size_px: tuple[int, int] | None = None
    pixels: Literal["levels", "normalised"] = "levels"
    calibration: Sequence[np.ndarray] = ()

    def __post_init__(self) -> None:
        """Refuse values that cannot be."""
        for key, accepted in (("precision", PRECISIONS), ("pixels", PIXELS)):
            if getattr(self, key) not in accepted:
                raise UserError(f"{key}: '{getattr(self, key)}'; accepted: {', '.join(accepted)}")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"batch: {self.batch}; accepted: 1 or more, or null for any")
        if self.size_px is not None and min(self.size_px) < 1:
            raise _no_size(self.size_px)
        if self.size_px is not None and self.pixels == "normalised":
            raise UserError(
                f"size: {list(self.size_px)} with pixels=normalised, which have the network's; accepted: null"
            )

    def told(self) -> dict[str, Any]:
        """Return what is written into the file of it."""
        size = None if self.size_px is None else list(self.size_px)
        return {"precision": self.precision, "batch": self.batch, "size_px": size, "pixels": self.pixels}


PIXELS = ("levels", "normalised")


def size_of(size: Any) -> tuple[int, int] | None:
    """Return (height, width) of a key `size`: a number for both, two, None for any; UserError for another."""
    if size is None:
        return None
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(type(side) is int for side in sides):
        raise _no_size(size)
    return sides[0], sides[1]


def _no_size(size: Any) -> UserError:
    told = list(size) if isinstance(size, tuple) else size
    return UserError(f"size: {told}; accepted: [height,width] in pixels, or null for any")


@contextmanager
def evaluating(source: Source) -> Iterator[Source]:
    """Yield the source on the CPU in eval mode (from another device a copy); modes come back afterwards."""
    modes = {module: module.training for top in source.embedders.values() for module in top.modules()}
    for embedder in source.embedders.values():
        embedder.eval()
    try:
        yield replace(source, embedders={name: _on_cpu(one) for name, one in source.embedders.items()})
    finally:
        for module, mode in modes.items():
            module.training = mode


def _on_cpu(embedder: nn.Module) -> nn.Module:
    import copy

    tensors = [*embedder.parameters(), *embedder.buffers()]
    return (
        embedder if all(tensor.device.type == "cpu" for tensor in tensors) else copy.deepcopy(embedder).cpu()
    )
