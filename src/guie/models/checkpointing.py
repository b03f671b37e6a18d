"""Gradient checkpointing: a backbone's blocks computed again in the backward pass instead of kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from guie.errors import UserError


def checkpoint_blocks(model: Any, name: str) -> None:
    """Switch it on by the model's own mechanism; UserError for a model that has none.

    What a batch norm tracks is updated once a step, as without checkpointing: the second pass goes to a copy.
    """
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise _unsupported(name) from error
    if not any(getattr(module, "grad_checkpointing", False) is True for module in model.modules()):
        raise _unsupported(name)  # some models accept the call and do nothing
    for module in model.modules():
        if _norms(module):
            module.register_forward_pre_hook(_lend_copies)
            module.register_forward_hook(_give_back, always_call=True)


def _unsupported(name: str) -> UserError:
    return UserError(f"backbone.checkpointing: true received; '{name}' does not support it; accepted: false")


def _norms(module: nn.Module) -> list[_BatchNorm]:
    # Looked up at each call: synchronised batch norms replace the model's own after it is built.
    return [found for found in (module, *module.children()) if isinstance(found, _BatchNorm)]


def _lend_copies(module: nn.Module, args: Any) -> None:
    for norm in _norms(module) if _in_backward() else ():
        if "_lent" not in norm.__dict__:
            norm._lent = dict(norm._buffers)  # type: ignore[assignment]
            norm._buffers.update({key: v if v is None else v.clone() for key, v in norm._buffers.items()})


def _give_back(module: nn.Module, args: Any, output: Any) -> None:
    for norm in _norms(module):
        if "_lent" in norm.__dict__:
            norm._buffers.update(norm.__dict__.pop("_lent"))


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
