"""Necks: the pooled feature (B, F) to the embedding (B, D) before it is brought to unit length.

A neck that is one linear map in evaluation mode has `assign(weight (D, F), bias (D,))`, which makes it
`x @ weight.T + bias`: what is found in closed form (`models.refit`) goes where the learnt weights were.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guie.errors import UserError


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

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """Become x @ weight.T + bias; UserError without a bias of its own."""
        _fill(self.linear, weight, bias)


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

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """Become x @ weight.T + bias; UserError without a bias of its own."""
        _fill(self.linear, *_behind(self.norm, weight, bias))


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

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """Become x @ weight.T + bias."""
        if isinstance(self.norm_input, nn.BatchNorm1d):
            weight, bias = _behind(self.norm_input, weight, bias)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            if self.linear.bias is not None:
                self.linear.bias.zero_()
            _reset(self.norm)
            self.norm.get_buffer("running_mean").copy_(-bias)
            self.norm.get_buffer("running_var").fill_(1 - self.norm.eps)


def _behind(norm: nn.BatchNorm1d, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map (D, F), (D,) that does behind `norm`, now a plain standardisation, what it did."""
    _reset(norm)
    mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    weight, bias = weight.to(mean), bias.to(mean)
    return weight * (variance + norm.eps).sqrt(), bias + weight @ mean


@torch.no_grad()
def _reset(norm: nn.BatchNorm1d) -> None:
    if norm.affine:
        norm.weight.fill_(1)
        norm.bias.zero_()


@torch.no_grad()
def _fill(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    if linear.bias is None:
        raise UserError("neck.bias: false received; accepted with trainer.refit_shrinkage: true")
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def _linear(in_dim: int, embed_dim: int, bias: bool) -> nn.Linear:
    layer = nn.Linear(in_dim, embed_dim, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        torch.nn.init.zeros_(layer.bias)
    return layer
