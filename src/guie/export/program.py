"""The network with its preprocessing as one TorchScript program: pixels of any size in, unit vectors out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from guie.export.prepare import Prepare
from guie.side import SIDE_DIM
from guie.types import Preprocess


class Vector(nn.Module):
    """What is shipped of the embedder as evaluated: (B,3,h,w) uint8 -> (B,D) float32 of unit length.

    An embedder with side inputs (B,3) takes them as well.
    """

    def __init__(self, embedder: nn.Module):
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor, side: Tensor | None = None) -> Tensor:
        """Return `z`."""
        return (self.embedder(images) if side is None else self.embedder(images, side)).z.float()


class Program(nn.Module):
    """What is written to the file: preprocessing, then the network."""

    def __init__(self, prepare: Prepare, vector: torch.jit.ScriptModule):
        super().__init__()
        self.prepare = prepare
        self.vector = vector

    def forward(self, images: Tensor) -> Tensor:
        """Return (B,D) float32 unit vectors for (B,3,H,W) uint8 or float 0..255, any B, H, W."""
        return self.vector(self.prepare(images))


class SidedProgram(Program):
    """A program whose network reads the side inputs, taken from the size that the pictures come in."""

    def forward(self, images: Tensor) -> Tensor:
        """Return (B,D) float32 unit vectors for (B,3,H,W) uint8 or float 0..255, any B, H, W."""
        height, width = images.size(2), images.size(3)
        numbers = [height / width, height / 224, width / 224]  # guie.side, for the compiler
        side = torch.tensor(numbers, dtype=torch.float32, device=images.device)
        return self.vector(self.prepare(images), side.expand(images.size(0), 3))


def build_program(embedder: nn.Module) -> tuple[torch.jit.ScriptModule, str]:
    """Return the program for an embedder on the CPU in eval mode, and how its backbone came in.

    "scripted" where TorchScript can compile the backbone, else "traced"; what surrounds the backbone is
    always traced, with a free batch. Neither is believed: the written file is compared with eager mode.
    """
    with torchscript_allowed(), torch.no_grad():
        vector, how = _vector(embedder)
        kind = SidedProgram if getattr(embedder, "side_dim", 0) else Program
        return torch.jit.script(kind(Prepare(embedder.preprocess), vector)), how  # type: ignore[arg-type]


def _vector(embedder: nn.Module) -> tuple[torch.jit.ScriptModule, str]:
    # The compiler refuses a model with whatever its own internals raise; tracing is the way out for each.
    try:
        return _trace(_with_scripted_backbone(embedder)), "scripted"
    except Exception:
        return _trace(embedder), "traced"


def _with_scripted_backbone(embedder: nn.Module) -> nn.Module:
    """Return a shallow copy that shares all weights; the caller's embedder keeps its own backbone."""
    twin = copy.copy(embedder)
    twin._modules = dict(embedder._modules)
    backbone: nn.Module = torch.jit.script(embedder.backbone)  # type: ignore[assignment]
    twin._modules["backbone"] = backbone
    return twin


def _trace(embedder: nn.Module) -> torch.jit.ScriptModule:
    spec: Preprocess = embedder.preprocess  # type: ignore[assignment]
    example = [torch.zeros(2, 3, *spec.size_px, dtype=torch.uint8)]
    if getattr(embedder, "side_dim", 0):
        example.append(torch.ones(2, SIDE_DIM))
    # torch's own check of a trace fails on attention layers that are exact (open_clip's ViT).
    return torch.jit.trace(Vector(embedder), tuple(example), check_trace=False)


@contextmanager
def torchscript_allowed() -> Iterator[None]:
    """Silence what is known: TorchScript is deprecated since torch 2.11 but asked; a trace fixes sizes."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is deprecated", category=category)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # The compiler's remark on a model it cannot take; tracing follows.
        warnings.filterwarnings("ignore", message="The TorchScript type system doesn't", category=UserWarning)
        yield
