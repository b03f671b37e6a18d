"""What the fit loop is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from guie.checkpoint import State, Store
from guie.train.hooks import Hook
from guie.types import Batch

Batches = Callable[[int, int], Iterator[Batch]]
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]


@dataclass
class Task:
    """What is trained on what. `batches(start, stop)` yields this rank's share of each global step's batch.

    A part of the head with `at_step(step, steps, steps_per_epoch)` is told of each step before it is taken.
    With `features` the batches hold cached features (B,F) in place of images. `evaluate(embedder, step)` is
    called on every rank with the weights that would be exported; it may return nothing but on rank 0 (with
    `hw.shard=fsdp` only rank 0's embedder has weights).
    `refit(embedder)` is called on rank 0 after the last step, with the same weights; the neck that it leaves
    is saved beside the trained one, which stays as it is.
    """

    embedder: nn.Module
    head: nn.Module
    optimizer: Optimizer
    batches: Batches
    steps_per_epoch: int
    evaluate: Evaluate | None = None
    features: bool = False
    refit: Callable[[nn.Module], None] | None = None


@dataclass
class Run:
    """Where a run's results go and where it starts: `store` and `hooks` are used on rank 0 only.

    `meta` is kept in each checkpoint (config, preprocess, labels); `describe(weights)` adds what depends on
    the weights (the space id). `resume` is the state to continue from. `save_at` adds checkpoints at these
    steps.
    """

    store: Store | None = None
    hooks: Sequence[Hook] = ()
    seed: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    describe: Callable[[Mapping[str, Tensor]], Mapping[str, Any]] | None = None
    resume: State | None = None
    save_at: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Summary:
    """How training ended: `signal` is 0 unless it was asked to stop; `exit_code` is what a shell expects."""

    step: int
    steps: int
    best: Mapping[str, Any] | None
    signal: int = 0

    @property
    def exit_code(self) -> int:
        """Return 0, or 128 + signal: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signal if self.signal else 0
