"""Operators of torch that its ONNX exporter has not, or rounds, in ONNX's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20

op: Any = opset20  # its types say less than what it takes


def own() -> dict[Callable, Callable]:
    """Return what each of these operators becomes, for `torch.onnx.export(custom_translation_table=)`."""
    return {torch.ops.aten.scalar_tensor.default: scalar_tensor, torch.ops.aten.median.dim: median}


def scalar_tensor(s: Any, dtype: int = -1, **_: Any) -> Any:
    """Return a number as a tensor (): torch's own way to float64 leads through float32, where 0.7 is less."""
    kind = ir.DataType.FLOAT if dtype == -1 else ir.DataType(dtype)
    if isinstance(s, (bool, int, float)):
        return op.Constant(value=ir.tensor(s, dtype=kind))
    return op.Cast(s, to=kind.value)


def median(self: Any, dim: int, keepdim: bool = False) -> tuple[Any, Any]:
    """Return the median along `dim`, of an even number the lower one, and where it stands."""
    half = (self.shape[dim] + 1) // 2
    lowest = op.TopK(self, op.Constant(value_ints=[half]), axis=dim, largest=0, sorted=1)
    last = op.Constant(value_ints=[half - 1])
    values, places = (op.Gather(found, last, axis=dim) for found in lowest)
    if keepdim:
        return values, places
    axis = op.Constant(value_ints=[dim])
    return op.Squeeze(values, axis), op.Squeeze(places, axis)
