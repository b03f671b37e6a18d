"""Any loss of pytorch-metric-learning as a head; the library is imported when one is built (extra `pml`)."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from guie.errors import UserError
from guie.heads.labels import check_labels
from guie.heads.pairs import gathered
from guie.types import Batch, Loss, Output

# Wrappers of other losses (heads of their own here) and bare classes; what wants a second set of vectors, or
# no labels; what keeps the graph of one batch for the next.
_NO_LOSSES = {"CrossBatchMemory", "SelfSupervisedLoss", "MultipleLosses", "GenericPairLoss"}
_NO_LOSSES |= {"VICRegLoss", "ManifoldLoss", "DynamicSoftMarginLoss"}
_NO_OPTIONS = {"mat_based_loss", "collect_stats", "weight_init_func"}
_WIDTHS = ("embedding_size", "descriptors_dim")
_PARTS = {
    "distance": "distances",
    "reducer": "reducers",
    "embedding_regularizer": "regularizers",
    "weight_regularizer": "regularizers",
}


class Pml(nn.Module):
    """A loss of `pytorch_metric_learning.losses` by name, on `Output.raw` of the batch of all ranks.

    `options` are the arguments of the loss in the library's own units (margins of ArcFaceLoss are degrees);
    `distance`, `reducer`, `embedding_regularizer` and `weight_regularizer` among them are names again, or
    `{name: LpDistance, p: 1}`. Number of classes and width are given where the loss wants them. `miner` and
    `miner_options` likewise, of `pytorch_metric_learning.miners`. What draws at random draws on each rank
    its own.
    """

    def __init__(
        self,
        loss: str,
        options: dict[str, Any] | None = None,
        miner: str | None = None,
        miner_options: dict[str, Any] | None = None,
        *,
        num_classes: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        facts = {"num_classes": num_classes, **dict.fromkeys(_WIDTHS, embed_dim)}
        self.inner = _made("losses", "loss", loss, options or {}, facts)
        self.miner = _made("miners", "miner", miner, miner_options or {}, {}) if miner else None
        self.num_classes = num_classes if "num_classes" in _parameters(type(self.inner)) else None

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the library's loss; logs `loss`."""
        with torch.autocast(output.raw.device.type, enabled=False):
            dtype = next((p.dtype for p in self.inner.parameters()), output.raw.dtype)
            raw, columns = gathered(output.raw.to(dtype), batch.labels)
            labels = columns[:, 0]
            if self.num_classes is not None:
                check_labels(labels, self.num_classes)
            mined = self.miner(raw, labels) if self.miner is not None else None
            total = self.inner(raw, labels, mined)
        return Loss(total, {"loss": total.detach()})


def _made(kind: str, key: str, name: str, options: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    """Return an object of `pytorch_metric_learning.<kind>`; UserError for what it does not know."""
    known = _classes(kind)
    if name not in known:
        raise UserError(f"head.{key}: {name!r} received; {_nearest(name, known)}")
    wanted = _parameters(known[name])
    accepted = [option for option in wanted if option not in facts]
    for option in options:
        if option not in accepted:
            raise UserError(f"head: {name} has no option {option!r}; {_nearest(option, accepted)}")
    given = {option: _part(option, value) for option, value in options.items()}
    needed = {fact: value for fact, value in facts.items() if wanted.get(fact)}
    try:
        return known[name](**given, **needed)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"head: {name} refuses {dict(options)}: {error}; see its documentation") from error


def _part(option: str, value: Any) -> Any:
    """Return a distance, reducer or regulariser by its name; other values as they are."""
    if option not in _PARTS or value is None:
        return value
    described = {"name": value} if isinstance(value, str) else dict(value)
    return _made(_PARTS[option], f"options.{option}", str(described.pop("name", None)), described, {})


def _classes(kind: str) -> dict[str, type]:
    try:
        module = importlib.import_module(f"pytorch_metric_learning.{kind}")
    except ImportError as error:
        raise UserError("head: Pml needs pytorch-metric-learning: pip install 'guie[pml]'") from error
    return {
        name: found
        for name, found in vars(module).items()
        if inspect.isclass(found) and issubclass(found, nn.Module)
        if not name.startswith("Base") and name not in _NO_LOSSES
    }


def _parameters(kind: type) -> dict[str, bool]:
    """Return the names that a class takes, through its bases' **kwargs, and whether each must be given."""
    found: dict[str, bool] = {}
    for ancestor in kind.__mro__:
        if "__init__" not in vars(ancestor) or ancestor is nn.Module:
            continue
        parameters = list(inspect.signature(vars(ancestor)["__init__"]).parameters.values())[1:]
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in _NO_OPTIONS:
                found.setdefault(p.name, p.default is p.empty)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _nearest(name: str, accepted: Any) -> str:
    near = difflib.get_close_matches(name, list(accepted), n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}accepted: {', '.join(sorted(accepted))}"
