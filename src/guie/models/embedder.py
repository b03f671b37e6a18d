"""Embedder: pictures to unit vectors, normalisation of the pixels inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.errors import UserError
from guie.models.pooling import at_least_float32, for_stages, pooled
from guie.side import SIDE_DIM
from guie.types import Output, Preprocess


class Embedder(nn.Module):
    """Backbone, pooling, neck, unit length.

    Pictures are (B, 3, H, W), uint8 or floating, 0..255, already brought to `preprocess.size_px`; they are
    normalised by one fused multiply-add in the dtype of the weights. `embed_dim` is the width of z in
    evaluation: the neck's, or its `keep` first numbers. With `side` the neck reads the side inputs (B, 3) of
    the pictures' original sizes (`guie.side`) behind the pooled feature.
    """

    def __init__(self, backbone: Any, pool: nn.Module, neck: Any, *, side: bool = False) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.side_dim = SIDE_DIM if side else 0
        self.pool = for_stages(pool, len(getattr(backbone, "stages", [])))
        self.keep_first(getattr(neck, "keep", None))
        self.frozen_backbone = False
        # Not in the state dict: they follow from `preprocess`, which travels beside the weights.
        self.register_buffer("pixel_scale", torch.ones(3, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", torch.zeros(3, 1, 1), persistent=False)
        self.use_preprocess(backbone.preprocess)

    def use_preprocess(self, preprocess: Preprocess) -> None:
        """Take the preprocessing stated beside a checkpoint: without its hub tag a backbone cannot know."""
        self.preprocess = preprocess
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (preprocess.mean, preprocess.std))
        self.get_buffer("pixel_scale").copy_((1 / (255 * std))[:, None, None])
        self.get_buffer("pixel_shift").copy_((-mean / std)[:, None, None])

    def keep_first(self, width: int | None) -> None:
        """Let z in evaluation be the first `width` numbers of raw, brought to unit length; None: all of them.

        In training z has all of them. The width is a buffer of the neck: two prefixes are two spaces.
        """
        if width is not None and not 1 <= width <= self.neck.embed_dim:
            raise UserError(
                f"neck.keep: {width} received; accepted: 1 to {self.neck.embed_dim}, or null for all"
            )
        self.keep = width
        if hasattr(self.neck, "keep"):
            self.neck.keep = width
        self.embed_dim: int = width or self.neck.embed_dim
        self.neck.register_buffer("kept", None if width is None else torch.tensor(width))

    def cut_to(self, width: int) -> None:
        """Keep the first `width` numbers, whatever the neck was made to keep (all of them: no prefix)."""
        whole, kind = self.neck.embed_dim, type(self.neck).__name__
        if not hasattr(self.neck, "keep"):
            raise UserError(f"keep: {width} received; accepted: null, since a neck {kind} has no prefixes")
        if not 1 <= width <= whole:
            raise UserError(f"keep: {width} received; accepted: 1 to {whole}")
        self.keep_first(None if width == whole else width)

    def forward(self, images: Tensor, side: Tensor | None = None) -> Output:
        """Return feature (B, F), tokens (B, T, F) or None, raw (B, D) and unit z (B, D or what is kept)."""
        found = self._maps(images)
        tokens = found if isinstance(found, Tensor) and found.dim() == 3 else None
        return self.from_features(self._pooled(found), tokens, side)

    def embed(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, embed_dim), in at least float32."""
        return self._unit(self.neck(self._pooled(self._maps(images))))

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features (B, F): what a frozen backbone may cache."""
        return self._pooled(self._maps(images))

    def from_features(
        self, feature: Tensor, tokens: Tensor | None = None, side: Tensor | None = None
    ) -> Output:
        """Return the output of pooled features (B, F) and side inputs (B, 3)."""
        read = feature if side is None else torch.cat([feature, side.to(feature.dtype)], dim=1)
        raw = at_least_float32(self.neck(read))
        return Output(feature=feature, tokens=tokens, raw=raw, z=self._unit(raw))

    def freeze_backbone(self) -> None:
        """Stop training the backbone: no gradients, and its batch norms keep their statistics."""
        self.frozen_backbone = True
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    def train(self, mode: bool = True) -> Embedder:
        """Set training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen_backbone:
            self.backbone.eval()
        return self

    def _maps(self, images: Tensor) -> Tensor | list[Tensor]:
        scale = self.get_buffer("pixel_scale")
        x = torch.addcmul(self.get_buffer("pixel_shift"), images.to(scale.dtype), scale)
        if self.frozen_backbone:
            with torch.no_grad():
                return self.backbone(x)
        return self.backbone(x)

    def _pooled(self, found: Tensor | list[Tensor]) -> Tensor:
        return pooled(self.pool, found, self.backbone.prefix_tokens)

    def _unit(self, raw: Tensor) -> Tensor:
        kept = raw if self.training or self.keep is None else raw[:, : self.keep]
        return functional.normalize(at_least_float32(kept), dim=1)
