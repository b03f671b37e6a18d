"""Necks: the pooled feature (B, F) to the embedding (B, D) before it is brought to unit length.

A neck that is one linear map in evaluation mode has `assign(weight (D, F), bias (D,))`, which makes it
`x @ weight.T + bias`: what is found in closed form (`models.refit`) goes where the learnt weights were.
`keep`: the embedding that is evaluated and exported is the first so many of the D numbers (with
`head=matryoshka`, which trains prefixes); the head reads all of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from guie.errors import UserError

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}


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

    def __init__(
        self,
        embed_dim: int = 64,
        dropout: float = 0.0,
        bias: bool = True,
        keep: int | None = None,
        *,
        in_dim: int,
    ) -> None:
        super().__init__()
        self.embed_dim, self.keep = embed_dim, keep
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
        keep: int | None = None,
        *,
        in_dim: int,
    ) -> None:
        super().__init__()
        self.embed_dim, self.keep = embed_dim, keep
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

    def __init__(  # noqa: PLR0913  (the keys of configs/neck)
        self,
        embed_dim: int = 64,
        dropout: float = 0.0,
        bias: bool = True,
        affine: bool = True,
        eps: float = 1e-5,
        norm_input: bool = False,
        keep: int | None = None,
        *,
        in_dim: int,
    ) -> None:
        super().__init__()
        self.embed_dim, self.keep = embed_dim, keep
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


class MLP(nn.Module):
    """Linear layer, activation, dropout, linear layer; `hidden_dim` null: as wide as the feature."""

    def __init__(
        self,
        embed_dim: int = 64,
        hidden_dim: int | None = None,
        activation: Literal["gelu", "relu", "tanh"] = "gelu",
        dropout: float = 0.0,
        keep: int | None = None,
        *,
        in_dim: int,
    ) -> None:
        super().__init__()
        self.embed_dim, self.keep = embed_dim, keep
        if activation not in ACTIVATIONS:
            raise UserError(f"neck.activation: {activation!r} received; accepted: {', '.join(ACTIVATIONS)}")
        self.hidden = _linear(in_dim, hidden_dim or in_dim, bias=True)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.linear = _linear(hidden_dim or in_dim, embed_dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D)."""
        return self.linear(self.dropout(self.activation(self.hidden(x))))


class MultiSampleDropout(nn.Module):
    """Mean of one linear layer over `samples` dropout masks in training (after Inoue, 2019); plain otherwise.

    The paper averages losses. Behind a linear layer a mean of outputs is the output of the mean mask, which
    is how it is computed: less noise than one mask of the same rate, at the same cost.
    """

    def __init__(
        self,
        embed_dim: int = 64,
        dropout: float = 0.5,
        samples: int = 5,
        bias: bool = True,
        keep: int | None = None,
        *,
        in_dim: int,
    ) -> None:
        super().__init__()
        self.embed_dim, self.keep = embed_dim, keep
        if samples < 1:
            raise UserError(f"neck.samples: {samples} received; accepted: 1 or more (5 is usual)")
        self.samples = samples
        self.dropout = nn.Dropout(dropout)
        self.linear = _linear(in_dim, embed_dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D)."""
        if self.training:
            x = self.dropout(x.expand(self.samples, *x.shape)).mean(0)
        return self.linear(x)

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """Become x @ weight.T + bias; UserError without a bias of its own."""
        _fill(self.linear, weight, bias)


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
