"""`guie.resize` as a TorchScript module: the same geometry and the same kernel, for a batch of one size.

A second resize is the commonest silent loss of this field, so nothing here is believed: tests compare it
with `guie.resize` to the last bit, and every export compares its vectors with the evaluation path.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guie.types import Preprocess
from guie.views import View


def prepared(view: View) -> nn.Module:
    """Return what brings pictures (B,3,H,W) uint8 to the network as `view` sees them, but for mirroring."""
    return nn.Sequential(view.look, Prepare(view.preprocess))


class Taken(nn.Module):
    """Pictures as they come, of a `batch` and `size_px` (height, width); None takes any."""

    def __init__(self, batch: int | None = None, size_px: tuple[int, int] | None = None) -> None:
        super().__init__()
        shape = [batch, 3, *(size_px or (None, None))]
        self.shape = [side or 0 for side in shape]
        named = [name if side is None else str(side) for name, side in zip("B3HW", shape, strict=True)]
        self.accepted = f"({','.join(named)})"

    def wrong(self, images: Tensor) -> bool:
        """Return whether pictures have another shape."""
        if images.dim() != 4:
            return True
        for axis, side in enumerate(self.shape):
            if side > 0 and images.size(axis) != side:
                return True
        return False


class Normalised(Taken):
    """(B,3,h,w) floating, as a network reads them, in float32."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the numbers; raises ValueError for another shape and for whole levels."""
        if self.wrong(images) or not images.is_floating_point():
            raise ValueError(
                f"images: {list(images.shape)} {images.dtype}; accepted: {self.accepted}, normalised, float32"
            )
        return images.float()


class Levels(Taken):
    """(B,3,H,W) uint8 or float 0..255 -> uint8.

    Float pictures are clamped to 0..255 and rounded to whole levels (halves to the even one, NaN to 0), so
    that they mean what the same uint8 picture means.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return whole levels; raises ValueError for another shape."""
        if self.wrong(images):
            raise ValueError(f"images: {list(images.shape)}; accepted: {self.accepted}, RGB, 0..255")
        if images.dtype == torch.uint8:
            return images
        return torch.nan_to_num(images.float(), 0.0).clamp(0.0, 255.0).round().to(torch.uint8)


class Prepare(nn.Module):
    """(B,3,H,W) uint8 -> (B,3,h,w) uint8.

    Resizing works on uint8, as evaluation does; on a device without that kernel it works on float and rounds,
    which is within a level or so.
    """

    def __init__(self, spec: Preprocess):
        super().__init__()
        self.height, self.width = spec.size_px
        self.crop: str = spec.crop
        self.fraction = float(spec.crop_fraction)
        self.mode: str = spec.interpolation
        # guie.resize's limit, above which only the visible part of a long strip is computed.
        self.extreme = 8
        self.background: Tensor
        self.register_buffer("background", torch.tensor(spec.background, dtype=torch.uint8).view(1, 3, 1, 1))

    def forward(self, levels: Tensor) -> Tensor:
        """Return the network's input."""
        if self.crop == "center":
            return self.center(levels)
        if self.crop == "pad":
            return self.pad(levels)
        return self.resize(levels, self.height, self.width)

    def resize(self, levels: Tensor, height: int, width: int) -> Tensor:
        """Return (B,3,height,width) uint8, antialiased."""
        if levels.device.type == "cpu":
            return self.antialiased(levels, [height, width])
        smooth = self.antialiased(levels.float(), [height, width])
        return smooth.clamp(0.0, 255.0).round().to(torch.uint8)

    def antialiased(self, images: Tensor, size: list[int]) -> Tensor:
        """Return what `F.interpolate` gives, which names kernels of all modes: an older torch lacks some."""
        if self.mode == "bilinear":
            return torch.ops.aten._upsample_bilinear2d_aa(images, size, False)
        return torch.ops.aten._upsample_bicubic2d_aa(images, size, False)

    def center(self, levels: Tensor) -> Tensor:
        """Bring the side that binds to size / crop_fraction, cut the middle."""
        height, width = levels.size(2), levels.size(3)
        scaled_h, scaled_w = self.center_size(height, width)
        top = self.whole((scaled_h - self.height) / 2.0)
        left = self.whole((scaled_w - self.width) / 2.0)
        if max(scaled_h / self.height, scaled_w / self.width) > self.extreme:
            return self.window(levels, (scaled_h, scaled_w), (top, left))
        resized = self.resize(levels, scaled_h, scaled_w)
        return resized[:, :, top : top + self.height, left : left + self.width]

    def center_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) before the middle is cut; the side that follows is rounded down."""
        target_h, target_w = int(self.height / self.fraction), int(self.width / self.fraction)
        if target_h * width >= target_w * height:
            return target_h, int(target_h * width / height)
        return int(target_w * height / width), target_w

    def window(self, levels: Tensor, size: tuple[int, int], corner: tuple[int, int]) -> Tensor:
        """Resize to `size`, but compute only the visible window at `corner` (top, left)."""
        height, width = levels.size(2), levels.size(3)
        device = levels.device
        top, rows = self.taps(corner[0], self.height, height / size[0], height, device)
        left, columns = self.taps(corner[1], self.width, width / size[1], width, device)
        part = levels[:, :, top : top + rows.size(1), left : left + columns.size(1)].double()
        if height > width:
            return self.filtered(self.filtered(rows @ part) @ columns.t()).to(torch.uint8)
        return self.filtered(rows @ self.filtered(part @ columns.t())).to(torch.uint8)

    def taps(
        self, corner: int, count: int, step: float, limit: int, device: torch.device
    ) -> tuple[int, Tensor]:
        """Return the first pixel that `count` outputs from `corner` on read, and weights (count, pixels)."""
        stretch = max(step, 1.0)
        reach = (2.0 if self.mode == "bicubic" else 1.0) * stretch
        start = corner * step
        first = max(int(start + 0.5 * step - reach + 0.5), 0)
        end = min(int(start + (count - 0.5) * step + reach + 0.5), limit)
        centres = start + (torch.arange(count, dtype=torch.float64, device=device) + 0.5) * step
        pixels = torch.arange(first, end, dtype=torch.float64, device=device) + 0.5
        kernel = self.kernel((pixels[None, :] - centres[:, None]).abs() / stretch)
        return first, torch.round(kernel / kernel.sum(1, keepdim=True) * 4194304.0)

    def kernel(self, x: Tensor) -> Tensor:
        """Return the filter at distances `x` in pixels: Keys' cubic with a = -1/2, or the triangle."""
        if self.mode == "bilinear":
            return (1.0 - x).clamp(min=0.0)
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        return torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))

    def filtered(self, sums: Tensor) -> Tensor:
        """Return sums of levels times weights in 2^-22 as whole levels; exact in float64."""
        return torch.floor(sums / 4194304.0 + 0.5).clamp(0.0, 255.0)

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
