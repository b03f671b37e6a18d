"""Optimisers: which parameters decay, which part learns how fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from guie.errors import UserError
from guie.train.layers import depths
from guie.train.sharding import by_fsdp

# Positions and class tokens are biases in all but shape.
NO_DECAY = ("cls_token", "reg_token", "pos_embed", "positional_embedding", "class_embedding")


def adamw(  # noqa: PLR0913
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    backbone_lr_factor: float = 1.0,
    head_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
    fused: bool | None = None,
    *,
    embedder: nn.Module,
    head: nn.Module,
) -> Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019) over the trainable parameters of both modules.

    `fused` is one kernel for all of a step, equal but for rounding; null: on a GPU only (on the CPU its
    rounding depends on the number of threads).
    """
    rates = Rates(lr, backbone_lr_factor, head_lr_factor, layer_decay)
    groups = parameter_groups(embedder, head, rates, weight_decay)
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=fused)


def sgd(  # noqa: PLR0913
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    backbone_lr_factor: float = 1.0,
    head_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
    *,
    embedder: nn.Module,
    head: nn.Module,
) -> Optimizer:
    """Return stochastic gradient descent with momentum over the trainable parameters of both modules."""
    rates = Rates(lr, backbone_lr_factor, head_lr_factor, layer_decay)
    groups = parameter_groups(embedder, head, rates, weight_decay)
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)


class Rates(NamedTuple):
    """Base rate and its factors by part; `layer_decay`^depth (Clark et al., ICLR 2020) within the backbone.

    The neck is at depth 0, a backbone's last layer at 1, its embedding deepest (`layers.depths`).
    """

    lr: float
    backbone_lr_factor: float = 1.0
    head_lr_factor: float = 1.0
    layer_decay: float = 1.0

    def of(self, part: str, depth: int) -> float:
        """Return the base rate of a group."""
        factors = {"backbone": self.backbone_lr_factor, "head": self.head_lr_factor}
        return self.lr * factors.get(part, 1.0) * self.layer_decay**depth


def parameter_groups(
    embedder: nn.Module, head: nn.Module, rates: Rates, weight_decay: float
) -> list[dict[str, Any]]:
    """Split what requires a gradient into named groups: backbone, embedder (the rest of it), head.

    Each is split again: vectors and scalars (biases, norms, GeM's p), tokens and positions do not decay.
    With `layer_decay` the backbone is split by depth: backbone.12 is its embedding, say.
    A group keeps its own `initial_lr`; the loop sets `lr` = `initial_lr` * factor at each step.
    """
    if not 0 < rates.layer_decay <= 1:
        raise UserError(f"optim.layer_decay: {rates.layer_decay}; accepted: 0 < layer_decay <= 1 (1: off)")
    backbone = getattr(embedder, "backbone", None)
    layered = depths(backbone) if backbone is not None and rates.layer_decay < 1 else {}
    members: dict[tuple[str, int, bool], list[nn.Parameter]] = {}
    for part, name, parameter in _parameters(embedder, head):
        decays = parameter.ndim > 1 and not name.endswith(NO_DECAY)
        depth = layered.get(name.removeprefix("backbone."), 0) if part == "backbone" else 0
        members.setdefault((part, depth, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "name": f"{part}{f'.{depth}' if depth else ''}{'' if decays else '.no_decay'}",
            "weight_decay": weight_decay if decays else 0.0,
            "lr": rates.of(part, depth),
            "initial_lr": rates.of(part, depth),
        }
        for (part, depth, decays), parameters in members.items()
    ]


def settle(optimizer: Optimizer, device: torch.device) -> None:
    """Use fused kernels on a GPU where `fused` was left open: an optimiser is made before its model moves.

    Where FSDP has cut all of a group, torch has to be told of kernels over many tensors; of both kinds of
    parameters together none takes any.
    """
    for group in optimizer.param_groups if device.type == "cuda" else ():
        cut = {by_fsdp(parameter) for parameter in group["params"]}
        if "betas" in group and group.get("fused", False) is None and len(cut) == 1:
            group["fused"] = True
        elif cut == {True} and not group.get("fused") and group.get("foreach", False) is None:
            group["foreach"] = True


def load_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a saved state; which kernels are used is a matter of this machine, not of the saved one."""
    pairs = zip(saved["param_groups"], optimizer.param_groups, strict=True)
    groups = [{**then, **{k: now[k] for k in ("fused", "foreach") if k in now}} for then, now in pairs]
    optimizer.load_state_dict({**saved, "param_groups": groups})


def _parameters(embedder: nn.Module, head: nn.Module) -> list[tuple[str, str, nn.Parameter]]:
    of_embedder = [
        ("backbone" if name.startswith("backbone.") else "embedder", name, parameter)
        for name, parameter in embedder.named_parameters()
    ]
    of_head = [("head", name, parameter) for name, parameter in head.named_parameters()]
    return [entry for entry in of_embedder + of_head if entry[2].requires_grad]
