"""What a run would cost, said before anything costs: `guie-train dry_run=true`.

Nothing is downloaded, decoded, trained or written (but for what opening the data caches): the model is built
with whatever its memory holds, and its activations are counted on tensors that have a shape and no content.
The head is the exception: it looks at labels, so it sees those of the first batch, on vectors drawn at
random, as one rank of as many as will train. What it refuses there ends the rehearsal as it would the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

# What torch.compile traces with: shapes, dtypes and storages as on the CPU, without their memory. It has no
# public name yet; meta tensors do not know autocast.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

# One rank of many without the others: what is gathered is its own, as many times. No public name either.
from torch.testing._internal.distributed.fake_pg import FakeStore

from guie import assembly, training
from guie.build import build
from guie.data.sampling import rank_slots
from guie.train.average import average_of
from guie.train.distributed import World, pick_device, precision
from guie.train.freezing import Freezer, frozen_parts
from guie.train.model import TrainedModel
from guie.train.settings import Settings
from guie.types import Batch, Mixed, Output


@dataclass(frozen=True)
class Costs:
    """Parameters (learning, frozen) by part; bytes of one rank by kind; bytes of a checkpoint.

    `own`: of these bytes by kind, those of the rows that a head has cut over the ranks itself.
    """

    parameters: dict[str, tuple[int, int]]
    memory: dict[str, int]
    checkpoint: int
    counted: str
    own: Mapping[str, int] = field(default_factory=dict)


def described(cfg: Mapping[str, Any], ranks: int) -> str:
    """Return what there is to say of a run on `ranks` processes, of several stages one after the other.

    Raises UserError for what would end the run before its first step.
    """
    if cfg.get("staged"):
        stages = cfg["staged"].items()
        return "\n\n".join(f"stage {name}\n{described(stage, ranks)}" for name, stage in stages)
    cfg = assembly.without_weights(cfg)  # a download is one of the costs
    data = training.open_data(cfg, World())
    settings = build(cfg["trainer"], where="trainer")
    sampler = assembly.sampler(cfg, data.rows)
    slots = rank_slots(settings.batch_size, 0, ranks, settings.accumulate)
    with last_of(ranks):
        costs = measured(cfg, data.rows, sampler, slots.shape[1])
    if cfg["hw"]["shard"] == "fsdp":
        costs = cut(costs, ranks)
    lines = [*_said_of_data(data), *_said_of_steps(settings, sampler, ranks, slots.shape[1])]
    return "\n".join([*lines, *_said_of_costs(costs, settings)])


def cut(costs: Costs, ranks: int) -> Costs:
    """Return the costs of one of `ranks` among which the weights and what belongs to them are cut."""
    memory = dict(costs.memory)
    for name in ("weights", "gradients", "optimiser", "average"):
        own = costs.own.get(name, 0)
        memory[name] = own - (own - memory[name]) // ranks
    return replace(costs, memory=memory)


@contextmanager
def last_of(ranks: int) -> Iterator[None]:
    """Be the last of `ranks` processes, whose share is the largest where one is larger."""
    if ranks == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=ranks - 1, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def measured(cfg: Mapping[str, Any], rows: Any, sampler: Any, micro_batch: int) -> Costs:
    """Return what the model needs for a micro-batch of one rank, at the step at which most of it learns.

    Raises UserError for what the head refuses at its first step.
    """
    settings = build(cfg["trainer"], where="trainer")
    dtype = precision(cfg["hw"]["precision"], pick_device(cfg["device"]))
    orientations = cfg["augment"].get("orientations", 1)
    with unfilled():
        embedder = assembly.embedder(cfg)
        head = assembly.head(cfg, embedder, rows, rows.num_classes * orientations)
    with hollow(embedder, head):
        trained, optimizer = _as_at_the_end(cfg, settings, embedder, head, dtype)
        batch = _batch(embedder, micro_batch, settings.cache_features)
        of_embedder, output = _kept_by_embedder(trained, batch, dtype, settings.cache_features)
        memory, own, saved = _weights(trained, optimizer, average_of(embedder, settings))
        parts = {"backbone": embedder.backbone, "pool": embedder.pool, "neck": embedder.neck, "head": head}
        parameters = {name: _parameters(part) for name, part in parts.items()}
    _tell_last_step(head, settings, sampler.steps_per_epoch)
    first = _first_batch(embedder, rows, sampler, orientations, settings, micro_batch)
    of_head = _kept_by_head(trained, output, first)
    memory |= {"activations": of_embedder + of_head, "batch": batch.nbytes}
    kind = str(dtype or torch.float32).removeprefix("torch.")
    counted = f"counted on a micro-batch of {micro_batch}, {kind}"
    return Costs(parameters, memory, saved, counted, own)


def _as_at_the_end(
    cfg: Mapping[str, Any], settings: Settings, embedder: Any, head: nn.Module, dtype: torch.dtype | None
) -> tuple[TrainedModel, Any]:
    """Return model and optimiser, with what is frozen at the last step: by then most of it learns."""
    optimizer = build(cfg["optim"], where="optim", embedder=embedder, head=head)
    learns = [p for group in optimizer.param_groups for p in group["params"]]
    freezer = Freezer(embedder, head, settings, learns, settings.cache_features)
    freezer.freeze(frozen_parts(settings, 1, 1))
    return TrainedModel(embedder, head, dtype, settings.cache_features).train(), optimizer


def _weights(trained: nn.Module, optimizer: Any, average: Any) -> tuple[dict[str, int], dict[str, int], int]:
    """Return the bytes of weights, gradients, optimiser state after a step, and of the average kept.

    And, by kind, those of rows that the head has cut over ranks; and those of a checkpoint: of all rows.
    """
    learning = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = _states(optimizer)
    memory = {
        "weights": _bytes(trained.state_dict().values()),
        "gradients": _bytes(learning),
        "optimiser": _bytes(value for state in states.values() for value in state),
        "average": _bytes(average.average.values()) if average else 0,
    }
    own, elsewhere = {"weights": 0, "gradients": 0, "optimiser": 0}, 0
    sharded: list[Any] = [p for p in trained.parameters() if hasattr(p, "shard")]
    for parameter in sharded:
        state = [value for value in states.get(parameter, ()) if value.dim()]
        own["weights"] += _bytes([parameter])
        own["gradients"] += _bytes([parameter] * parameter.requires_grad)
        own["optimiser"] += _bytes(state)
        elsewhere += _bytes([parameter, *state]) * (parameter.shard.total - len(parameter)) // len(parameter)
    return memory, own, sum(memory[name] for name in ("weights", "optimiser", "average")) + elsewhere


def _states(optimizer: Any) -> dict[Tensor, list[Tensor]]:
    """Return what the optimiser keeps of each parameter that has stepped."""
    learn = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()["state"]
    return {learn[i]: [v for v in kept.values() if isinstance(v, Tensor)] for i, kept in state.items()}


class _Unfilled(TorchFunctionMode):
    """Leaves new tensors as they are found: random numbers for a billion weights take half a minute."""

    _fills = (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._fills or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def unfilled() -> Iterator[None]:
    """Build modules without drawing their weights, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]), _Unfilled():
        yield


@contextmanager
def hollow(*modules: nn.Module) -> Iterator[None]:
    """Take away the content of parameters and buffers, as of all tensors made inside, until the end."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    parts = [part for module in modules for part in module.modules()]
    real: list[Any] = [(held, dict(held)) for part in parts for held in (part._parameters, part._buffers)]
    for held, values in real:
        held.update({name: _hollowed(value, mode) for name, value in values.items() if value is not None})
    try:
        with mode:
            yield
    finally:
        for held, values in real:
            held.update(values)


def _hollowed(value: Tensor, mode: FakeTensorMode) -> Tensor:
    if not isinstance(value, nn.Parameter):
        return mode.from_tensor(value)
    made = nn.Parameter(mode.from_tensor(value.detach()), requires_grad=value.requires_grad)
    vars(made).update(vars(value))  # how it is cut over ranks
    return made


class Kept:
    """Counts the bytes that autograd keeps for the backward pass, each storage once, but for those `own`."""

    def __init__(self, own: Iterator[Tensor]) -> None:
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._found: dict[int, Tensor] = {}  # held, so that no storage is taken for a former one

    def __call__(self, tensor: Tensor) -> Tensor:
        """Note a tensor that is kept."""
        key = tensor.untyped_storage()._cdata
        if key not in self._own:
            self._found[key] = tensor
        return tensor

    @property
    def num_bytes(self) -> int:
        """Return how many bytes were kept."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._found.values())

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is kept inside of the block."""
        with torch.autograd.graph.saved_tensors_hooks(self, lambda tensor: tensor):
            yield


def _batch(embedder: Any, size: int, features: bool) -> Tensor:
    if features:
        return torch.empty(size, embedder.backbone.out_dim)
    return torch.empty(size, 3, *embedder.preprocess.size_px, dtype=torch.uint8)


def _kept_by_embedder(
    trained: Any, batch: Tensor, dtype: torch.dtype | None, features: bool
) -> tuple[int, Output]:
    """Return what is kept for the backward pass, and the output."""
    run = trained.embedder.from_features if features else trained.embedder
    kept = Kept(iter([*trained.parameters(), *trained.buffers(), batch]))
    side = {"side": _side(trained.embedder, len(batch))} if trained.embedder.side_dim else {}
    with kept.counting(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        output = run(batch, **side)
    return kept.num_bytes, output


def _kept_by_head(trained: Any, output: Output, batch: Batch) -> int:
    """Return what a real head keeps of real vectors of the shapes of `output`: heads look at their labels."""
    feature, tokens, raw = (_drawn(value) for value in (output.feature, output.tokens, output.raw))
    inputs = [value for value in (feature, tokens, raw) if value is not None]
    kept = Kept(iter([*trained.head.parameters(), *trained.head.buffers(), *inputs]))
    with kept.counting():
        trained.loss(Output(feature, tokens, raw, nn.functional.normalize(raw, dim=1)), batch)
    return kept.num_bytes


def _drawn(like: Any) -> Any:
    """Return random numbers, at least float32, of the shape of a hollow tensor."""
    return None if like is None else torch.randn(tuple(like.shape), requires_grad=like.requires_grad)


def _tell_last_step(head: nn.Module, settings: Settings, steps_per_epoch: int) -> None:
    steps = settings.num_steps(steps_per_epoch)
    paced: list[Any] = [part for part in head.modules() if hasattr(part, "at_step")]
    for part in paced:
        part.at_step(steps - 1, steps, steps_per_epoch)


def _first_batch(
    embedder: Any, rows: Any, sampler: Any, orientations: int, settings: Settings, size: int
) -> Batch:
    """Return the first `size` rows of the first batch, with black pictures."""
    row, orientation = (part[:size] for part in np.divmod(sampler.batch(0), orientations))
    images = _batch(embedder, size, settings.cache_features).zero_()
    columns = rows.labels[row] * orientations + orientation, rows.domains[row], row
    labels, domains, ids = (torch.from_numpy(column) for column in columns)
    side = _side(embedder, size) if embedder.side_dim else None
    mixes = settings.cache_features and settings.mixup_alpha
    mixed = Mixed(labels, domains, ids, torch.tensor(0.5)) if mixes else None
    return Batch(images, labels, domains, ids, side, mixed)


def _side(embedder: Any, size: int) -> Tensor:
    return torch.ones(size, embedder.side_dim)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _parameters(module: nn.Module) -> tuple[int, int]:
    learning = sum(_numel(p) for p in module.parameters() if p.requires_grad)
    return learning, sum(map(_numel, module.parameters())) - learning


def _numel(parameter: Any) -> int:
    """Return how many numbers a parameter has on all ranks together."""
    size = parameter.numel()
    return size * parameter.shard.total // len(parameter) if hasattr(parameter, "shard") else size


def _said_of_data(data: training.Data) -> list[str]:
    rows = data.rows
    counts = np.bincount(rows.labels)
    spread = f"{counts.min():,} to {counts.max():,} each, median {np.median(counts):,.0f}"
    lines = [_line("pictures", f"{len(rows):,} of {rows.num_classes:,} classes ({spread})")]
    for number, name in enumerate(rows.domain_names):
        own = rows.labels[rows.domains == number]
        lines.append(_line("", f"{name or 'no domain'}: {len(own):,} of {len(np.unique(own)):,} classes"))
    for name, asked in data.asked.items():
        splits = asked.splits
        roles = [
            f"{np.isin(splits, [s, 'test']).sum():,} {w}" for s, w in (("query", "ask"), ("index", "answer"))
        ]
        size = (
            f"{len(asked):,} pictures of {asked.num_classes:,} classes in {len(asked.domain_names)} domains"
        )
        lines.append(_line("evaluation", f"{name}: {size}; {', '.join(roles)}"))
    return [*lines, *(_line("WARNING", leak) for leak in data.leaks)]


def _said_of_steps(settings: Settings, sampler: Any, ranks: int, micro_batch: int) -> list[str]:
    each = sampler.steps_per_epoch
    steps = settings.num_steps(each)
    cut = f"{ranks} ranks x {settings.accumulate} micro-batches x {micro_batch}"
    return [
        _line("steps", f"{steps:,}: {steps / each:g} epochs of {each:,}"),
        _line("batch", f"{settings.batch_size:,} = {cut}"),
    ]


def _said_of_costs(costs: Costs, settings: Settings) -> list[str]:
    lines: list[str] = []
    for name, (learning, frozen) in costs.parameters.items():
        lines.append(_line("" if lines else "parameters", f"{name}: {learning:,} learn, {frozen:,} frozen"))
    total = sum(costs.memory.values())
    lines.append(_line("memory", f"{_size(total)} per rank at least, estimated"))
    lines.append(_line("", ", ".join(f"{name} {_size(size)}" for name, size in costs.memory.items() if size)))
    lines.append(_line("", f"activations {costs.counted}; a kernel's own workspace comes on top"))
    kept = f"the last {settings.keep} and the best are kept"
    return [*lines, _line("checkpoint", f"{_size(costs.checkpoint)}, {kept}")]


def _line(name: str, said: str) -> str:
    return f"{name:<12}{said}"


def _size(num_bytes: int) -> str:
    """Return a size as people read it: 1.2 GiB, 340 MiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
