"""Less than float32: what becomes short, what stays as it was.

bf16 and fp16 are weights of the backbone (no autocast); pixels are normalised, vectors pooled, projected and
brought to unit length in float32. int8 are products with the backbone's weights in an ONNX program.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from guie.errors import UserError
from guie.export.formats import check_precision
from guie.export.source import Source

SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Short(nn.Module):
    """A backbone whose weights have 16 bits: normalised pictures (B,3,h,w) float32 in, float32 out."""

    def __init__(self, backbone: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.trim = getattr(backbone, "trim", nn.Identity())
        self.backbone = shortened(backbone, dtype)
        if hasattr(backbone, "trim"):  # where a margin ends is seen in float32
            self.backbone.trim = nn.Identity()
        self.dtype = dtype
        self.prefix_tokens: int = backbone.prefix_tokens

    def forward(self, pictures: Tensor) -> Tensor | list[Tensor]:
        """Return what the backbone returns."""
        found = self.backbone(self.trim(pictures).to(self.dtype))
        if isinstance(found, Tensor):
            return found.float()
        return [stage.float() for stage in found]


def shortened(backbone: nn.Module, dtype: torch.dtype) -> Any:
    """Return a copy with weights in `dtype`; whole numbers stay. Nothing is held twice in float32."""
    made: dict[int, Any] = {}
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        if tensor.is_floating_point():
            short = tensor.detach().to(dtype)
            made[id(tensor)] = nn.Parameter(short, False) if isinstance(tensor, nn.Parameter) else short
    return copy.deepcopy(backbone, made)  # takes what is made already


def cast(source: Source, precision: str) -> Source:
    """Return the source with short weights where `precision` asks for them, else as it is.

    Raises UserError for int8 and for a backbone that cannot compute with short weights.
    """
    if precision == "fp32":
        return source
    check_precision("torchscript", precision)
    return replace(source, embedders={name: _cast(one, precision) for name, one in source.embedders.items()})


def _cast(embedder: Any, precision: str) -> Any:
    twin = copy.copy(embedder)
    twin._modules = dict(embedder._modules)
    twin._modules["backbone"] = Short(embedder.backbone, SHORT[precision])
    try:
        with torch.inference_mode():
            twin.features(torch.zeros(1, 3, *embedder.preprocess.size_px))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"precision: {precision} with a backbone that needs float32 ({reason}); accepted: fp32"
        ) from error
    return twin


def mend(model: Any) -> None:
    """Give folded weights in an ONNX program (onnx_ir.Model) the type of what they are multiplied with.

    The translator folds a batch norm into its convolution in float32, which no runtime then takes beside
    short maps.
    """
    import onnx_ir

    for node in model.graph.all_nodes():
        if node.op_type != "Conv":
            continue
        for value in node.inputs[1:]:
            if value is not None and value.const_value is not None and value.dtype != node.inputs[0].dtype:
                numbers = value.const_value.numpy().astype(node.inputs[0].dtype.numpy())
                value.const_value = onnx_ir.tensor(numbers, name=value.name)
                value.dtype = node.inputs[0].dtype
