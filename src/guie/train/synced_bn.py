"""Batch normalisation over the batch of all ranks, on any backend (torch's own refuses gloo on the CPU)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, grad)


class SyncedBatchNorm(_BatchNorm):
    """A BatchNorm of 2 to 5 dimensions whose training statistics are those of all ranks' batches together.

    `drop` and `act` follow it where it replaces timm's fused norm-and-activation.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        del input

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B,C,...); the sum of squares is taken about the mean, which keeps its digits."""
        if not self.training:
            normed = super().forward(input)
        else:
            over = [dim for dim in range(input.ndim) if dim != 1]
            shape = [1, -1] + [1] * (input.ndim - 2)
            x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
            here = torch.cat([x.sum(over), x.new_tensor([x.numel() // x.shape[1]])])
            sums = _SumOverRanks.apply(here)
            count = sums[-1].detach()
            mean = sums[:-1] / count
            centred = x - mean.view(shape)
            variance = _SumOverRanks.apply(centred.square().sum(over)) / count
            self._track(mean.detach(), variance.detach(), count)
            normed = centred * torch.rsqrt(variance + self.eps).view(shape)
            if self.affine:
                normed = normed * self.weight.view(shape) + self.bias.view(shape)
            normed = normed.to(input.dtype)
        for name in ("drop", "act"):
            follows = self._modules.get(name)
            normed = normed if follows is None else follows(normed)
        return normed

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        unbiased = variance * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)


def synchronise(module: nn.Module) -> None:
    """Make every BatchNorm of `module`, in place, a synchronised one that keeps weights, hooks and mode."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.__class__ = SyncedBatchNorm
