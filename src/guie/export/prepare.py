"""`guie.resize` as a TorchScript module: the same geometry and the same kernel, for a batch of one size.

A second resize is the commonest silent loss of this field, so nothing here is believed: tests compare it
with `guie.resize` to the last bit, and every export compares its vectors with the evaluation path.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guie.types import Preprocess


class Prepare(nn.Module):
    """(B,3,H,W) uint8 or float 0..255 -> (B,3,h,w) uint8.

    Float pictures are clamped to 0..255 and rounded to whole levels first (halves to the even one, NaN to
    0), so that they mean what the same uint8 picture means. Resizing works on uint8, as evaluation does;
    on a device without that kernel it works on float and rounds, which is within a level or so.
    """

    def __init__(self, spec: Preprocess):
        super().__init__()
        self.height, self.width = spec.size_px
        self.crop: str = spec.crop
        self.fraction = float(spec.crop_fraction)
        self.mode: str = spec.interpolation
        # The two limits of guie.resize: when only the visible part is resized, and how an edge may move.
        self.extreme = 8
        self.reach = 12
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
        """Bring the side that binds to size / crop_fraction, cut the middle."""
        height, width = levels.size(2), levels.size(3)
        scaled_h, scaled_w = self.center_size(height, width)
        top = self.whole((scaled_h - self.height) / 2.0)
        left = self.whole((scaled_w - self.width) / 2.0)
        if max(scaled_h / self.height, scaled_w / self.width) > self.extreme:
            per_row, per_column = height / scaled_h, width / scaled_w
            rows = (top * per_row, self.height * per_row)
            return self.crop_resize(levels, rows, (left * per_column, self.width * per_column))
        resized = self.resize(levels, scaled_h, scaled_w)
        return resized[:, :, top : top + self.height, left : left + self.width]

    def center_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) before the middle is cut; the side that follows is rounded down."""
        target_h, target_w = int(self.height / self.fraction), int(self.width / self.fraction)
        if target_h * width >= target_w * height:
            return target_h, int(target_h * width / height)
        return int(target_w * height / width), target_w

    def crop_resize(self, levels: Tensor, rows: tuple[float, float], columns: tuple[float, float]) -> Tensor:
        """Resize the part at `rows` and `columns` (start, length), fractions of pixels included."""
        top, bottom, above, below = self.whole_pixels(rows, self.height, levels.size(2))
        left, right, before, after = self.whole_pixels(columns, self.width, levels.size(3))
        part = levels[:, :, top:bottom, left:right]
        resized = self.resize(part, above + self.height + below, before + self.width + after)
        return resized[:, :, above : above + self.height, before : before + self.width]

    def whole_pixels(self, span: tuple[float, float], target: int, limit: int) -> tuple[int, int, int, int]:
        """Return (first pixel, end pixel, output pixels to drop before, and after) for one axis."""
        start, length = span
        step = length / target
        first, before = self.nearest_whole(start, -step, limit)
        end, after = self.nearest_whole(start + length, step, limit)
        return first, max(end, first + 1), before, after

    def nearest_whole(self, edge: float, step: float, limit: int) -> tuple[int, int]:
        """Return the whole pixel nearest to one of edge, edge + step, ... and how many steps away."""
        best, steps, best_error = min(max(self.whole(edge), 0), limit), 0, abs(edge - round(edge))
        for count in range(1, self.reach):
            moved = edge + count * step
            if best_error < 0.02 or moved < 0 or moved > limit:
                break
            error = abs(moved - round(moved))
            if error < best_error - 0.02:
                best, steps, best_error = self.whole(moved), count, error
        return best, steps

    def whole(self, value: float) -> int:
        """Round, halves to the even number. (TorchScript's round() gives a float, Python's an int.)"""
        return int(round(value))  # noqa: RUF046

    def pad(self, levels: Tensor) -> Tensor:
        """Fit the long side, put the picture in the middle of the background."""
        height, width = levels.size(2), levels.size(3)
        scale = min(self.height / height, self.width / width)
        inner_h = min(max(self.whole(height * scale), 1), self.height)
        inner_w = min(max(self.whole(width * scale), 1), self.width)
        canvas = self.background.expand(levels.size(0), 3, self.height, self.width).clone()
        top, left = (self.height - inner_h) // 2, (self.width - inner_w) // 2
        canvas[:, :, top : top + inner_h, left : left + inner_w] = self.resize(levels, inner_h, inner_w)
        return canvas
