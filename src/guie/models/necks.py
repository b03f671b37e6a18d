"""Necks: the pooled feature (B, F) to the embedding (B, D) before it is brought to unit length."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Identity(nn.Module):
    """The feature itself: a backbone evaluated alone."""

    def __init__(self, *, in_dim: int) -> None:
        super().__init__()
        self.embed_dim = in_dim

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (B, F)."""
        return x


class Linear(nn.Module):
    """Dropout, then a linear layer."""

    def __init__(self, embed_dim: int = 64, dropout: float = 0.0, bias: bool = True, *, in_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.dropout = nn.Dropout(dropout)
        self.linear = _linear(in_dim, embed_dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D)."""
        return self.linear(self.dropout(x))


class BNLinear(nn.Module):
    """Batch norm (without affine part by default), dropout, linear layer: the linear probe of MAE."""

    def __init__(
        self,
        embed_dim: int = 64,
        dropout: float = 0.0,
        bias: bool = True,
        affine: bool = False,
        eps: float = 1e-6,
        *,
        in_dim: int,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.norm = nn.BatchNorm1d(in_dim, affine=affine, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.linear = _linear(in_dim, embed_dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D)."""
        return self.linear(self.dropout(self.norm(x)))


class FCBN(nn.Module):
    """Dropout, linear layer, batch norm: the neck of the landmark systems.

    `norm_input` adds a batch norm before them, for features of several stages whose scales differ.
    """

    def __init__(
        self,
        embed_dim: int = 64,
        dropout: float = 0.0,
        bias: bool = True,
        affine: bool = True,
        eps: float = 1e-5,
        norm_input: bool = False,
        *,
        in_dim: int,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.norm_input = nn.BatchNorm1d(in_dim, eps=eps) if norm_input else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = _linear(in_dim, embed_dim, bias)
        self.norm = nn.BatchNorm1d(embed_dim, affine=affine, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D)."""
        return self.norm(self.linear(self.dropout(self.norm_input(x))))


def _linear(in_dim: int, embed_dim: int, bias: bool) -> nn.Linear:
    layer = nn.Linear(in_dim, embed_dim, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        torch.nn.init.zeros_(layer.bias)
    return layer
