"""Transformer blocks that learn on the tokens of a backbone that does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from guie.errors import UserError
from guie.types import Preprocess


class TokenTransformer(nn.Module):
    """Layer norm, `layers` pre-norm blocks, layer norm on the tokens of a frozen `backbone`.

    `forward` returns the class token and the mean of the patch tokens behind it, (B, 2 C). The inner backbone
    has no gradients and stays in evaluation mode whatever the trainer freezes; 0 layers leave two norms.
    """

    def __init__(self, backbone: Any, layers: int = 2, heads: int = 8) -> None:
        super().__init__()
        from open_clip.transformer import ResidualAttentionBlock

        width = backbone.out_dim
        if backbone.kind != "tokens" or backbone.prefix_tokens < 1:
            raise UserError(
                f"backbone.backbone: gives a {backbone.kind}; accepted: tokens with a class token"
            )
        if layers < 0 or heads < 1 or width % heads:
            raise UserError(
                f"backbone.layers, heads: {layers}, {heads} received; accepted: from 0, a divisor of {width}"
            )
        self.backbone = backbone.requires_grad_(False).eval()
        self.backbone.frozen = True
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(ResidualAttentionBlock(width, heads) for _ in range(layers)))
        self.kind, self.prefix_tokens = "vector", 0
        self.out_dim = 2 * width
        self.preprocess: Preprocess = backbone.preprocess

    def train(self, mode: bool = True) -> TokenTransformer:
        """Set training mode; the inner backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 2 C) of normalised pictures (B, 3, H, W)."""
        with torch.no_grad():
            tokens = self.backbone(x)
        tokens = self.after(self.blocks(self.before(tokens)))
        return torch.cat([tokens[:, 0], tokens[:, self.backbone.prefix_tokens :].mean(1)], dim=1)
