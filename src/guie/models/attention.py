"""Spatial attention inside a ResNet: where on the map to look, learnt with the rest."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from guie.errors import UserError


class SpatialAttention(nn.Module):
    """`x * exp(a)`, a (B, 1, H, W) in 0..1 by five 3x3 convolutions with ReLU between and a sigmoid behind.

    Nothing is muted: a position weighs between once and e times. (B, C, H, W) -> the same.
    """

    def __init__(self, in_dim: int, width: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([in_dim, width, width, width, width, 1]):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
        self.score = nn.Sequential(*layers[:-1], nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, weighted."""
        return x * self.score(x).exp()


def attend(model: Any, name: str) -> None:
    """Put attention behind the layers 1 to 3 of a timm ResNet; its own weights keep their names.

    Raises UserError for a model without such layers.
    """
    layers = {place: getattr(model, place, None) for place in ("layer1", "layer2", "layer3")}
    found = {place: layer for place, layer in layers.items() if isinstance(layer, nn.Sequential)}
    if not found:
        raise UserError(f"backbone.attention: true with '{name}'; accepted: a ResNet (layer1 to layer4)")
    stages = getattr(model.feature_info, "info", model.feature_info)
    widths = {stage["module"]: stage["num_chs"] for stage in stages}
    for place, layer in found.items():
        layer.append(SpatialAttention(widths[place]))
