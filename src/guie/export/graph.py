"""`guie.resize` without branches on sizes, for programs of one graph: torch.export, ONNX, OpenVINO.

torch's uint8 resize is a filter in whole numbers: weights of 15 bits, sums rounded to levels after each axis.
So here it is two products of matrices whose weights the graph computes from the picture's size. A weight is
cut into a high and a low part of 8 bits each; then every product and sum is a whole number below 2^24, exact
in float32 whatever the engine, and the pixels are those of evaluation to the last bit. What an engine without
float64 rounds (OpenVINO: one weight in some hundreds by one unit) moves one pixel in 10,000 by one level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from guie.types import Preprocess

# Above this many times the target, guie.resize filters the visible part of a strip as Pillow does.
EXTREME = 8
# Outputs computed from one run of pixels: more of them multiply more zeros, fewer read more pixels twice.
BLOCK = 16
# Weights of torch have 15 bits, of which at most 22 stand behind the point; those of a strip have all 22.
WEIGHT_BITS, POINT_BITS = 15, 22
RADIX = 256.0


class Axis(NamedTuple):
    """`length` pixels resized to `scaled` (), of which `seen` from `corner` () on are wanted.

    `taps` is the most pixels that BLOCK outputs read, `most` the largest `scaled` that is no strip's, `strip`
    () whether it is one. `length` and `taps` are whole numbers, free ones in an exported program.
    """

    length: int
    scaled: Tensor
    corner: Tensor
    seen: int
    taps: int
    most: int
    strip: Tensor


class GraphPrepare(nn.Module):
    """(B,3,H,W) uint8 or float 0..255 -> (B,3,h,w) uint8, as `export.prepare.Prepare`, for any H and W."""

    def __init__(self, spec: Preprocess):
        super().__init__()
        self.height, self.width = spec.size_px
        self.target = (int(self.height / spec.crop_fraction), int(self.width / spec.crop_fraction))
        self.crop, self.mode = spec.crop, spec.interpolation
        self.units: Tensor
        self.background: Tensor
        self.register_buffer("units", 2.0 ** torch.arange(POINT_BITS + 1, dtype=torch.float64))
        self.register_buffer("background", torch.tensor(spec.background, dtype=torch.uint8).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's input."""
        images = levels(images)
        if self.crop == "center":
            return self.center(images)
        if self.crop == "pad":
            return self.pad(images)
        return self.resized(images, *self.stretched(images)).to(torch.uint8)

    def stretched(self, images: Tensor) -> tuple[Axis, Axis]:
        """Return the axes (rows, columns) of a picture that fills the input whatever its aspect."""
        zero = scalar(images, 0)

        def axis(length: int, count: int) -> Axis:
            taps = most_taps(length, count)
            return Axis(length, scalar(images, count), zero, count, taps, count, zero > 0)

        return axis(images.size(2), self.height), axis(images.size(3), self.width)

    def center(self, images: Tensor) -> Tensor:
        """Bring the side that binds to `target`, see the middle.

        A tall strip is filtered in the other order, and it is narrow: that order is computed of as many
        columns of any picture as a strip may have, and taken where the picture is one.
        """
        rows, columns = self.centered(images)
        usual = self.resized(images, rows, columns)
        narrow = images.size(2) * self.target[1] // (EXTREME * self.height) + 2
        last = scalar(images, images.size(3)) - 1
        seen = torch.minimum(torch.arange(narrow, device=images.device), last)
        strip = self.filtered(images.index_select(3, seen), rows)
        strip = self.filtered(strip.transpose(2, 3), columns).transpose(2, 3)
        tall = rows.strip & (scalar(images, images.size(2)) > last + 1)
        return torch.where(tall, strip, usual).to(torch.uint8)

    def centered(self, images: Tensor) -> tuple[Axis, Axis]:
        """Return the axes (rows, columns) of `center`; the side that follows is rounded down."""
        height, width = scalar(images, images.size(2)), scalar(images, images.size(3))
        target_h, target_w = (scalar(images, side) for side in self.target)
        binds = target_h * width >= target_w * height
        scaled_h = torch.where(binds, target_h, target_w * height // width)
        scaled_w = torch.where(binds, target_h * width // height, target_w)
        strip = (scaled_h > EXTREME * self.height) | (scaled_w > EXTREME * self.width)

        def axis(length: int, scaled: Tensor, count: int, target: int) -> Axis:
            corner, taps = half_even(scaled - count), most_taps(length, target)
            return Axis(length, scaled, corner, count, taps, EXTREME * count, strip)

        rows = axis(images.size(2), scaled_h, self.height, self.target[0])
        return rows, axis(images.size(3), scaled_w, self.width, self.target[1])

    def pad(self, images: Tensor) -> Tensor:
        """Fit the long side, put the picture in the middle of the background."""
        rows, columns = self.padded(images)
        picture = inside(rows).view(-1, 1) & inside(columns)
        return torch.where(picture, self.resized(images, rows, columns).to(torch.uint8), self.background)

    def padded(self, images: Tensor) -> tuple[Axis, Axis]:
        """Return the axes (rows, columns) of `pad`: outputs before and behind the picture count as well."""
        height, width = images.size(2), images.size(3)
        scale = torch.minimum(
            self.height / scalar(images, height).double(), self.width / scalar(images, width).double()
        )
        # Rounding of the shorter side makes a step of it longer, by one block's output at most.
        longer = torch.sym_max(height * self.width, width * self.height)
        taps = most_taps(longer, self.height * self.width, BLOCK + 1)
        no = scalar(images, 0) > 0

        def axis(length: int, count: int) -> Axis:
            inner = torch.round(scalar(images, length) * scale).long().clamp(1, count)
            return Axis(length, inner, -((count - inner) // 2), count, taps, count, no)

        return axis(height, self.height), axis(width, self.width)

    def resized(self, images: Tensor, rows: Axis, columns: Axis) -> Tensor:
        """Return (B,3,h,w) whole levels in float32: each row is filtered, then each column, as torch does."""
        return self.filtered(self.filtered(images.transpose(2, 3), columns).transpose(2, 3), rows)

    def filtered(self, images: Tensor, axis: Axis) -> Tensor:
        """Return (B,3,L,R), levels, with the L pixels of `axis` resized: (B,3,seen,R), levels in float32."""
        blocks = -(-axis.seen // BLOCK)
        first = torch.arange(blocks, device=images.device).view(-1, 1) * BLOCK + axis.corner
        outputs = first + torch.arange(BLOCK, device=images.device)
        pixels, weights = self.weights(axis, outputs, axis.taps)
        unit = self.unit(axis, pixels.device)
        whole = torch.sign(weights) * torch.floor(weights.abs() * unit + 0.5)
        high = torch.round(whole / RADIX)
        parts = torch.cat([high, whole - RADIX * high], dim=1).float()
        read = torch.minimum(pixels, scalar(images, images.size(2)) - 1).flatten()
        runs = images.index_select(2, read).float().unflatten(2, (blocks, -1))
        sums = parts @ runs
        found = rounded(sums[:, :, :, :BLOCK], sums[:, :, :, BLOCK:], unit.float())
        return found.flatten(2, 3)[:, :, : axis.seen]

    def weights(self, axis: Axis, outputs: Tensor, taps: int) -> tuple[Tensor, Tensor]:
        """Return the pixels (N,taps) that rows of `outputs` (N,K) read, and their weights (N,K,taps)."""
        length = scalar(outputs, axis.length)
        reach = 2 * torch.maximum(length, axis.scaled)
        centre = (2 * outputs + 1) * length  # in 1 / (2 * scaled) pixels; a pixel's is 2j + 1 times scaled
        first = (centre[:, :1] - 2 * reach - axis.scaled).clamp(min=0) // (2 * axis.scaled)
        pixels = first + torch.arange(taps, device=outputs.device)
        away = (2 * pixels.unsqueeze(1) + 1) * axis.scaled - centre.unsqueeze(2)
        kernel = self.kernel(away.abs().double() / reach) * (pixels < length).unsqueeze(1)
        total = kernel.sum(2, keepdim=True)
        return pixels, kernel / torch.where(total > 0, total, 1.0)

    def kernel(self, x: Tensor) -> Tensor:
        """Return the filter at distances `x` in pixels: Keys' cubic with a = -1/2, or the triangle."""
        if self.mode == "bilinear":
            return (1.0 - x).clamp(min=0.0)
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))

    def unit(self, axis: Axis, device: torch.device) -> Tensor:
        """Return what weight 1 is in whole numbers (): torch lets the largest weight take WEIGHT_BITS.

        The largest is the first output's, at the border, or that of the output nearest to a pixel's centre.
        """
        outputs = torch.arange(axis.most, device=device)
        turn = 2 * axis.scaled
        off = ((2 * outputs + 1) * scalar(outputs, axis.length) % turn - axis.scaled).abs()
        nearest = torch.where(outputs < axis.scaled, off, turn).argmin()
        pair = torch.stack([torch.zeros_like(nearest), nearest]).view(2, 1)
        largest = self.weights(axis, pair, axis.taps)[1].max()
        fits = largest * 2.0 * self.units[:-1] < 2**WEIGHT_BITS - 0.5
        place = torch.where(axis.strip, POINT_BITS, fits.sum())
        return self.units.index_select(0, place.view(1))[0]


def levels(images: Tensor) -> Tensor:
    """Return whole levels 0..255 as uint8; see `export.prepare.Prepare`."""
    if images.dtype == torch.uint8:
        return images
    return torch.nan_to_num(images.float(), 0.0).clamp(0.0, 255.0).round().to(torch.uint8)


def scalar(like: Tensor, value: int) -> Tensor:
    """Return a whole number, free or not, as a tensor () beside `like`."""
    return torch.full((), value, dtype=torch.int64, device=like.device)


def most_taps(length: int | torch.SymInt, scaled: int, outputs: int = BLOCK) -> int:
    """Return how many pixels `outputs` neighbours read at most where `length` become `scaled` or more."""
    return outputs * length // scaled + 4 * (length // scaled) + 8


def half_even(number: Tensor) -> Tensor:
    """Return a whole number, not negative, halved; halves to the even one, as Python's round."""
    return number // 2 + (number % 2) * (number // 2 % 2)


def inside(axis: Axis) -> Tensor:
    """Return which of the `seen` outputs lie in the picture: (seen,) bool."""
    outputs = torch.arange(axis.seen, device=axis.corner.device) + axis.corner
    return (outputs >= 0) & (outputs < axis.scaled)


def rounded(high: Tensor, low: Tensor, unit: Tensor) -> Tensor:
    """Return (RADIX * high + low) / unit rounded to levels, with no number on the way above 2^24."""
    carried = high + torch.floor(low / RADIX) + unit / (2.0 * RADIX)
    return torch.floor(carried / (unit / RADIX)).clamp(0.0, 255.0)
