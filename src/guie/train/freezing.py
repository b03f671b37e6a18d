"""What of a model does not learn, and from when on it does: whole parts, first layers, one after another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from guie.errors import UserError
from guie.train.layers import depths
from guie.train.settings import Settings


def frozen_parts(settings: Settings, step: int, steps: int) -> frozenset[str]:
    """Return which of backbone and head do not learn at `step`: a function of the step, so resume is exact.

    With `unfreeze_at` the backbone waits for that part of all steps (LP-FT: Kumar et al., ICLR 2022), and a
    locked head (`freeze_head`) learns until then.
    """
    waits = step < settings.unfreeze_step(steps)
    backbone = {"backbone"} if settings.freeze_backbone or waits else set()
    return frozenset(backbone | ({"head"} if settings.freeze_head and not waits else set()))


class Freezer:
    """Lets parameters learn or not; what does not learn has no gradient and keeps its statistics.

    `learns` are the optimiser's parameters: what was frozen before it was made stays so. With `cached`
    features the pooling stays as it is, too.
    """

    def __init__(
        self, embedder: Any, head: nn.Module, settings: Settings, learns: Iterable[nn.Parameter], cached: bool
    ) -> None:
        self.embedder, self.head, self.settings = embedder, head, settings
        self._learns = {id(parameter) for parameter in learns}
        self._with_backbone = ["backbone", "pool"] if cached else ["backbone"]
        self._first = _first_layers(embedder, settings.freeze_until)

    def freeze(self, parts: frozenset[str]) -> None:
        """Stop `parts` and the first layers, let the rest learn; what no setting speaks of stays as it is."""
        if self.settings.freeze_head:
            self._set(self.head, "head" in parts)
        if self.settings.freeze_backbone or self.settings.unfreeze_at:
            self._set_backbone("backbone" in parts)
        for name, parameter in self.embedder.named_parameters():
            if name in self._first:
                parameter.requires_grad_(False)
        if self._first:
            _keep_statistics(self.embedder.backbone)

    def _set_backbone(self, frozen: bool) -> None:
        for name in self._with_backbone:
            part = getattr(self.embedder, name, None)
            if not isinstance(part, nn.Module):
                raise UserError(f"trainer.freeze_backbone: this embedder has no part '{name}' to freeze")
            self._set(part, frozen)
            part.frozen = frozen  # type: ignore[assignment]
        if hasattr(self.embedder, "frozen_backbone"):
            self.embedder.frozen_backbone = frozen

    def _set(self, part: nn.Module, frozen: bool) -> None:
        for parameter in part.parameters():
            parameter.requires_grad_(not frozen and id(parameter) in self._learns)


def _first_layers(embedder: Any, pattern: str | None) -> set[str]:
    """Return the names of the embedder's parameters in layers before the first that `pattern` finds."""
    if pattern is None:
        return set()
    layers = depths(embedder.backbone)
    found = [depth for name, depth in layers.items() if re.search(pattern, name)]
    if not found:
        shown = ", ".join(sorted({name.rpartition(".")[0] for name in layers})[:8])
        raise UserError(f"trainer.freeze_until: '{pattern}' is in no name of the backbone; some: {shown}")
    return {f"backbone.{name}" for name, depth in layers.items() if depth > max(found)}


def _keep_statistics(backbone: nn.Module) -> None:
    """Mark the modules none of whose weights learns: they stay in evaluation mode."""
    for module in backbone.modules():
        weights = list(module.parameters())
        if weights:
            module.frozen = not any(weight.requires_grad for weight in weights)  # type: ignore[assignment]
