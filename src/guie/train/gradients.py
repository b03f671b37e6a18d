"""How long gradients are, in all and part by part, and cutting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guie.train.sharding import local, whole_norms

Parts = Mapping[str, Sequence[nn.Parameter]]

_NAMES = {"embedder": "neck"}  # what of the embedder is not the backbone


def parts_of(groups: Sequence[Mapping[str, Any]]) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of an optimiser's groups by part: backbone, neck (with the pooling), head."""
    parts: dict[str, list[nn.Parameter]] = {}
    for group in groups:
        name = str(group.get("name", "other")).split(".")[0]
        parts.setdefault(_NAMES.get(name, name), []).extend(group["params"])
    return parts


def gradient_norms(parts: Parts) -> dict[str, Tensor]:
    """Return the L2 norm of the whole gradient, `grad_norm`, and of each part that has one."""
    each = {part: _norms(parameters) for part, parameters in parts.items()}
    present = {part: norms for part, norms in each.items() if norms}
    found = {f"grad_norm/{part}": _length(norms) for part, norms in present.items()}
    everything = [norm for norms in present.values() for norm in norms]
    return {"grad_norm": _length(everything) if everything else torch.zeros(()), **found}


def clip(parts: Parts, limit: float, norm: Tensor) -> None:
    """Shorten the gradient of length `norm` to `limit`."""
    gradients = [p.grad for group in parts.values() for p in group if p.grad is not None]
    if gradients:
        torch._foreach_mul_([local(g) for g in gradients], (limit / (norm + 1e-6)).clamp(max=1.0))


def _norms(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    learnt = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm([local(gradient) for _, gradient in learnt]) if learnt else []
    return whole_norms(norms, [parameter for parameter, _ in learnt])


def _length(norms: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(tuple(norms)))
