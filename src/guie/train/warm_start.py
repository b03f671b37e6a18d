"""What a run takes over from the checkpoint that it starts from, with other classes, sizes or widths.

D width, C classes of the new head, K centres of a class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from guie.train.model import load_weights
from guie.types import Output

Means = Callable[[np.ndarray], Tensor]  # new classes (M,) -> their means (M,D), NaN where there is none


@dataclass(frozen=True)
class WarmStart:
    """What `ckpt` gives beside the backbone, and how new classes start. Config group `warm_start`.

    `head` "keep" takes its weights, those of each class by the class's name; "drop" begins it anew. A class
    that the checkpoint does not know starts as `new_classes` says: "class_mean", the mean embedding of up to
    `images_per_class` of its training pictures, where the loss would take it anyway; "known_mean", the mean
    of all former rows, which costs no pass over pictures (Landmark Recognition 2020, 2nd place); "random".
    """

    head: Literal["keep", "drop"] = "keep"
    new_classes: Literal["class_mean", "known_mean", "random"] = "class_mean"
    images_per_class: int = 10


@dataclass(frozen=True)
class Classes:
    """`source` (C,) int64: which of the `former` rows each class had, -1 for a new class."""

    source: np.ndarray
    former: int

    @property
    def new(self) -> np.ndarray:
        """Return the classes (M,) that the former head did not have."""
        return np.flatnonzero(self.source < 0)

    @property
    def same(self) -> bool:
        """Return whether both heads have the same classes in the same order."""
        return np.array_equal(self.source, np.arange(self.former))

    def of(self, parameter: Tensor) -> Classes:
        """Return the classes whose rows this rank holds of `parameter`."""
        shard = getattr(parameter, "shard", None)
        return self if shard is None else Classes(self.source[shard.start : shard.stop], self.former)

    def __str__(self) -> str:
        kept = len(self.source) - len(self.new)
        return f"{kept:,} classes kept, {len(self.new):,} new, {self.former - kept:,} gone"


def matched(former: Sequence[Mapping[str, Any]], names: Sequence[str], full: Sequence[str]) -> Classes:
    """Return which class of `former`, rows of labels.parquet in order of id, each of `names` was.

    Where the names differ, the `full` ones, which begin with that of the data set, are compared.
    """
    place = {row.get("full", row["label"]): i for i, row in enumerate(former)}
    place |= {row["label"]: i for i, row in enumerate(former)}
    source = [place.get(name, place.get(longer, -1)) for name, longer in zip(names, full, strict=True)]
    return Classes(np.array(source, np.int64), len(former))


def take_embedder(embedder: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Load every part that has the same weights; return the names of those that begin anew.

    Position embeddings of another picture size are resampled. Raises UserError where the backbone differs.
    """
    anew = []
    for part, module in embedder.named_children():
        if part == "pool" and not any(p.requires_grad for p in module.parameters()):
            continue  # a fixed exponent stands among the weights, but it is a setting
        given = {name[len(part) + 1 :]: w for name, w in weights.items() if name.startswith(f"{part}.")}
        given = resampled(module, given) if part == "backbone" else _kept_as_configured(module, given)
        if part != "backbone" and _shapes(module.state_dict()) != _shapes(given):
            anew.append(part)
        else:
            load_weights(module, given, f"embedder.{part}")
    return anew


def _kept_as_configured(neck: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the module's own `kept`: how much of a neck's output is used is a setting."""
    own = {name: w for name, w in neck.state_dict().items() if name == "kept"}
    return {name: w for name, w in given.items() if name != "kept"} | own


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


def resampled(backbone: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights, position embeddings brought to the backbone's own grid (bicubic, antialiased)."""
    own, found = backbone.state_dict(), dict(weights)
    grid: Any = next((m.grid_size for m in backbone.modules() if getattr(m, "grid_size", None)), None)
    for name in weights.keys() & own.keys():
        is_position = name.endswith(("pos_embed", "positional_embedding")) and own[name].ndim in (2, 3)
        if grid and is_position and own[name].shape != weights[name].shape:
            found[name] = _resampled(weights[name], own[name], (int(grid[0]), int(grid[1])))
    return found


def _resampled(given: Tensor, own: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return `given` ((1,) N, D), a square grid behind the prefix tokens that `own` has, at `own`'s size."""
    from timm.layers import resample_abs_pos_embed

    prefix = own.shape[-2] - grid[0] * grid[1]
    side = round(max(0, given.shape[-2] - prefix) ** 0.5)
    if prefix < 0 or side * side != given.shape[-2] - prefix:
        return given
    rows = given.reshape(1, *given.shape[-2:])
    found = resample_abs_pos_embed(rows, list(grid), [side, side], num_prefix_tokens=prefix)
    return found.reshape(*own.shape[:-1], given.shape[-1])


@torch.no_grad()
def take_head(
    head: nn.Module, weights: Mapping[str, Tensor], classes: Classes, how: WarmStart, means: Means
) -> list[str]:
    """Load what fits of a former head; return the names that begin anew or have no place any more.

    Rows of classes follow their class. A new one starts as `how` says, as long as the former rows are on
    average: a head with a margin sees directions alone, and the longer a row is the slower it turns. Buffers
    begin anew: a memory, and what follows from the data. `means` is called on all ranks or on none.
    """
    rows: list[str] = []
    anew = []
    for name, parameter in head.named_parameters():
        given = weights.get(name)
        if given is None or not parameter.requires_grad:
            anew.append(name)
        elif _has_rows(given, parameter, classes):
            _take_rows(parameter, given, classes.of(parameter))
            rows.append(name)
        elif given.shape == parameter.shape and (classes.same or not _is_listed(head, name)):
            parameter.copy_(given)
        else:
            anew.append(name)
    if rows and len(classes.new) and how.new_classes != "random":
        found = means(classes.new) if how.new_classes == "class_mean" else None
        for name in rows:
            _fill_new(head.get_parameter(name), weights[name], classes, found)
    return anew + sorted(weights.keys() - dict(head.named_parameters()).keys())


def _is_listed(head: nn.Module, name: str) -> bool:
    """Return whether a parameter is one of a list: rows of one domain's classes, it is not said which."""
    return isinstance(head.get_submodule(name.rpartition(".")[0]), nn.ParameterList)


def _has_rows(given: Tensor, parameter: Tensor, classes: Classes) -> bool:
    """Return whether both hold a row, or one number, per class: ((K,) C, D) or (C,)."""
    shape, axis = list(given.shape), -min(2, given.ndim)
    if not shape or shape[axis] != classes.former:
        return False
    shape[axis] = len(classes.of(parameter).source)
    return shape == list(parameter.shape)


def _take_rows(parameter: Tensor, given: Tensor, classes: Classes) -> None:
    axis = -min(2, given.ndim)
    known = np.flatnonzero(classes.source >= 0)
    chosen = given.index_select(axis, torch.from_numpy(classes.source[known]))
    parameter.index_copy_(axis, torch.from_numpy(known).to(parameter.device), chosen.to(parameter))


def _fill_new(parameter: Tensor, given: Tensor, classes: Classes, means: Tensor | None) -> None:
    """Fill the rows of new classes in ((K,) C, D) by `means` (M,D), else by the mean of the former rows."""
    new = classes.of(parameter).new
    places = torch.from_numpy(new).to(parameter.device)
    if given.ndim < 2:
        parameter.index_fill_(0, places, float(given.mean()))
        return
    rows = given.mean(-2, keepdim=True).expand(*given.shape[:-2], len(new), -1)
    if means is not None and means.shape[-1] == given.shape[-1]:
        offset = getattr(parameter, "shard", slice(0)).start or 0
        own = means[np.searchsorted(classes.new, new + offset)].to(given)
        rows = torch.where(own.isfinite().all(-1, keepdim=True), own, rows)
    rows = nn.functional.normalize(rows, dim=-1) * given.norm(dim=-1).mean()
    parameter.index_copy_(-2, places, rows.to(parameter))


class Raw(nn.Module):
    """An embedder whose vectors are its neck's (B,D), not brought to unit length: what a head's rows meet."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.embedder = embedder
        self.preprocess, self.embed_dim = embedder.preprocess, embedder.neck.embed_dim
        self.side_dim = getattr(embedder, "side_dim", 0)

    def forward(self, *inputs: Tensor) -> Output:
        """Return the embedder's output with `raw` for z."""
        output = self.embedder(*inputs)
        return replace(output, z=output.raw)


def class_sums(vectors: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return sums (M,D) float64 of the vectors (N,D) of each class, labels (N,) str, and how many (M,)."""
    place = {name: i for i, name in enumerate(classes)}
    of = torch.tensor([place[label] for label in labels], dtype=torch.int64)
    sums = torch.zeros(len(classes), vectors.shape[1], dtype=torch.float64)
    sums.index_add_(0, of, torch.from_numpy(vectors).double())
    return sums, torch.bincount(of, minlength=len(classes)).double()


def spread(labels: np.ndarray, classes: np.ndarray, num: int) -> np.ndarray:
    """Return up to `num` rows of each of `classes`, spread evenly over those that the class has."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], classes, side="left")
    ends = np.searchsorted(labels[order], classes, side="right")
    picked = [
        order[start + (np.arange(min(num, end - start)) * (end - start)) // max(1, min(num, end - start))]
        for start, end in zip(starts, ends, strict=True)
    ]
    return np.sort(np.concatenate([*picked, np.zeros(0, np.int64)]))
