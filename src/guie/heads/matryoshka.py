"""Embeddings whose prefixes are embeddings: one loss on each of several widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from guie.errors import UserError
from guie.types import Batch, Loss, Output

SMALLEST = 64


class Matryoshka(nn.Module):
    """Sum over prefixes of weight times loss (Kusupati et al., NeurIPS 2022, eq. 1).

    `dims` are the prefixes' widths (null: D and its halves down to 64), `weights` their weights (null: 1).
    Each prefix is brought to unit length anew and has an `inner` head of its own, with class weights of its
    width; with `tied` (MRL-E there) one inner head serves all, by the prefixes of its class weights.
    Scalars are logged as `<width>/<scalar>`; `accuracy` is that of the widest.
    """

    def __init__(
        self,
        inner: Callable[..., Any],
        dims: list[int] | None = None,
        weights: list[float] | None = None,
        tied: bool = False,
        *,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.dims = _checked_dims(dims, embed_dim)
        self.weights = [1.0] * len(self.dims) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.dims) or min(self.weights) < 0:
            raise UserError(
                f"head.weights: {weights} received; accepted: {len(self.dims)} numbers, 0 or above"
            )
        widths = [embed_dim] if tied else self.dims
        self.heads = nn.ModuleDict({str(width): inner(embed_dim=width) for width in widths})
        self.tied, self.embed_dim = tied, embed_dim
        if tied:
            _check_no_memory(self.heads[str(embed_dim)], embed_dim)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the weighted sum of the prefixes' losses."""
        losses = [self._loss(prefix(output, dim), batch, dim) for dim in self.dims]
        total: Any = sum(weight * loss.total for weight, loss in zip(self.weights, losses, strict=True))
        scalars = {
            f"{dim}/{key}": value
            for dim, loss in zip(self.dims, losses, strict=True)
            for key, value in loss.scalars.items()
        }
        if "accuracy" in losses[-1].scalars:
            scalars["accuracy"] = losses[-1].scalars["accuracy"]
        return Loss(total, {"loss": total.detach(), **scalars})

    def _loss(self, output: Output, batch: Batch, dim: int) -> Loss:
        if not self.tied:
            return self.heads[str(dim)](output, batch)
        head = self.heads[str(self.embed_dim)]
        cut = {name: _columns(value, self.embed_dim, dim) for name, value in head.named_parameters()}
        return functional_call(head, cut, (output, batch))


def prefix(output: Output, dim: int) -> Output:
    """Return the output of an embedder that gives the first `dim` numbers only: raw and z are (B, dim)."""
    raw = output.raw[:, :dim]
    return Output(output.feature, output.tokens, raw, functional.normalize(raw, dim=1))


def _columns(value: Tensor, embed_dim: int, dim: int) -> Tensor:
    """Return the first `dim` columns of class weights (..., C, D); anything else as it is."""
    return value[..., :dim] if value.dim() > 1 and value.shape[-1] == embed_dim else value


def _checked_dims(dims: list[int] | None, embed_dim: int) -> list[int]:
    if dims is None:
        dims = [embed_dim]
        while dims[0] % 2 == 0 and dims[0] // 2 >= SMALLEST:
            dims.insert(0, dims[0] // 2)
    if not dims or sorted(set(dims)) != list(dims) or not 1 <= dims[0] <= dims[-1] <= embed_dim:
        raise UserError(
            f"head.dims: {dims} received; accepted: growing widths from 1 to neck.embed_dim ({embed_dim})"
        )
    return list(dims)


def _check_no_memory(head: nn.Module, embed_dim: int) -> None:
    """Refuse a head that keeps embeddings: there is one memory, and prefixes of several widths."""
    for name, value in head.named_buffers():
        if value.dim() > 1 and value.shape[-1] == embed_dim:
            raise UserError(
                f"head.tied: true, but the inner head keeps embeddings ('{name}'); accepted: false"
            )
