"""Cut away a plain margin: the same thing drawn small or large on its ground looks the same to the net."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Trim(nn.Module):
    """Enlarge the smallest square that holds all that differs from the border's colour to the whole picture.

    The border's colour is the median of the edge pixels; a pixel differs by more than `tolerance` in
    normalised units. A picture without a plain margin, a photograph, stays as it is. `margin` is left around,
    as a share of the square's side. Parameter-free, the same in training, evaluation and export;
    (B, C, H, W) -> the same.
    """

    def __init__(self, tolerance: float = 0.3, margin: float = 0.04) -> None:
        super().__init__()
        self.tolerance, self.margin = tolerance, margin

    def forward(self, x: Tensor) -> Tensor:
        """Return the pictures, resampled bilinearly; what comes in from outside has the border's colour."""
        x = x if x.dtype == torch.float64 else x.float()
        edges = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]], dim=2)
        ground = edges.median(dim=2).values[:, :, None, None]
        differs = (x - ground).abs().amax(dim=1) > self.tolerance
        left, right = _extent(differs.any(dim=1))
        top, bottom = _extent(differs.any(dim=2))
        side = torch.maximum(right - left, bottom - top) * (0.5 + self.margin)
        side = side.clamp(max=1.0)
        column = _inside((left + right) / 2, side)
        row = _inside((top + bottom) / 2, side)
        zero = torch.zeros_like(side)
        move = torch.stack([side, zero, column, zero, side, row], dim=1).view(-1, 2, 3)
        grid = functional.affine_grid(move, x.shape, align_corners=False)  # type: ignore[arg-type]
        return functional.grid_sample(x - ground, grid, "bilinear", "zeros", align_corners=False) + ground


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the first occupied place (B, N) begins and the last ends, in -1..1; all where none is."""
    count = occupied.shape[1]
    numbers = torch.arange(count, device=occupied.device)
    first = torch.where(occupied, numbers, count).amin(dim=1)
    last = torch.where(occupied, numbers, -1).amax(dim=1)
    empty = last < 0
    first, last = torch.where(empty, 0, first), torch.where(empty, count - 1, last)
    return 2 * first.float() / count - 1, 2 * (last.float() + 1) / count - 1


def _inside(middle: Tensor, side: Tensor) -> Tensor:
    """Return the middle moved so that the square (side: half its length) stays within the picture."""
    return torch.minimum(torch.maximum(middle, side - 1), 1 - side)
