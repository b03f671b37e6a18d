"""The check of labels that every classifying head makes."""

from __future__ import annotations

import torch
from torch import Tensor

from guie.errors import UserError


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels (B,) outside 0..num_classes-1."""
    inside = ((labels >= 0) & (labels < num_classes)).all()
    message = f"labels: {{}} received; accepted: 0..{num_classes - 1} (the head has {num_classes} classes)"
    if labels.is_cuda:
        torch._assert_async(inside, message.format("a value out of range"))
    elif not inside:
        raise UserError(message.format(f"{int(labels.min())}..{int(labels.max())}"))
