"""What a run would cost, said before anything costs: `guie-train dry_run=true`.

Nothing is downloaded, decoded, trained or written (but for what opening the data caches): the model is built
with whatever its memory holds, and its activations are counted on tensors that have a shape and no content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What torch.compile traces with: shapes, dtypes and storages as on the CPU, without their memory. It has no
# public name yet; meta tensors do not know autocast.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from guie import assembly, training
from guie.build import build
from guie.data.sampling import rank_slots
from guie.train.average import average_of
from guie.train.distributed import World, pick_device, precision
from guie.train.freezing import Freezer, frozen_parts
from guie.train.model import TrainedModel
from guie.train.settings import Settings
from guie.types import Batch, Output


@dataclass(frozen=True)
class Costs:
    """Parameters (learning, frozen) by part; bytes of one rank by kind; bytes of a checkpoint."""

    parameters: dict[str, tuple[int, int]]
    memory: dict[str, int]
    checkpoint: int
    counted: str


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
    costs = measured(cfg, data.rows, sampler, slots.shape[1])
    if cfg["hw"]["shard"] == "fsdp":
        costs = cut(costs, ranks)
    lines = [*_said_of_data(data), *_said_of_steps(settings, sampler, ranks, slots.shape[1])]
    return "\n".join([*lines, *_said_of_costs(costs, settings)])


def cut(costs: Costs, ranks: int) -> Costs:
    """Return the costs of one of `ranks` among which the weights and what belongs to them are cut."""
    cut = ("weights", "gradients", "optimiser", "average")
    memory = {name: -(-size // ranks) if name in cut else size for name, size in costs.memory.items()}
    return replace(costs, memory=memory)


def measured(cfg: Mapping[str, Any], rows: Any, sampler: Any, micro_batch: int) -> Costs:
    """Return what the model needs for a micro-batch of one rank, at the step at which most of it learns."""
    settings = build(cfg["trainer"], where="trainer")
    dtype = precision(cfg["hw"]["precision"], pick_device(cfg["device"]))
    orientations = cfg["augment"].get("orientations", 1)
    with unfilled():
        embedder = assembly.embedder(cfg)
        head = assembly.head(cfg, embedder, rows, rows.num_classes * orientations)
    labels = _labels(rows, sampler, orientations)[:micro_batch]
    of_head, counted = _kept_by_head(head, embedder, labels)
    with hollow(embedder, head):
        trained, optimizer = _as_at_the_end(cfg, settings, embedder, head, dtype)
        batch = _batch(embedder, micro_batch, settings.cache_features)
        of_embedder = _kept_by_embedder(trained, batch, dtype, settings.cache_features)
        memory = _weights(trained, optimizer, average_of(embedder, settings))
    saved = sum(memory[name] for name in ("weights", "optimiser", "average"))
    memory |= {"activations": of_embedder + of_head, "batch": batch.nbytes}
    parts = {"backbone": embedder.backbone, "pool": embedder.pool, "neck": embedder.neck, "head": head}
    counted += f" on a micro-batch of {micro_batch}, {str(dtype or torch.float32).removeprefix('torch.')}"
    return Costs({name: _parameters(part) for name, part in parts.items()}, memory, saved, counted)


def _as_at_the_end(
    cfg: Mapping[str, Any], settings: Settings, embedder: Any, head: nn.Module, dtype: torch.dtype | None
) -> tuple[TrainedModel, Any]:
    """Return model and optimiser, with what is frozen at the last step: by then most of it learns."""
    optimizer = build(cfg["optim"], where="optim", embedder=embedder, head=head)
    learns = [p for group in optimizer.param_groups for p in group["params"]]
    freezer = Freezer(embedder, head, settings, learns, settings.cache_features)
    freezer.freeze(frozen_parts(settings, 1, 1))
    return TrainedModel(embedder, head, dtype, settings.cache_features).train(), optimizer


def _weights(trained: nn.Module, optimizer: Any, average: Any) -> dict[str, int]:
    """Return the bytes of weights, gradients, optimiser state after a step, and of the average kept."""
    learning = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    return {
        "weights": _bytes(trained.state_dict().values()),
        "gradients": _bytes(learning),
        "optimiser": _bytes(value for value in state if isinstance(value, Tensor)),
        "average": _bytes(average.average.values()) if average else 0,
    }


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
    """Replace, in place, each parameter and buffer by one without content, as all tensors made inside are."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for part in (part for module in modules for part in module.modules()):
        for name, value in part._parameters.items():
            if value is not None:
                fake = mode.from_tensor(value.detach())
                part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer)
    with mode:
        yield


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


def _kept_by_embedder(trained: Any, batch: Tensor, dtype: torch.dtype | None, features: bool) -> int:
    run = trained.embedder.from_features if features else trained.embedder
    kept = Kept(iter([*trained.parameters(), *trained.buffers(), batch]))
    side = {"side": torch.empty(len(batch), trained.embedder.side_dim)} if trained.embedder.side_dim else {}
    with kept.counting(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        output = run(batch, **side)
    del output
    return kept.num_bytes


def _kept_by_head(head: nn.Module, embedder: Any, labels: np.ndarray) -> tuple[int, str]:
    """Return what a real head keeps of real vectors, and how it was counted: heads look at their labels."""
    size = len(labels)
    raw = torch.randn(size, embedder.neck.embed_dim, requires_grad=True)
    feature = torch.randn(size, embedder.backbone.out_dim)
    given = torch.from_numpy(labels)
    batch = Batch(_batch(embedder, size, False).zero_(), given, torch.zeros_like(given), torch.arange(size))
    kept = Kept(iter([*head.parameters(), *head.buffers(), raw, feature]))
    try:
        with kept.counting():
            head(Output(feature, None, raw, nn.functional.normalize(raw, dim=1)), batch)
    except Exception as error:
        return 0, f"counted (without the head: {' '.join(str(error).split())[:80]})"
    return kept.num_bytes, "counted"


def _labels(rows: Any, sampler: Any, orientations: int) -> np.ndarray:
    """Return the class ids of the first batch."""
    row, orientation = np.divmod(sampler.batch(0), orientations)
    return rows.labels[row] * orientations + orientation


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _parameters(module: nn.Module) -> tuple[int, int]:
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return learning, sum(p.numel() for p in module.parameters()) - learning


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
