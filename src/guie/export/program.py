"""The network with its preprocessing as one TorchScript program: pixels of any size in, unit vectors out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guie.types import Preprocess


class Prepare(nn.Module):
    """`guie.resize` in TorchScript: (B,3,H,W) uint8 or float 0..255 -> (B,3,h,w) uint8.

    Float pictures are clamped to 0..255 and rounded to whole levels first (halves to the even one, NaN to
    0), so that they mean what the same uint8 picture means. Resizing works on uint8, as evaluation does;
    on a device without that kernel it works on float and rounds, which is within a level.
    """

    def __init__(self, spec: Preprocess):
        super().__init__()
        self.height, self.width = spec.size_px
        self.crop: str = spec.crop
        self.fraction = spec.crop_fraction
        self.mode: str = spec.interpolation
        self.background: Tensor
        self.register_buffer("background", torch.tensor(spec.background, dtype=torch.uint8).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's input; raises ValueError for another shape than (B,3,H,W)."""
        if images.dim() != 4 or images.size(1) != 3:
            raise ValueError(f"images: {list(images.shape)}; accepted: (B,3,H,W), RGB, 0..255")
        levels = self.levels(images)
        if self.crop == "center":
            return self.center(levels)
        if self.crop == "pad":
            return self.pad(levels)
        return self.resize(levels, self.height, self.width)

    def levels(self, images: Tensor) -> Tensor:
        """Return whole levels 0..255 as uint8."""
        if images.dtype == torch.uint8:
            return images
        return torch.nan_to_num(images.float(), 0.0).clamp(0.0, 255.0).round().to(torch.uint8)

    def resize(self, levels: Tensor, height: int, width: int) -> Tensor:
        """Return (B,3,height,width) uint8, antialiased."""
        if levels.device.type == "cpu":
            return F.interpolate(levels, [height, width], mode=self.mode, antialias=True)
        smooth = F.interpolate(levels.float(), [height, width], mode=self.mode, antialias=True)
        return smooth.clamp(0.0, 255.0).round().to(torch.uint8)

    def center(self, levels: Tensor) -> Tensor:
        """Bring the short side to size / crop_fraction, cut the middle."""
        height, width = levels.size(2), levels.size(3)
        short_h, short_w = int(self.height / self.fraction), int(self.width / self.fraction)
        if height * short_w <= width * short_h:
            resized = self.resize(levels, short_h, max(1, int(short_h * width / height)))
        else:
            resized = self.resize(levels, max(1, int(short_w * height / width)), short_w)
        # TorchScript's round() gives a float, Python's an int: the int() is for the former.
        top = int(round((resized.size(2) - self.height) / 2.0))  # noqa: RUF046
        left = int(round((resized.size(3) - self.width) / 2.0))  # noqa: RUF046
        return resized[:, :, top : top + self.height, left : left + self.width]

    def pad(self, levels: Tensor) -> Tensor:
        """Fit the long side, put the picture in the middle of the background."""
        height, width = levels.size(2), levels.size(3)
        scale = min(self.height / height, self.width / width)
        inner_h = min(self.height, max(1, int(round(height * scale))))  # noqa: RUF046
        inner_w = min(self.width, max(1, int(round(width * scale))))  # noqa: RUF046
        canvas = self.background.expand(levels.size(0), 3, self.height, self.width).clone()
        top, left = (self.height - inner_h) // 2, (self.width - inner_w) // 2
        canvas[:, :, top : top + inner_h, left : left + inner_w] = self.resize(levels, inner_h, inner_w)
        return canvas


class Vector(nn.Module):
    """What is shipped of the embedder as evaluated: (B,3,h,w) uint8 -> (B,D) float32 of unit length."""

    def __init__(self, embedder: nn.Module):
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor) -> Tensor:
        """Return `z`."""
        return self.embedder(images).z.float()


class Program(nn.Module):
    """What is written to the file: preprocessing, then the network."""

    def __init__(self, prepare: Prepare, vector: torch.jit.ScriptModule):
        super().__init__()
        self.prepare = prepare
        self.vector = vector

    def forward(self, images: Tensor) -> Tensor:
        """Return (B,D) float32 unit vectors for (B,3,H,W) uint8 or float 0..255, any B, H, W."""
        return self.vector(self.prepare(images))


def build_program(embedder: nn.Module) -> tuple[torch.jit.ScriptModule, str]:
    """Return the program for an embedder on the CPU in eval mode, and how its backbone came in.

    "scripted" where TorchScript can compile the backbone, else "traced"; what surrounds the backbone is
    always traced, with a free batch. Neither is believed: the written file is compared with eager mode.
    """
    with torchscript_allowed(), torch.no_grad():
        vector, how = _vector(embedder)
        return torch.jit.script(Program(Prepare(embedder.preprocess), vector)), how  # type: ignore[arg-type]


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
    example = torch.zeros(2, 3, *spec.size_px, dtype=torch.uint8)
    # torch's own check of a trace fails on attention layers that are exact (open_clip's ViT).
    return torch.jit.trace(Vector(embedder), example, check_trace=False)


@contextmanager
def torchscript_allowed() -> Iterator[None]:
    """Silence what is known: TorchScript is deprecated since torch 2.11 but asked; a trace fixes sizes."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is deprecated", category=category)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield
