"""Margin softmax over normalised rows with its gradient written by hand: one B x C buffer, or none.

Autograd would keep five to ten B x C tensors and normalised copies of both operands. Here the cosines of
one block of classes are formed while its weight rows are in cache, only the target's logit is changed, and
rows are scaled by their norms instead of being copied. With several sub-centres (K) the maximum over K is
taken in the same pass and only the winning row receives the gradient. Where the buffer would be larger than
the weights (and with `chunk`) there is none: the cosines are formed again in the backward pass (the idea of
cut cross-entropy).

Shapes: B batch, D width, C classes, K sub-centres; weights (K, C, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Margin = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Target cosines (B,) -> the values that replace them (B,) and the derivatives of those (B,)."""

_ZERO_LENGTH = 1e-12
_CACHE_BYTES = 4 << 20  # of a CPU core: weight rows and scratch of one block stay in it
_DEVICE_BLOCK_BYTES = 256 << 20  # on an accelerator a block only bounds memory
_SMALL_BYTES = 16 << 20  # a B x C buffer that is never worth forming the cosines twice


@dataclass(frozen=True)
class Rule:
    """What becomes of cosines: `scale` * `margin(target)`; `scale` a number, or () on the weights' device.

    `chunk` forms at most so many classes at a time and keeps no B x C buffer; None keeps the buffer where it
    is small or no larger than the weights.
    """

    margin: Margin
    scale: float | Tensor
    smoothing: float = 0.0
    chunk: int | None = None


@dataclass(frozen=True)
class Elsewhere:
    """How blocks of classes become one softmax, where the weights are one of several blocks.

    `sum` and `largest` reduce (B,) over the blocks; `classes` counts those of all blocks, a number or (1,) of
    the weights' type. A label outside 0..C-1 then means that its class is in another block; C may be 0.
    """

    sum: Callable[[Tensor], Tensor]
    largest: Callable[[Tensor], Tensor]
    classes: int | Tensor


@dataclass(frozen=True)
class Margined:
    """Per sample (B,): `losses`; and, without gradient, the target's `cosine` and if it was the largest."""

    losses: Tensor
    cosine: Tensor
    correct: Tensor


def margin_softmax(
    embeddings: Tensor, weight: Tensor, labels: Tensor, rule: Rule, elsewhere: Elsewhere | None = None
) -> Margined:
    """Return the cross-entropy of `scale * cos` with the margin on the target.

    `embeddings` (B, D) and `weight` (C, D) or (K, C, D) of any length and of one floating dtype, `labels`
    (B,) in 0..C-1 (not checked). A row of zero length has cosine 0 with everything and receives no gradient.
    With classes `elsewhere` the losses are those over all of them, the gradients only this block's share.
    """
    rows = weight if weight.dim() == 3 else weight.unsqueeze(0)
    with torch.autocast(embeddings.device.type, enabled=False):
        losses, cosine, correct = _MarginSoftmax.apply(embeddings, rows, labels, rule, elsewhere)
    return Margined(losses, cosine, correct)


@dataclass(frozen=True)
class Angular:
    """cos(angle + margin), continued by cos - margin * sin(pi - margin) past pi - margin (ArcFace).

    `margin` is one number, or (B,): one for each target.
    """

    margin: float | Tensor

    def __call__(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and slopes; the slope is bounded where the target is at angle 0 or pi."""
        margin, cos_m, sin_m = _with_cosine_and_sine(self.margin, cosine)
        sine = (1 - cosine * cosine).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
        beyond = cosine <= -cos_m
        value = torch.where(beyond, cosine - margin * sin_m, cosine * cos_m - sine * sin_m)
        slope = torch.where(beyond, torch.ones_like(cosine), cos_m + cosine / sine * sin_m)
        return value, slope


@dataclass(frozen=True)
class Additive:
    """cos - margin (CosFace, AM-softmax); margin 0 is the plain normalised softmax.

    `margin` is one number, or (B,): one for each target.
    """

    margin: float | Tensor

    def __call__(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and slopes."""
        margin = self.margin.to(cosine.dtype) if isinstance(self.margin, Tensor) else self.margin
        return cosine - margin, torch.ones_like(cosine)


def _with_cosine_and_sine(angle: float | Tensor, like: Tensor) -> tuple[Any, Any, Any]:
    if isinstance(angle, Tensor):
        angle = angle.to(like.dtype)
        return angle, angle.cos(), angle.sin()
    return angle, math.cos(angle), math.sin(angle)


class _Saved(NamedTuple):
    """What the backward pass reads; `logits` (B, C) and `winners` (B, C) uint8 only without `chunk`."""

    unit: Tensor  # (B, D) embeddings at length 1
    inverse_e: Tensor  # (B,) 1 / length of the embeddings
    weight: Tensor  # (K, C, D)
    inverse_w: Tensor  # (K, C) 1 / length of the weight rows
    labels: Tensor  # (B,)
    cosine: Tensor  # (B,) of the target, before the margin
    value: Tensor  # (B,) of the target, after the margin
    slope: Tensor  # (B,) derivative of the margin
    log_total: Tensor  # (B,) log-sum-exp of the logits
    logits: Tensor | None
    winners: Tensor | None


class _MarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, weight: Tensor, labels: Tensor, rule: Rule, elsewhere: Elsewhere | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        inverse_e = _inverse_lengths(embeddings)
        unit = embeddings * inverse_e[:, None]
        cosine = _target_cosines(unit, weight, labels, elsewhere)
        value, slope = rule.margin(cosine)
        keep = _keeps_logits(unit, weight, rule.chunk)
        logits = unit.new_empty(len(unit), weight.shape[1]) if keep else None
        winners = _winners_like(logits, weight) if logits is not None else None
        inverse_w = weight.new_empty(weight.shape[:2])
        saved = _Saved(
            unit, inverse_e, weight, inverse_w, labels, cosine, value, slope, unit[:, 0], logits, winners
        )
        sums = _LogSumExp(unit, with_sum=rule.smoothing > 0)
        for block in _blocks(weight, len(unit), rule.chunk):
            inverse_w[:, block] = _inverse_lengths(weight[:, block])
            sums.add(_block_logits(saved, rule.scale, block, fresh=True)[0])
        if elsewhere is not None:
            sums.join(elsewhere)
        ctx.classes = weight.shape[1] if elsewhere is None else elsewhere.classes
        log_total = sums.value()
        losses = log_total - (1 - rule.smoothing) * rule.scale * value
        if rule.smoothing > 0:
            losses = losses - rule.smoothing / ctx.classes * sums.plain
        ctx.rule = rule
        ctx.save_for_backward(*saved._replace(log_total=log_total))
        correct = cosine * rule.scale >= sums.top
        ctx.mark_non_differentiable(cosine, correct)
        return losses, cosine, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        saved, rule = _Saved(*ctx.saved_tensors), ctx.rule
        weight_gradient = torch.empty_like(saved.weight) if ctx.needs_input_grad[1] else None
        pulled = torch.zeros_like(saved.unit)
        each = rule.smoothing / ctx.classes
        with torch.autocast(grad.device.type, enabled=False):
            for block in _blocks(saved.weight, len(grad), rule.chunk):
                _block_backward(
                    saved, rule, block, grad, each, pulled=pulled, weight_gradient=weight_gradient
                )
        # cos = unit . w: the part along the embedding itself does not turn it
        pulled -= saved.unit * (saved.unit * pulled).sum(1, keepdim=True)
        pulled *= (rule.scale * grad * saved.inverse_e)[:, None]
        return pulled, weight_gradient, None, None, None


def _block_backward(
    saved: _Saved,
    rule: Rule,
    block: slice,
    grad: Tensor,
    each: float | Tensor,
    *,
    pulled: Tensor,
    weight_gradient: Tensor | None,
) -> None:
    """Add the block's pull on the unit embeddings to `pulled`; write its rows of the weight gradient.

    `each` is what label smoothing gives to every class.
    """
    logits, winners = _block_logits(saved, rule.scale, block, fresh=saved.logits is None)
    slopes = torch.sub(logits, saved.log_total[:, None]).exp_()
    if rule.smoothing > 0:
        slopes.sub_(each)
    at, inside = _columns(saved.labels, block)
    at_target = (slopes.gather(1, at) - (1 - rule.smoothing)) * saved.slope[:, None]
    slopes.scatter_(1, at, torch.where(inside, at_target, slopes.gather(1, at)))
    moments = slopes * logits  # derivative times scaled cosine; the target's logit is not its cosine
    true_moment = at_target * (rule.scale * saved.cosine)[:, None]
    moments.scatter_(1, at, torch.where(inside, true_moment, moments.gather(1, at)))
    pushed = saved.unit * (rule.scale * grad)[:, None]
    for k in range(saved.weight.shape[0]):
        won = None if winners is None else winners == k
        inverse, rows = saved.inverse_w[k, block], saved.weight[k, block]
        own = slopes.mul_(inverse) if won is None else (slopes * inverse).mul_(won)
        pulled.addmm_(own, rows)
        if weight_gradient is not None:
            along = grad @ (moments if won is None else moments * won)
            out = torch.mm(own.t(), pushed, out=weight_gradient[k, block])
            out.addcmul_(rows, (along * inverse * inverse)[:, None], value=-1)


def _block_logits(
    saved: _Saved, scale: float | Tensor, block: slice, *, fresh: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the block's logits (B, n), margin in place, and winning sub-centres; formed if `fresh`."""
    size = (len(saved.unit), block.stop - block.start)
    logits = saved.unit.new_empty(size) if saved.logits is None else saved.logits[:, block]
    winners = _winners_like(logits, saved.weight) if saved.winners is None else saved.winners[:, block]
    if not fresh:
        return logits, winners
    queries = saved.unit * scale
    for k, rows in enumerate(saved.weight[:, block]):
        found = torch.mm(queries, rows.t(), out=logits if k == 0 else None)
        found.mul_(saved.inverse_w[k, block])
        if k > 0 and winners is not None:
            winners.masked_fill_(found > logits, k)
            torch.maximum(logits, found, out=logits)
    at, inside = _columns(saved.labels, block)
    with_margin = (scale * saved.value)[:, None]
    logits.scatter_(1, at, torch.where(inside, with_margin, logits.gather(1, at)))
    return logits, winners


class _LogSumExp:
    """Log-sum-exp over columns that arrive in blocks, with the running maximum and the plain sum."""

    def __init__(self, like: Tensor, *, with_sum: bool) -> None:
        self.top = like.new_full((len(like),), -torch.inf)
        self.total = like.new_zeros(len(like))
        self.plain = like.new_zeros(len(like))
        self.with_sum = with_sum

    def add(self, logits: Tensor) -> None:
        top = torch.maximum(self.top, logits.amax(1))
        shifted = torch.sub(logits, top[:, None]).exp_()
        self.total = self.total * (self.top - top).exp() + shifted.sum(1)
        self.top = top
        if self.with_sum:
            self.plain += logits.sum(1)

    def join(self, elsewhere: Elsewhere) -> None:
        top = elsewhere.largest(self.top)
        self.total = elsewhere.sum(self.total * (self.top - top).exp())
        self.top = top
        if self.with_sum:
            self.plain = elsewhere.sum(self.plain)

    def value(self) -> Tensor:
        return self.top + self.total.log()


def _keeps_logits(embeddings: Tensor, weight: Tensor, chunk: int | None) -> bool:
    buffer_bytes = len(embeddings) * weight.shape[1] * weight.element_size()
    return chunk is None and buffer_bytes <= max(_SMALL_BYTES, weight.numel() * weight.element_size())


def _blocks(weight: Tensor, batch: int, chunk: int | None) -> Iterator[slice]:
    """Yield slices of classes: at most `chunk` wide, and as many as fit the cache with three scratch rows."""
    _, classes, width = weight.shape
    room = _CACHE_BYTES if weight.device.type == "cpu" else _DEVICE_BLOCK_BYTES
    step = min(chunk or max(1, classes), max(256, room // ((width + 3 * batch) * weight.element_size())))
    return (slice(start, min(start + step, classes)) for start in range(0, classes, step))


def _columns(labels: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Return each label's column (B, 1) in the block, clamped into it, and whether it is really there."""
    column = (labels - block.start)[:, None]
    width = block.stop - block.start
    return column.clamp(0, width - 1), (column >= 0) & (column < width)


def _winners_like(logits: Tensor, weight: Tensor) -> Tensor | None:
    return torch.zeros_like(logits, dtype=torch.uint8) if weight.shape[0] > 1 else None


def _target_cosines(unit: Tensor, weight: Tensor, labels: Tensor, elsewhere: Elsewhere | None) -> Tensor:
    """Return the cosine (B,) with the nearest sub-centre of each label, within -1..1 despite rounding."""
    if elsewhere is not None and not weight.shape[1]:
        return elsewhere.sum(unit.new_zeros(len(unit)))
    at, inside = _columns(labels, slice(0, weight.shape[1]))
    rows = weight[:, labels if elsewhere is None else at[:, 0]]
    cosines = ((rows * unit).sum(-1) * _inverse_lengths(rows)).amax(0).clamp(-1, 1)
    return cosines if elsewhere is None else elsewhere.sum(torch.where(inside[:, 0], cosines, 0))


def _inverse_lengths(rows: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(rows, dim=-1)
    return torch.where(length > _ZERO_LENGTH, length.reciprocal(), torch.zeros_like(length))
