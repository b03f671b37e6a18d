"""The moving parts of one run between two steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from guie.checkpoint import State
from guie.errors import UserError
from guie.train.average import average_of
from guie.train.distributed import Hardware, World, precision, replicate
from guie.train.freezing import Freezer, frozen_parts
from guie.train.fsdp import Cut, check, cut, filled
from guie.train.gradients import clip, gradient_norms, parts_of
from guie.train.model import TrainedModel, load_weights
from guie.train.optim import load_state, settle
from guie.train.pieces import seed_everything, split, to_device
from guie.train.sam import Buffers, Sam, once_more
from guie.train.schedule import warmup
from guie.train.settings import Settings
from guie.train.sharding import own_state, own_weights, scaler, sharded_names, whole_state, whole_weights
from guie.train.task import Run, Task
from guie.types import Batch


class Engine:
    """The moving parts of one run between two steps; `step` counts finished optimiser steps."""

    def __init__(self, task: Task, settings: Settings, hardware: Hardware, world: World, run: Run) -> None:
        self.task, self.settings, self.world, self.run = task, settings, world, run
        self.steps = settings.num_steps(task.steps_per_epoch)
        self.step = 0
        self.best: dict[str, Any] | None = None
        _set_threads(hardware)
        self.dtype = precision(hardware.precision, world.device)
        self.trained = TrainedModel(task.embedder, task.head, self.dtype, task.features)
        self._skeleton = self._cut(hardware)
        self.trained.configure(settings.freeze_bn, settings.sync_bn, hardware.channels_last, world)
        settle(task.optimizer, world.device)
        self.scaler = scaler(task.head, world.device, enabled=self.dtype is torch.float16)
        self.average = average_of(task.embedder, settings)
        self.pace = settings.pace(task.steps_per_epoch)
        self._paced: list[Any] = [part for part in task.head.modules() if hasattr(part, "at_step")]
        self.parts = parts_of(task.optimizer.param_groups)
        learns = [parameter for part in self.parts.values() for parameter in part]
        self._freezer = Freezer(task.embedder, task.head, settings, learns, cached=task.features)
        self.window: dict[str, Tensor] = {}
        self.num_in_window = 0
        self.evaluated_at = 0
        self.refitted: dict[str, Tensor] = {}
        self._unchecked: list[tuple[int, Tensor, dict[str, Tensor]]] = []
        if run.resume is not None:
            self._load(run.resume)
        self._compiled: Any = torch.compile(self.trained) if hardware.compile else self.trained
        self._enter(frozen_parts(settings, self.step, self.steps))

    def _cut(self, hardware: Hardware) -> nn.Module | None:
        check(hardware)
        if hardware.shard == "none" or self.world.size == 1:
            return None
        return cut(self.trained, self.task.optimizer, self.dtype, self.settings.sync_bn, self.world)

    @property
    def epoch(self) -> float:
        """Return how many epochs are done, with the started one as a fraction."""
        return self.step / self.task.steps_per_epoch

    def advance(self, batch: Batch) -> None:
        """Take one optimiser step on this rank's share of a global batch."""
        frozen = frozen_parts(self.settings, self.step, self.steps)
        if frozen != self._frozen:
            self._enter(frozen)
        self._set_rates()
        for part in self._paced:
            part.at_step(self.step, self.steps, self.task.steps_per_epoch)
        before = Buffers(self.trained) if isinstance(self.task.optimizer, Sam) else None
        values = self.gradients(batch)
        values.update(self.update(batch, before))
        self.step += 1
        self._unchecked.append((self.step, batch.ids, values))
        self.num_in_window += 1
        for name, value in values.items():
            self.window[name] = self.window[name] + value if name in self.window else value

    def _enter(self, frozen: frozenset[str]) -> None:
        """Freeze these parts and no others; the ranks agree anew on whose gradients they share."""
        self._frozen = frozen
        self.task.optimizer.zero_grad(set_to_none=True)
        self._freezer.freeze(frozen)
        self.model: Any = None  # the former wrapper takes its hooks with it
        apart, static = sharded_names(self._compiled), self.settings.accumulate == 1
        alone = self._skeleton is None
        self.model = replicate(self._compiled, self.world, static, apart) if alone else Cut(self.trained)
        self.trained.train()

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Leave the gradient of the batch's mean loss in the parameters; return loss and scalars."""
        seed_everything(self.run.seed, self.step, self.world.rank)
        self.task.optimizer.zero_grad(set_to_none=True)
        pieces = split(
            to_device(batch, self.world.device, self.trained.memory_format), self.settings.accumulate
        )
        values: dict[str, Tensor] = {}
        for i, piece in enumerate(pieces):
            share = len(piece.labels) / len(batch.labels)
            with self._without_sync(last=i == len(pieces) - 1):
                loss, scalars = self.model(piece)
                self.scaler.scale(loss * share).backward()
            for name, value in {"loss": loss.detach(), **scalars}.items():
                values[name] = values.get(name, 0.0) + value * share
        return values

    def update(self, batch: Batch, before: Buffers | None = None) -> dict[str, Tensor]:
        """Unscale, clip and apply the gradients; return their norms before clipping.

        With SAM they are first taken again at the top of its climb, from the buffers that were there before.
        """
        optimizer = self.task.optimizer
        self.scaler.unscale_(optimizer)
        norms = gradient_norms(self.parts)
        if isinstance(optimizer, Sam) and before and self._may_climb(norms["grad_norm"]):
            self.scaler.update()  # which lets the second gradient be unscaled
            with optimizer.climbed():
                once_more(self.trained, before, lambda: self.gradients(batch))
            self.scaler.unscale_(optimizer)
            norms = gradient_norms(self.parts)
        if self.settings.clip_norm:
            clip(self.parts, self.settings.clip_norm, norms["grad_norm"])
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()
        return norms

    def _may_climb(self, norm: Tensor) -> bool:
        # An overflow of fp16: the scaler has seen it and skips the whole step.
        return not self.scaler.is_enabled() or bool(torch.isfinite(norm))

    def _set_rates(self) -> None:
        factor, momentum = self.pace.factor(self.step), self.pace.momentum(self.step)
        late = factor * self._late_factor()
        for group in self.task.optimizer.param_groups:
            of_backbone = str(group.get("name", "")).startswith("backbone")
            group["lr"] = group["initial_lr"] * (late if of_backbone else factor)
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif momentum is not None and "momentum" in group:
                group["momentum"] = momentum

    def _late_factor(self) -> float:
        """Return the warm-up of a backbone that learns later than the rest."""
        since = self.step - self.settings.unfreeze_step(self.steps)
        rise = round(self.settings.unfreeze_warmup * self.steps)
        return warmup(since, rise) if self.settings.unfreeze_at and 0 <= since < rise else 1.0

    def _without_sync(self, last: bool) -> AbstractContextManager:
        if last or not isinstance(self.model, nn.parallel.DistributedDataParallel | Cut):
            return nullcontext()
        return self.model.no_sync()

    def checks_now(self) -> bool:
        """Return whether losses are looked at now: always before one is told or saved, on a GPU only then."""
        return self.world.device.type == "cpu" or self.logs_now() or any(self.due())

    def require_finite(self) -> None:
        """Raise UserError on every rank, naming step and batch ids, where a loss or gradient is NaN."""
        unchecked, self._unchecked = self._unchecked, []
        bad = next((entry for entry in unchecked if not self._is_finite(entry[2])), None)
        if not self.world.any(int(bad is not None)):
            return
        step, ids = _first_bad(self.world.gather(None if bad is None else (bad[0], _bad_ids(bad))))
        named = f"loss of batch ids {ids[:32]}" if ids else "gradient"
        more = f" and {len(ids) - 32} more" if len(ids) > 32 else ""
        raise UserError(
            f"training: {named}{more} at step {step} is not finite; nothing of it was saved; "
            "a lower optim.lr, trainer.clip_norm=1 or hw.precision=fp32 may help"
        )

    def _is_finite(self, values: Mapping[str, Tensor]) -> bool:
        # fp16 gradients overflow as a matter of course: the scaler skips that step and lowers its scale.
        watched = ["loss"] if self.scaler.is_enabled() else ["loss", "grad_norm"]
        return all(bool(torch.isfinite(values[name])) for name in watched)

    def logs_now(self) -> bool:
        """Return whether this step ends a window of measurements."""
        return self.step % self.settings.log_every == 0 or self.step == self.steps

    def measured(self) -> dict[str, float]:
        """Return the means of the window that ends here, over its steps and all ranks, and begin another.

        A scalar of shape (2,) is a sum and its weight: it becomes their quotient, left out without weight.
        """
        names = sorted(self.window)
        sums = [self.window[name].detach().double().cpu().reshape(-1) for name in names]
        means = self.world.mean(torch.cat(sums) / self.num_in_window).split([len(s) for s in sums])
        self.window, self.num_in_window = {}, 0
        rate = max(group["lr"] for group in self.task.optimizer.param_groups)
        found = {name: _quotient(mean.tolist()) for name, mean in zip(names, means, strict=True)}
        values = {name: value for name, value in found.items() if value is not None}
        first = {"step": self.step, "epoch": self.epoch, "loss": values.pop("loss")}
        return {**first, **values, "lr": rate}

    def due(self) -> tuple[bool, bool]:
        """Return whether this step is one to evaluate at, and one to save at."""
        settings, last = self.settings, self.step == self.steps
        epoch, inside = divmod(self.step, self.task.steps_per_epoch)
        evaluates = last or (inside == 0 and _every(epoch, settings.eval_every))
        saves = last or (inside == 0 and _every(epoch, settings.save_every))
        saves = saves or _every(self.step, settings.save_steps or 0) or self.step in self.run.save_at
        return evaluates and self.task.evaluate is not None, saves

    def evaluate(self) -> dict[str, float]:
        """Call the task's evaluation with the weights that would be exported."""
        if self.task.evaluate is None:
            return {}
        with self._in_use() as embedder:
            found = dict(self.task.evaluate(embedder, self.step))
        self.evaluated_at = self.step
        return found

    def refit(self) -> None:
        """After the last step find the neck that is used in place of the trained one, on rank 0."""
        if not self._refits():
            return
        with self._in_use() as embedder:
            self.world.on_main(lambda: self.task.refit(embedder) if self.task.refit else None)
            state = embedder.state_dict()
            self.refitted = {n: v.detach().clone() for n, v in state.items() if n.startswith("neck.")}

    def _refits(self) -> bool:
        return self.task.refit is not None and self.step == self.steps and not self.refitted

    @contextmanager
    def _in_use(self) -> Iterator[nn.Module]:
        """Lend the embedder with the weights that would be exported; its own come back afterwards.

        Of an embedder that is cut rank 0 lends a whole copy, the others one without weights.
        """
        if self._skeleton is not None:
            with torch.no_grad():
                yield self._whole_embedder(self._skeleton)
            return
        embedder = self.task.embedder
        kept = {name: value.detach().clone() for name, value in embedder.state_dict().items()}
        self.trained.eval()
        try:
            with self.average.applied() if self.average else nullcontext(), torch.no_grad():
                embedder.load_state_dict(self.refitted, strict=False)
                yield embedder
        finally:
            embedder.load_state_dict(kept)
            self.trained.train()

    def _whole_embedder(self, skeleton: nn.Module) -> nn.Module:
        average = self.average.average if self.average else None
        weights = whole_weights(self.task.embedder, self.world, average) | self.refitted
        return filled(skeleton, weights, self.world.device) if self.world.is_main else skeleton

    def owes_evaluation(self) -> bool:
        """Return whether the run was stopped before an evaluation or the refit that was due."""
        evaluates = self.step > 0 and self.due()[0] and self.evaluated_at != self.step
        return evaluates or self._refits()

    def judge(self, found: Mapping[str, float]) -> dict[str, Any] | None:
        """Return what makes this step the best so far, or None where it is not."""
        score = self.world.on_main(lambda: self._score(found))
        if score is None or (self.best and score <= self.best["score"]):
            return None
        self.best = {"metric": self.settings.monitor, "score": score, "step": self.step}
        return self.best

    def _score(self, found: Mapping[str, float]) -> float | None:
        if found and self.settings.monitor not in found:
            accepted = ", ".join(sorted(found))
            raise UserError(f"trainer.monitor: '{self.settings.monitor}'; accepted: {accepted}")
        score = float(found.get(self.settings.monitor, math.nan))
        return None if math.isnan(score) else score

    def save(self, best: Mapping[str, Any] | None) -> None:
        """Write a checkpoint on rank 0; the others wait."""
        # Every rank continues from the same window: the mean of them all.
        self.window = {name: self.world.mean(self.window[name]) for name in sorted(self.window)}
        state = self.state()
        self.world.on_main(lambda: self._write(state, best))

    def _write(self, state: State, best: Mapping[str, Any] | None) -> None:
        if self.run.describe:
            state.meta.update(self.run.describe(state.weights))
        if self.run.store is not None:
            self.run.store.save(state, best)

    def state(self) -> State:
        """Return everything that is needed to continue from here, whole on rank 0; all ranks ask together."""
        embedder, world = self.task.embedder, self.world
        parts = {"embedder": whole_weights(embedder, world), "head": whole_weights(self.task.head, world)}
        names = ("window", "num_in_window", "evaluated_at", "best")
        training: dict[str, Any] = {name: getattr(self, name) for name in names}
        training["optimizer"] = whole_state(self.task.optimizer, self.world)
        training["scaler"] = self.scaler.state_dict()
        if self.average:
            parts["ema"] = whole_weights(embedder, world, self.average.average)
            training["ema_updates"] = self.average.num_updates
        if self.refitted:
            parts["refit"] = self.refitted
        return State(self.step, parts, training, {**self.run.meta, "seed": self.run.seed})

    def _load(self, state: State) -> None:
        for part, module in (("embedder", self.task.embedder), ("head", self.task.head)):
            load_weights(module, own_weights(module, state.parts[part], part), part)
        load_state(self.task.optimizer, own_state(self.task.optimizer, state.training["optimizer"]))
        self.scaler.load_state_dict(state.training["scaler"])
        self.window = {name: value.to(self.world.device) for name, value in state.training["window"].items()}
        self.num_in_window = state.training["num_in_window"]
        self.best = state.training["best"]
        self.evaluated_at = state.training["evaluated_at"]
        self.step = state.step
        if self.step == self.steps:  # with more epochs another neck will be found
            self.refitted = state.parts.get("refit", {})
        if self.average:
            average = state.parts.get("ema") or state.parts["embedder"]
            own = own_weights(self.task.embedder, average, "ema")
            self.average.load(own, state.training.get("ema_updates", 0))


def _bad_ids(entry: tuple[int, Tensor, dict[str, Tensor]]) -> list[int]:
    _, ids, values = entry
    return [] if bool(torch.isfinite(values["loss"])) else ids.tolist()


def _first_bad(found: Sequence[tuple[int, list[int]] | None]) -> tuple[int, list[int]]:
    """Return the first step that any rank found bad, and the batch ids of the ranks whose loss it was."""
    present = [entry for entry in found if entry is not None]
    step = min(entry[0] for entry in present)
    return step, sorted({row for entry in present if entry[0] == step for row in entry[1]})


def _quotient(mean: list[float]) -> float | None:
    if len(mean) == 1:
        return mean[0]
    return mean[0] / mean[1] if mean[1] else None


def _every(count: int, period: int) -> bool:
    return period > 0 and count > 0 and count % period == 0


def _set_threads(hardware: Hardware) -> None:
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = hardware.tf32
        torch.backends.cudnn.allow_tf32 = hardware.tf32
