"""Class weights cut over the ranks, and classes drawn anew at each step: for more classes than one GPU holds.

Each rank holds a contiguous block of the (C, D) weights, with its gradient and the optimiser's state. It
sees the vectors and labels of all ranks and forms its block of the logits; the largest, the sum of
exponentials and the target's cosine are then reduced over ranks. Nothing of B x C leaves its rank.

Shapes: B pictures of all ranks, b of this one, D width, C classes, n classes of this rank's block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from guie.errors import UserError
from guie.heads.centres import initial_bound
from guie.heads.fused import Additive, Angular, Elsewhere, Rule, margin_softmax
from guie.heads.labels import check_labels
from guie.heads.margin import check_range, checked_rule
from guie.heads.margin_by import Margins
from guie.heads.pairs import num_ranks, of_all_ranks
from guie.heads.reduction import Reduction
from guie.types import Batch, Loss, Output

_DRAWN_AT_ONCE = 4096  # rows of the first weights


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of `total`: those of a parameter that this rank holds."""

    start: int
    stop: int
    total: int


class PartialFC(nn.Module):
    """ArcFace or CosFace with its classes cut over ranks and sampled (An et al., ICCVW 2021 and CVPR 2022).

    With `sample_rate` below 1 a step counts the classes of the batch of all ranks and, of the others, those
    that a coin of (`seed`, step, class) names: about `sample_rate` of them, the same for any number of ranks.
    What was not drawn has gradient 0; weight decay and momentum go on moving it. `kind` says what `margin`
    means; other parameters as in `heads.margin.ArcFace`, which this is with one rank and every class.

    The first weights are those of ArcFace for any number of ranks. Gradients are those of the mean over the
    batch of all ranks: the loop neither averages nor clips them by rank (`train.sharding`). Ranks must hold
    equally many pictures.
    """

    def __init__(  # noqa: PLR0913
        self,
        kind: Literal["arcface", "cosface"] = "arcface",
        scale: float = 30.0,
        margin: float = 0.5,
        label_smoothing: float = 0.0,
        chunk: int | None = None,
        init: Literal["xavier", "uniform"] = "xavier",
        margin_by: Mapping[str, Any] | None = None,
        focal: float = 0.0,
        per_domain: Any = None,
        sample_rate: float = 1.0,
        seed: int = 0,
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        if kind not in ("arcface", "cosface"):
            raise UserError(f"head.kind: {kind!r} received; accepted: arcface, cosface")
        check_range("margin", margin, 0, 2 if kind == "cosface" else math.pi / 2, "")
        check_range("sample_rate", sample_rate, 1e-6, 1, "(1 counts every class)")
        self.kind: type[Angular] | type[Additive] = Angular if kind == "arcface" else Additive
        self.rule = checked_rule(Rule(self.kind(margin), scale, label_smoothing, chunk))
        self.margins, self.reduction = Margins(margin, margin_by), Reduction(focal, per_domain)
        self.sample_rate, self.seed, self._step = sample_rate, seed, 0
        self.shard, self.ranks = own_shard(num_classes), num_ranks()
        self.weight = nn.Parameter(initial_rows(self.shard, embed_dim, init))
        if self.ranks > 1:
            self.weight.shard = self.shard  # type: ignore[attr-defined]

    def at_step(self, step: int, steps: int, steps_per_epoch: int) -> None:
        """Draw other classes from now on."""
        del steps, steps_per_epoch
        self._step = step

    @torch.compiler.disable  # its collectives and int64 that wraps are not for a compiler
    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return this rank's mean loss; logs `loss`, `accuracy` (of what is counted) and `target_cosine`.

        Raises UserError on all ranks for a label outside 0..C-1 on any.
        """
        if num_ranks() != self.ranks:
            made = f"cut for {self.ranks} rank(s), used by {num_ranks()}"
            raise UserError(f"head: {made}; accepted: a head that is made after the ranks have joined")
        with torch.autocast(output.raw.device.type, enabled=False):
            losses, cosine, correct = self._counted(output.raw.to(self.weight.dtype), batch.labels)
        loss = self.reduction(losses, batch.domains)
        measured = {"accuracy": correct.float().mean(), "target_cosine": cosine.mean()}
        return Loss(loss.total, loss.scalars | measured)

    def _counted(self, raw: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, target cosines and hits (b,) of this rank's pictures."""
        everyone = self.ranks > 1
        vectors, labels = (_OfAllRanks.apply(raw), of_all_ranks(labels)) if everyone else (raw, labels)
        check_labels(labels, self.shard.total)
        rule = replace(self.rule, margin=self.kind(self.margins(labels)))
        weight, columns = self._drawn(labels)
        elsewhere = Elsewhere(_sum, _largest, self._num_counted(weight)) if everyone else None
        found = margin_softmax(vectors, weight, columns, rule, elsewhere)
        if not everyone:
            return found.losses, found.cosine, found.correct
        return _OfThisRank.apply(found.losses), this_rank(found.cosine), this_rank(found.correct)

    def _drawn(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights that count (n, D) and the place (B,) of each label among them, -1 for none."""
        places = labels - self.shard.start
        if self.sample_rate == 1:
            return self.weight, places
        inside = (places >= 0) & (places < len(self.weight))
        counted = coins(self.shard, self.seed, self._step, labels.device) < self.sample_rate
        counted[places[inside]] = True
        chosen = counted.nonzero()[:, 0]
        places = torch.searchsorted(chosen, places).where(inside, -1)
        return self.weight.index_select(0, chosen), places

    def _num_counted(self, weight: Tensor) -> int | Tensor:
        if self.sample_rate == 1 or not self.rule.smoothing:
            return self.shard.total
        return _sum(weight.new_tensor([len(weight)]))


def own_shard(num_classes: int) -> Shard:
    """Return this rank's block: blocks are contiguous and differ by one class at most.

    Raises UserError where there are more ranks than classes.
    """
    ranks, rank = num_ranks(), distributed.get_rank() if num_ranks() > 1 else 0
    if num_classes < ranks:
        raise UserError(
            f"head: {num_classes} classes cannot be cut over {ranks} ranks; "
            f"accepted: a world size of 1 to {num_classes}, or head=arcface"
        )
    return Shard(num_classes * rank // ranks, num_classes * (rank + 1) // ranks, num_classes)


def initial_rows(shard: Shard, width: int, init: str) -> Tensor:
    """Return the shard's rows (n, D) of the weights that ArcFace would draw.

    Every rank draws them all, a few at a time, and keeps its own: the generator ends where it would with
    one rank.
    """
    bound = initial_bound((shard.total, width), init)
    own = torch.empty(shard.stop - shard.start, width)
    for first in range(0, shard.total, _DRAWN_AT_ONCE):
        last = min(first + _DRAWN_AT_ONCE, shard.total)
        rows = torch.empty(last - first, width).uniform_(-bound, bound)
        start, stop = max(first, shard.start), min(last, shard.stop)
        if start < stop:
            own[start - shard.start : stop - shard.start] = rows[start - first : stop - first]
    return own


def coins(shard: Shard, seed: int, step: int, device: torch.device) -> Tensor:
    """Return one number (n,) float64 in [0, 1) for each class, a function of seed, step and class alone."""
    of_step = int(_mixed(_mixed(torch.tensor(seed) + _GOLDEN) + step))
    numbers = torch.arange(shard.start + 1, shard.stop + 1, device=device)
    return _shifted(_mixed(numbers * _GOLDEN + of_step), 11).double() * 2.0**-53


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _mixed(bits: Tensor) -> Tensor:
    """Return the splitmix64 finaliser (Steele, Lea and Flood 2014) of int64, which wraps."""
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)  # without the sign, which int64 would drag along


class _OfAllRanks(torch.autograd.Function):
    """Vectors (b, D) to those of all ranks (B, D), in their order.

    Each rank gives back its block's gradient of the mean over ranks; DDP divides by their number again.
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        return of_all_ranks(mine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return this_rank(_sum(grad)) * num_ranks()


class _OfThisRank(torch.autograd.Function):
    """Losses of all ranks (B,) to those of this rank (b,); backward, the gradient of the mean over ranks."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor) -> Tensor:
        return this_rank(losses).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return of_all_ranks(grad) / num_ranks()


def this_rank(whole: Tensor) -> Tensor:
    """Return this rank's rows (b, ...) of those of all ranks (B, ...)."""
    return whole.view(num_ranks(), -1, *whole.shape[1:])[distributed.get_rank()]


def _sum(values: Tensor) -> Tensor:
    return _reduced(values, distributed.ReduceOp.SUM)


def _largest(values: Tensor) -> Tensor:
    return _reduced(values, distributed.ReduceOp.MAX)


def _reduced(values: Tensor, how: Any) -> Tensor:
    total = values.contiguous().clone()
    distributed.all_reduce(total, how)
    return total
