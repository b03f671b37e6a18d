"""A small convolutional network for drawings: characters, signs, marks on a plain ground."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.errors import UserError
from guie.types import Preprocess


class Centre(nn.Module):
    """Take the border's colour as zero and move the centre of mass of what differs from it to the middle.

    Parameter-free, differentiable, the same in training, evaluation and export. (B, C, H, W) -> the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the pictures, shifted bilinearly; what comes in from outside is zero."""
        x = x if x.dtype == torch.float64 else x.float()
        edges = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]], dim=2)
        x = x - edges.median(dim=2).values[:, :, None, None]
        mass = x.abs().sum(dim=1)
        total = mass.sum(dim=(1, 2)).clamp_min(1e-6)
        column = (mass.sum(dim=1) * _places(x, x.shape[3])).sum(dim=1) / total
        row = (mass.sum(dim=2) * _places(x, x.shape[2])).sum(dim=1) / total
        one, zero = torch.ones_like(row), torch.zeros_like(row)
        move = torch.stack([one, zero, column, zero, one, row], dim=1).view(-1, 2, 3)
        grid = functional.affine_grid(move, x.shape, align_corners=False)  # type: ignore[arg-type]
        return functional.grid_sample(x, grid, "bilinear", "zeros", align_corners=False)


def _places(x: Tensor, count: int) -> Tensor:
    """Return the middles of `count` pixels in -1..1."""
    return (2 * torch.arange(count, device=x.device, dtype=x.dtype) + 1) / count - 1


class ConvNet(nn.Module):
    """3x3 convolutions with batch norm and ReLU, each stage of `stages` closed by a 2x2 maximum; flattened.

    Pictures become grey, centred (`Centre`), and averaged `shrink` x `shrink` to one pixel before the first
    convolution. The whole last map is the feature: place matters in a character. `forward` takes normalised
    pictures (B, 3, H, W) and returns (B, out_dim).
    """

    def __init__(
        self, stages: list[list[int]] | None = None, image_px: int = 96, shrink: int = 3, centre: bool = True
    ) -> None:
        super().__init__()
        stages = stages or [[32], [64, 64], [128, 128]]
        side = image_px // shrink // 2 ** len(stages)
        if side < 1 or image_px % (shrink * 2 ** len(stages)):
            raise UserError(
                f"backbone.image_px: {image_px}; accepted: a multiple of {shrink * 2 ** len(stages)} "
                f"(shrink {shrink}, {len(stages)} stages)"
            )
        self.kind, self.prefix_tokens = "vector", 0
        self.preprocess = Preprocess((image_px, image_px), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.out_dim = stages[-1][-1] * side * side
        self.centre = Centre() if centre else nn.Identity()
        self.shrink = nn.AvgPool2d(shrink)
        self.body = nn.Sequential(*_layers(stages))

    def forward(self, x: Tensor) -> Tensor:
        """Return the flattened last map (B, out_dim)."""
        return self.body(self.shrink(self.centre(x.mean(dim=1, keepdim=True)))).flatten(1)


def _layers(stages: list[list[int]]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = 1
    for stage in stages:
        for out in stage:
            layers += [
                nn.Conv2d(width, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
            ]
            width = out
        layers.append(nn.MaxPool2d(2))
    return layers
