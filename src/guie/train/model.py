"""Embedder and head as the one module that is replicated, compiled and stepped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from guie.errors import UserError
from guie.train.distributed import World
from guie.train.sharding import by_fsdp
from guie.train.synced_bn import synchronise
from guie.types import Batch, Loss, Output


class TrainedModel(nn.Module):
    """Batch -> (loss, scalars). The embedder runs in `dtype` (None: as it is), the head never below fp32."""

    def __init__(
        self, embedder: nn.Module, head: nn.Module, dtype: torch.dtype | None, features: bool
    ) -> None:
        super().__init__()
        self.embedder, self.head = embedder, head
        self._dtype, self._features = dtype, features
        self._freeze_bn = False
        self.memory_format = torch.contiguous_format

    def configure(self, freeze_bn: bool, sync_bn: bool, channels_last: bool, world: World) -> None:
        """Move to the world's device and lay out as asked, before anything is wrapped around.

        What FSDP has cut is there already, and its weights cannot be laid out otherwise.
        """
        self._freeze_bn = freeze_bn
        if channels_last:
            self.memory_format = torch.channels_last
        if any(by_fsdp(parameter) for parameter in self.parameters()):
            return
        if sync_bn and world.size > 1:
            synchronise(self)
        self.to(device=world.device)
        if channels_last:
            self.to(memory_format=torch.channels_last)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over this batch and its detached scalars (averaged over ranks by the loop)."""
        kind = batch.images.device.type
        with torch.autocast(kind, self._dtype, enabled=self._dtype is not None):
            run: Any = self.embedder.from_features if self._features else self.embedder
            beside = {} if batch.side is None else {"side": batch.side}
            output: Output = run(batch.images, **beside)
        with torch.autocast(kind, enabled=False):
            loss = self.loss(_at_least_fp32(output), batch)
        scalars = {name: torch.as_tensor(v).detach() for name, v in loss.scalars.items() if name != "loss"}
        return loss.total, scalars

    def loss(self, output: Output, batch: Batch) -> Loss:
        """Return the head's loss; of blended pictures both their labels' losses, in their shares."""
        loss = self.head(output, batch)
        if batch.mixed is None:
            return loss
        other = batch.mixed
        theirs = replace(batch, labels=other.labels, domains=other.domains, ids=other.ids)
        blended = torch.lerp(self.head(output, theirs).total, loss.total, other.share)
        return Loss(blended, loss.scalars)

    def train(self, mode: bool = True) -> TrainedModel:
        """Set the mode; what is frozen stays in evaluation mode: its statistics do not move either."""
        super().train(mode)
        for module in self.modules():
            if getattr(module, "frozen", False) or (self._freeze_bn and isinstance(module, _BatchNorm)):
                module.eval()
        return self


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], part: str) -> None:
    """Copy `weights` into `module`; UserError names the first that is missing, unknown or of other shape."""
    own = module.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        has = tuple(own[name].shape) if name in own else "no such weight"
        given = tuple(weights[name].shape) if name in weights else "no such weight"
        if has != given:
            raise UserError(f"checkpoint: {part}.{name}: the checkpoint has {given}, the model {has}")
    module.load_state_dict(dict(weights))


def _at_least_fp32(output: Output) -> Output:
    def raised(value: Tensor | None) -> Tensor | None:
        return (
            value.float() if value is not None and value.dtype in (torch.float16, torch.bfloat16) else value
        )

    fields = [raised(getattr(output, name)) for name in ("feature", "tokens", "raw", "z")]
    return Output(*fields)  # type: ignore[arg-type]
