"""Optimisers: which parameters decay, which part learns how fast."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

# Positions and class tokens are biases in all but shape.
NO_DECAY = ("cls_token", "reg_token", "pos_embed", "positional_embedding", "class_embedding")


def adamw(  # noqa: PLR0913
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    backbone_lr_factor: float = 1.0,
    head_lr_factor: float = 1.0,
    *,
    embedder: nn.Module,
    head: nn.Module,
) -> Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019) over the trainable parameters of both modules."""
    groups = parameter_groups(embedder, head, lr, weight_decay, backbone_lr_factor, head_lr_factor)
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)


def sgd(  # noqa: PLR0913
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    backbone_lr_factor: float = 1.0,
    head_lr_factor: float = 1.0,
    *,
    embedder: nn.Module,
    head: nn.Module,
) -> Optimizer:
    """Return stochastic gradient descent with momentum over the trainable parameters of both modules."""
    groups = parameter_groups(embedder, head, lr, weight_decay, backbone_lr_factor, head_lr_factor)
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)


def parameter_groups(
    embedder: nn.Module,
    head: nn.Module,
    lr: float,
    weight_decay: float,
    backbone_lr_factor: float = 1.0,
    head_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Split what requires a gradient into named groups: backbone, embedder (the rest of it), head.

    Each is split again: vectors and scalars (biases, norms, GeM's p), tokens and positions do not decay.
    A group keeps its own `initial_lr`; the loop sets `lr` = `initial_lr` * factor at each step.
    """
    factors = {"backbone": backbone_lr_factor, "embedder": 1.0, "head": head_lr_factor}
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for part, name, parameter in _parameters(embedder, head):
        decays = parameter.ndim > 1 and not name.endswith(NO_DECAY)
        members.setdefault((part, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "name": part if decays else f"{part}.no_decay",
            "weight_decay": weight_decay if decays else 0.0,
            "lr": lr * factors[part],
            "initial_lr": lr * factors[part],
        }
        for (part, decays), parameters in members.items()
    ]


def _parameters(embedder: nn.Module, head: nn.Module) -> list[tuple[str, str, nn.Parameter]]:
    of_embedder = [
        ("backbone" if name.startswith("backbone.") else "embedder", name, parameter)
        for name, parameter in embedder.named_parameters()
    ]
    of_head = [("head", name, parameter) for name, parameter in head.named_parameters()]
    return [entry for entry in of_embedder + of_head if entry[2].requires_grad]
