"""Sharpness-aware minimisation over any optimiser: steps follow the gradient at the top of a small climb."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guie.errors import UserError
from guie.train.sharding import local, whole_norms


def sam(base: Any, rho: float = 0.05, adaptive: bool = False) -> Sam:
    """Return SAM (Foret et al., ICLR 2021) over the optimiser `base`.

    `rho` is how far the weights climb before the gradient is taken. `adaptive` (ASAM: Kwon et al., ICML 2021)
    measures that in parts of each weight and wants more of it (0.5 to 2). A step costs two forward and
    backward passes.
    """
    return Sam(base, rho, adaptive)


class Sam(Optimizer):
    """`base` with a climb: `with climbed(): gradients()` leaves the gradient at w + e(w), and w as it was.

    e(w) = rho g / |g| (Foret et al., eq. 2); adaptive, with T = diag |w|: rho T^2 g / |T g|. The norm is
    that of all groups together. State and groups are those of `base`.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        if not rho > 0:
            raise UserError(f"optim.rho: {rho} received; accepted: above 0 (0.05 is usual)")
        super().__init__(base.param_groups, {})
        self.base, self.rho, self.adaptive = base, rho, adaptive
        self.param_groups = base.param_groups

    def step(self, closure: Any = None) -> Any:
        """Step `base` with the gradients that are there."""
        return self.base.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `base`."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of `base`."""
        self.base.load_state_dict(state_dict)
        self.param_groups = self.base.param_groups

    @contextmanager
    def climbed(self) -> Iterator[None]:
        """Add e(w) to the weights, from the gradients that are there, for as long as the block lasts."""
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        weights = [local(p.detach()) for p in moved]
        kept = [weight.clone() for weight in weights]
        torch._foreach_add_(weights, self._climb(moved, [local(p.grad) for p in moved]))
        try:
            yield
        finally:
            torch._foreach_copy_(weights, kept)  # exactly: taking e(w) off again would round

    @torch.no_grad()
    def _climb(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        stretched = gradients
        if self.adaptive:
            sizes = torch._foreach_abs([local(weight) for weight in weights])
            stretched = list(torch._foreach_mul(sizes, gradients))
        norm = torch.linalg.vector_norm(torch.stack(whole_norms(torch._foreach_norm(stretched), weights)))
        scale = self.rho / (norm + 1e-12)
        if self.adaptive:
            stretched = list(torch._foreach_mul(sizes, stretched))
        return list(torch._foreach_mul(stretched, scale))


class Buffers:
    """The buffers of a module as they are now (statistics, memories), to be put back."""

    def __init__(self, module: nn.Module) -> None:
        self._kept = [
            (owner, name, buffer, buffer.clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Write the values back, in place, also where a forward pass put another tensor in the place."""
        for owner, name, buffer, value in self._kept:
            owner._buffers[name] = buffer.copy_(value)


def once_more(module: nn.Module, before: Buffers, gradients: Callable[[], object]) -> None:
    """Take `gradients` again from the buffers of `before`; those that the first pass left stay.

    Both passes so read the same memory, and statistics move once, by the batch as the weights themselves
    see it (as the usual implementations do, which turn tracking off in the second pass).
    """
    after = Buffers(module)
    before.put_back()
    gradients()
    after.put_back()
