"""What is exported as one torch module: pictures of any size in, unit vectors out.

A format lowers it in its own way: `prepare` makes the module that brings pictures to a network, `lower` turns
a network into what the format can hold. TorchScript compiles all of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.export.gated import Chosen, Gated
from guie.export.precision import cast
from guie.export.prepare import Levels, Normalised
from guie.export.source import Request, Source
from guie.postprocess.layers import Layer, Mapped, Subtracted
from guie.side import SIDE_DIM
from guie.views import Gating, View, Views, Whole

# The largest batch that a network is shown when it is traced: more than one, so that it stays free.
TRACED = 2


class Network(nn.Module):
    """An embedder without preprocessing: (B,3,h,w) uint8, and (B,3) where it reads side inputs.

    Gives its vectors before they are brought to unit length, (B,D) float32, and its pooled feature (B,F).
    """

    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor, side: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return raw vectors, as many numbers as z has, and features."""
        output = self.embedder(images) if side is None else self.embedder(images, side)
        return output.raw[:, : output.z.size(1)].float(), output.feature.float()


class Look(nn.Module):
    """One view of pictures through a network: (B,3,H,W) uint8 to its raw vectors and features."""

    def __init__(self, prepare: nn.Module, mirrored: bool, network: nn.Module) -> None:
        super().__init__()
        self.prepare, self.network = prepare, network
        self.mirrored = mirrored

    def seen(self, images: Tensor) -> Tensor:
        """Return what the network is shown, (B,3,h,w) uint8."""
        shown = self.prepare(images)
        return shown.flip(3) if self.mirrored else shown

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw vectors (B,D) and features (B,F)."""
        return self.network(self.seen(images))


class SidedLook(Look):
    """A view through a network that reads the side inputs, of the size that the pictures come in."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw vectors (B,D) and features (B,F)."""
        height, width = images.size(2), images.size(3)
        numbers = [height / width, height / 224, width / 224]  # guie.side, for the compiler
        side = torch.tensor(numbers, dtype=torch.float32, device=images.device)
        return self.network(self.seen(images), side.expand(images.size(0), 3))


class Member(nn.Module):
    """One embedder through all its looks: (B,3,H,W) uint8 to (B,D) of unit length."""

    def __init__(self, looks: list[Look], summed: str) -> None:
        super().__init__()
        self.looks = nn.ModuleList(looks)
        self.unit = summed == "unit"

    def forward(self, images: Tensor) -> Tensor:
        """Return the unit vector of the sum over looks."""
        vectors: list[Tensor] = []
        for look in self.looks:
            raw, _ = look(images)
            vectors.append(functional.normalize(raw, dim=1) if self.unit else raw)
        return functional.normalize(torch.stack(vectors).sum(0), dim=1)


class Single(nn.Module):
    """One embedder that looks once: (B,3,H,W) uint8 to (B,D) of unit length."""

    def __init__(self, look: Look) -> None:
        super().__init__()
        self.look = look

    def forward(self, images: Tensor) -> Tensor:
        """Return the unit vector."""
        raw, _ = self.look(images)
        return functional.normalize(raw, dim=1)


class Linear(nn.Module):
    """z to L2(W z + b): (B,D) to (B,D')."""

    def __init__(self, layer: Mapped) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.tensor(layer.weight))
        self.register_buffer("bias", torch.tensor(layer.bias))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the mapped unit vectors."""
        return functional.normalize(functional.linear(vectors, self.weight, self.bias), dim=1)


class Negatives(nn.Module):
    """z to L2(z - beta x mean of the bank's rows nearest to it): (B,D) to (B,D)."""

    def __init__(self, layer: Subtracted) -> None:
        super().__init__()
        self.bank: Tensor
        self.register_buffer("bank", torch.tensor(layer.bank))
        self.neighbours, self.beta = layer.neighbours, layer.beta

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the unit vectors of what is left."""
        nearest = functional.linear(vectors, self.bank).topk(self.neighbours, dim=1)[1]
        mean = functional.embedding(nearest, self.bank).mean(1)
        return functional.normalize(vectors - self.beta * mean, dim=1)


def _step(layer: Layer) -> nn.Module:
    return Linear(layer) if isinstance(layer, Mapped) else Negatives(layer)


class Composed(nn.Module):
    """What is written to a file: whole levels, each embedder, their combination, the steps behind."""

    def __init__(
        self,
        levels: nn.Module,
        members: list[nn.Module],
        weights: list[float],
        combine: str,
        steps: list[nn.Module],
    ) -> None:
        super().__init__()
        self.levels = levels
        self.members = nn.ModuleList(members)
        self.weights = weights
        self.side_by_side = combine == "concat"
        self.steps = nn.ModuleList(steps)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B,D) float32 unit vectors for (B,3,H,W) uint8 or float 0..255."""
        levels = self.levels(images)
        parts: list[Tensor] = []
        for number, member in enumerate(self.members):
            parts.append(self.weights[number] * member(levels))
        vectors = self.combined(parts)
        for step in self.steps:
            vectors = step(vectors)
        return vectors

    def combined(self, parts: list[Tensor]) -> Tensor:
        """Return one vector for each picture."""
        if len(parts) == 1:
            return parts[0]
        joined = torch.cat(parts, dim=1) if self.side_by_side else torch.stack(parts).sum(0)
        return functional.normalize(joined, dim=1)


Example = tuple[
    Tensor, ...
]  # what a network is shown: pictures (B,3,h,w), and side inputs (B,3) if it reads them


@dataclass(frozen=True)
class Lowering:
    """How a format takes the parts: `prepare` of a view, `lower` of a network and what it is shown.

    A program of gated views is for pictures of any `shape` where it may branch on sizes and values; else one
    is for those as high as wide, and one for all others.
    """

    prepare: Callable[[View], nn.Module]
    lower: Callable[[Network, Example], nn.Module]
    shape: Literal["any", "square", "other"] = "any"


def composed(source: Source, request: Request, lowering: Lowering) -> Composed:
    """Return the module of a source whose embedders are on the CPU in eval mode."""
    source, bare = cast(source, request.precision), request.pixels == "normalised"
    members = [_member(one, source.views, lowering, bare) for one in source.embedders.values()]
    # An embedder alone is not scaled: a product with 1 is nothing, one with another weight is undone by L2.
    weights = [source.weight(name) if len(members) > 1 else 1.0 for name in source.embedders]
    steps = [_step(layer) for layer in source.layers]
    return Composed(_taken(source, request), members, weights, source.combine, steps).eval()


def _taken(source: Source, request: Request) -> nn.Module:
    if request.pixels == "normalised":
        return Normalised(request.batch, source.preprocess.size_px)
    return Levels(request.batch, request.size_px)


def _member(embedder: Any, views: Views | None, lowering: Lowering, bare: bool) -> nn.Module:
    if bare:
        embedder = reading_normalised(embedder)
    chosen = [View(Whole(), embedder.preprocess)] if views is None else views.of(embedder.preprocess)
    networks = _networks(embedder, {view.preprocess.size_px for view in chosen}, lowering)
    looks = [_look(embedder, view, networks, lowering, bare) for view in chosen]
    if views is None:
        return Single(looks[0])
    if views.gating is None:
        return Member(looks, views.summed)
    return _gated(looks, views.gating, views.summed, lowering.shape)


def _gated(looks: list[Look], gating: Gating, summed: str, shape: str) -> nn.Module:
    other = Chosen(looks, gating, summed, masked=shape != "any")
    if gating.square is None:
        return other
    square = Member([looks[number] for number in gating.square], summed)
    return {"any": Gated(square, other), "square": square, "other": other}[shape]


def _look(
    embedder: Any, view: View, networks: Mapping[tuple[int, int], nn.Module], lowering: Lowering, bare: bool
) -> Look:
    prepare = nn.Identity() if bare else lowering.prepare(view)
    kind = SidedLook if getattr(embedder, "side_dim", 0) else Look
    return kind(prepare, view.mirrored, networks[view.preprocess.size_px])


def _networks(
    embedder: Any, sizes: set[tuple[int, int]], lowering: Lowering
) -> dict[tuple[int, int], nn.Module]:
    """Return a lowered network for each input size; they share the embedder's weights."""
    network = Network(embedder)
    return {size: lowering.lower(network, example(embedder, size)) for size in sorted(sizes)}


def example(embedder: Any, size: tuple[int, int]) -> Example:
    """Return what a network is shown when it is lowered: made up, for a file keeps it."""
    images = torch.zeros(TRACED, 3, *size, dtype=torch.uint8)
    return (images, torch.ones(TRACED, SIDE_DIM)) if getattr(embedder, "side_dim", 0) else (images,)


def reading_normalised(embedder: Any) -> Any:
    """Return a shallow copy of an embedder that takes pictures normalised; it shares all weights."""
    import copy

    twin = copy.copy(embedder)
    twin._buffers = {name: None if b is None else b.clone() for name, b in embedder._buffers.items()}
    twin.use_preprocess(replace(embedder.preprocess, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3))
    return twin
