"""int8 in an ONNX program: products with a backbone's weights, in ranges seen on training pictures.

Post-training static quantisation (Jacob et al., CVPR 2018, eq. 1): weights per output channel, symmetric;
what they are multiplied with per tensor, 0..255. All else computes in float32: resizing, attention between
tokens, norms, neck, fitted steps, unit length.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guie import resize
from guie.errors import UserError
from guie.export.golden import normalised

if TYPE_CHECKING:
    from guie.export.source import Request, Source

PRODUCTS = ("Conv", "Gemm", "MatMul")


def quantise(program: Path, path: Path, source: Source, request: Request) -> list[Path]:
    """Write the float32 ONNX file `program` as `path` in int8, the ranges from `request.calibration`.

    Returns what was written: weights that lay beside the program lie beside it again.

    Raises UserError where there are no pictures, or no products with weights to quantise.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    check_calibration(request)
    taken, nodes = products(program)
    if not nodes:
        raise UserError("precision: int8 for a network without products of weights; accepted: fp32")
    beside = program.with_name(f"{program.name}.data").exists()
    with _quiet():
        quantize_static(
            program,
            path,
            Reader(taken, shown(source, request)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_quantize=nodes,
            use_external_data_format=beside,
        )
    return [path, path.with_name(f"{path.name}.data")] if beside else [path]


def check_calibration(request: Request) -> None:
    """Raise UserError where there is nothing to take ranges from."""
    if not request.calibration:
        raise UserError("precision: int8 without calibration pictures; accepted: some of the training data")


def products(program: Path) -> tuple[str, list[str]]:
    """Return the name of the input, and of the nodes that multiply by weights of a backbone.

    The graph computes the weights of its resize; neck and fitted steps are small, and what they lose is
    lost for good: these are left as they are.
    """
    import onnx

    graph = onnx.load(program, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    found = [n for n in graph.node if n.op_type in PRODUCTS and n.input[1] in weights]
    return graph.input[0].name, [n.name for n in found if not _behind(n.input[1])]


def _behind(weight: str) -> bool:
    return ".neck." in weight or weight.startswith("steps.")


class Reader:
    """Pictures as ONNX Runtime asks for them, one batch at a time."""

    def __init__(self, taken: str, batches: Iterator[np.ndarray]) -> None:
        self.taken, self.batches = taken, batches

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by the input's name, None at the end."""
        found = next(self.batches, None)
        return None if found is None else {self.taken: found}


def shown(source: Source, request: Request) -> Iterator[np.ndarray]:
    """Yield the calibration pictures (B,3,H,W) as the program takes them; a last batch repeats its own."""
    batch = request.batch or 1
    pictures = request.calibration
    for start in range(0, len(pictures), batch):
        group = [_fitted(picture, source, request) for picture in pictures[start : start + batch]]
        yield np.stack([group[row % len(group)] for row in range(batch)])


def _fitted(picture: np.ndarray, source: Source, request: Request) -> np.ndarray:
    spec = source.preprocess
    if request.pixels == "normalised":
        return normalised(picture, spec)
    if request.size_px is None:
        return np.ascontiguousarray(picture.transpose(2, 0, 1))
    return resize.apply(picture, replace(spec, size_px=request.size_px, crop="stretch"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence advice that onnxruntime gives by the root logger: its preparation folds nothing here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
