"""`guie.resize` and the looks of `guie.views` without branches on sizes, for programs that are one graph.

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

from guie.errors import UserError
from guie.types import Preprocess
from guie.views import Cut, Padded, View, Whole

# Above this many times the target, guie.resize filters the visible part of a strip as Pillow does.
EXTREME = 8
# Outputs computed from one run of pixels: more of them multiply more zeros, fewer read more pixels twice.
BLOCK = 16
# Weights of torch have 15 bits, of which at most 22 stand behind the point; those of a strip have all 22.
WEIGHT_BITS, POINT_BITS = 15, 22
RADIX = 256.0


class Line(NamedTuple):
    """The pixels of one side that are looked at: `length` () from `first` () on, `most` at most.

    `most` is a whole number, a free one in an exported program. Some may lie outside the picture.
    """

    first: Tensor
    length: Tensor
    most: int


class Axis(NamedTuple):
    """A line resized to `scaled` (), of which `seen` outputs from `corner` () on are wanted.

    BLOCK of them read `taps` pixels at most, a free number. `strip` () tells that Pillow's weights are due;
    else `scaled` is `most` at most.
    """

    line: Line
    scaled: Tensor
    corner: Tensor
    seen: int
    taps: int
    most: int
    strip: Tensor


def prepared(view: View) -> nn.Module:
    """Return what brings pictures (B,3,H,W) uint8 to the network as `view` sees them, but for mirroring."""
    return GraphPrepare(view.preprocess, view.look)


class Filter(NamedTuple):
    """How `seen` outputs come of an axis: whole weights in 1 / `unit` (), high parts, then low ones.

    N blocks of `pixels` (N,taps) of a line are read; `parts` (N,2K,taps) are the weights of K outputs each.
    """

    pixels: Tensor
    parts: Tensor
    unit: Tensor
    seen: int


class GraphPrepare(nn.Module):
    """(B,3,H,W) uint8 of any H and W to what the network sees of `look`: (B,3,h,w) uint8.

    The numbers of `look` followed by `export.prepare.Prepare`, except that `Padded` does not reduce pictures
    above its `most_px` first. Raises UserError for a look that is not one of `guie.views`.
    """

    def __init__(self, spec: Preprocess, look: nn.Module | None = None):
        super().__init__()
        self.height, self.width = spec.size_px
        self.target = (int(self.height / spec.crop_fraction), int(self.width / spec.crop_fraction))
        self.crop, self.mode = spec.crop, spec.interpolation
        self.look = _known(look or Whole())
        self.level = self.look.level if isinstance(self.look, Padded) else None
        self.units: Tensor
        self.background: Tensor
        self.register_buffer("units", 2.0 ** torch.arange(POINT_BITS + 1, dtype=torch.float64))
        self.register_buffer("background", torch.tensor(spec.background, dtype=torch.uint8).view(1, 3, 1, 1))

    def forward(self, levels: Tensor) -> Tensor:
        """Return the network's input."""
        if self._fits(levels):
            return levels
        lines = framed(self.look, levels)
        if self.crop == "center":
            return self.center(levels, *lines)
        if self.crop == "pad":
            return self.pad(levels, *lines)
        down, across = lines
        rows = self.filter(stretched(down, self.height))
        columns = self.filter(stretched(across, self.width))
        return self.resized(levels, (down, rows), (across, columns)).to(torch.uint8)

    def center(self, levels: Tensor, down: Line, across: Line) -> Tensor:
        """Bring the side that binds to `target`, see the middle.

        A tall strip is filtered in the other order, and it is narrow: that order is computed of as many
        columns of any picture as a strip may have, and taken where the picture is one.
        """
        axis, other = self.centered(down, across)
        rows, columns = self.filter(axis), self.filter(other)
        usual = self.resized(levels, (down, rows), (across, columns))
        narrow = down.most * self.target[1] // (EXTREME * self.height) + 2
        read = across.first + torch.arange(narrow, device=levels.device)
        strip = self.filtered(levels.index_select(3, bounded(read, levels.size(3))), rows, down.first)
        strip = self.filtered(strip.transpose(2, 3), columns, across.first * 0).transpose(2, 3)
        return torch.where(axis.strip & (down.length > across.length), strip, usual).to(torch.uint8)

    def centered(self, down: Line, across: Line) -> tuple[Axis, Axis]:
        """Return the axes (rows, columns) of `center`; the side that follows is rounded down."""
        target_h, target_w = (scalar(down.length, side) for side in self.target)
        binds = target_h * across.length >= target_w * down.length
        scaled_h = torch.where(binds, target_h, target_w * down.length // across.length)
        scaled_w = torch.where(binds, target_h * across.length // down.length, target_w)
        strip = (scaled_h > EXTREME * self.height) | (scaled_w > EXTREME * self.width)

        def axis(line: Line, scaled: Tensor, seen: int, target: int) -> Axis:
            corner, taps = half_even(scaled - seen), most_taps(line.most, target)
            return Axis(line, scaled, corner, seen, taps, EXTREME * seen, strip)

        rows = axis(down, scaled_h, self.height, self.target[0])
        return rows, axis(across, scaled_w, self.width, self.target[1])

    def pad(self, levels: Tensor, down: Line, across: Line) -> Tensor:
        """Fit the long side, put the picture in the middle of the background."""
        rows, columns = self.padded(down, across)
        picture = inside(rows).view(-1, 1) & inside(columns)
        fitted = self.resized(levels, (down, self.filter(rows)), (across, self.filter(columns)))
        return torch.where(picture, fitted.to(torch.uint8), self.background)

    def padded(self, down: Line, across: Line) -> tuple[Axis, Axis]:
        """Return the axes (rows, columns) of `pad`: outputs before and behind the picture count as well."""
        scale = torch.minimum(self.height / down.length.double(), self.width / across.length.double())
        # The shorter side is rounded, so its step may be longer: by one output more in a block at most.
        most = longer(down.most * self.width, across.most * self.height)
        taps = most_taps(most, self.height * self.width, BLOCK + 1)

        def axis(line: Line, seen: int) -> Axis:
            inner = torch.round(line.length * scale).long().clamp(1, seen)
            return Axis(line, inner, -((seen - inner) // 2), seen, taps, seen, inner < 0)

        return axis(down, self.height), axis(across, self.width)

    def resized(self, levels: Tensor, rows: tuple[Line, Filter], columns: tuple[Line, Filter]) -> Tensor:
        """Return (B,3,h,w) whole levels in float32: each row is filtered, then each column, as torch does."""
        (down, vertical), (across, horizontal) = rows, columns
        levels = self.filtered(levels.transpose(2, 3), horizontal, across.first)
        return self.filtered(levels.transpose(2, 3), vertical, down.first)

    def filtered(self, levels: Tensor, by: Filter, first: Tensor) -> Tensor:
        """Return (B,3,L,R), whose line begins at `first` (), with L filtered: (B,3,seen,R) in float32."""
        pixels = by.pixels + first
        read = bounded(pixels, levels.size(2)).flatten()
        runs = levels.contiguous().index_select(2, read).float().unflatten(2, (by.pixels.size(0), -1))
        sums = self.summed(by.parts, runs, (pixels >= 0) & (pixels < scalar(pixels, levels.size(2))))
        found = rounded(sums[:, :, :, :BLOCK], sums[:, :, :, BLOCK:], by.unit)
        return found.flatten(2, 3)[:, :, : by.seen]

    def summed(self, parts: Tensor, runs: Tensor, picture: Tensor) -> Tensor:
        """Return `parts` (N,2K,taps) times `runs` (B,3,N,taps,R); what is no `picture` has `level`."""
        if self.level is None:
            return parts @ runs
        within = parts * picture.unsqueeze(1)
        return within @ runs + self.level * (parts - within).sum(2, keepdim=True)

    def filter(self, axis: Axis) -> Filter:
        """Return the filter of an axis.

        torch lets the largest weight of all outputs take WEIGHT_BITS. It is that of the first output, at the
        border, or that of the output nearest to a pixel's centre: two blocks more begin with these.
        """
        blocks = torch.arange(-(-axis.seen // BLOCK), device=axis.corner.device) * BLOCK + axis.corner
        starts = torch.cat([blocks, (axis.corner * 0).view(1), nearest(axis).view(1)])
        outputs = starts.view(-1, 1) + torch.arange(BLOCK, device=starts.device)
        pixels, weights = self.weights(axis, outputs)
        fits = weights[-2:, 0].max() * 2.0 * self.units[:-1] < 2**WEIGHT_BITS - 0.5
        place = torch.where(axis.strip, POINT_BITS, fits.sum())
        unit = self.units.index_select(0, place.view(1))[0]
        parts = split(torch.sign(weights[:-2]) * torch.floor(weights[:-2].abs() * unit + 0.5))
        return Filter(pixels[:-2], parts, unit.float(), axis.seen)

    def weights(self, axis: Axis, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pixels (N,taps) of a line that rows of `outputs` (N,K) read, and weights (N,K,taps)."""
        length, scaled = axis.line.length, axis.scaled
        reach = 2 * torch.maximum(length, scaled)
        centre = (2 * outputs + 1) * length  # in 1 / (2 scaled) pixels; that of pixel j is (2j + 1) scaled
        first = (centre[:, :1] - 2 * reach - scaled).clamp(min=0) // (2 * scaled)
        pixels = first + torch.arange(axis.taps, device=outputs.device)
        away = (2 * pixels.unsqueeze(1) + 1) * scaled - centre.unsqueeze(2)
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

    def _fits(self, levels: Tensor) -> bool:
        """Return whether pictures of one known size are the network's input already."""
        size = levels.size(2), levels.size(3)
        known = all(isinstance(side, int) for side in size) and isinstance(self.look, Whole)
        return known and size == (self.height, self.width) and (self.crop != "center" or self.target == size)


def framed(look: nn.Module, levels: Tensor) -> tuple[Line, Line]:
    """Return the lines (rows, columns) of pictures that `look` sees."""
    sides = levels.size(2), levels.size(3)
    height, width = (scalar(levels, side) for side in sides)
    if isinstance(look, Cut):
        kept = torch.minimum(height, width) if look.square else None
        places = zip(sides, (height, width), (look.down, look.right), strict=True)
        down, across = (cut(look.share, length, kept, place, most) for most, length, place in places)
        return down, across
    if isinstance(look, Padded):
        side, most = torch.maximum(height, width), longer(*sides)
        seen = part(look.share, side)
        down, across = (
            Line(half_even(side - seen) - (side - length) // 2, seen, most) for length in (height, width)
        )
        return down, across
    return Line(height * 0, height, sides[0]), Line(width * 0, width, sides[1])


def cut(share: float, length: Tensor, square: Tensor | None, place: float, most: int) -> Line:
    """Return the `share` of a side at `place` (0 first, 1 last), or that of the side of a `square`."""
    kept = part(share, length if square is None else square)
    return Line(torch.round((length - kept) * place).long(), kept, most)


def part(share: float, length: Tensor) -> Tensor:
    """Return `share` of `length` (), rounded down, one pixel at least."""
    return (share * length.double()).long().clamp(min=1)


def stretched(line: Line, seen: int) -> Axis:
    """Return the axis of a line that fills the input whatever its aspect."""
    scaled = scalar(line.length, seen)
    return Axis(line, scaled, scaled * 0, seen, most_taps(line.most, seen), seen, scaled < 0)


def scalar(like: Tensor, value: int) -> Tensor:
    """Return a whole number, free or not, as a tensor () beside `like`."""
    return torch.full((), value, dtype=torch.int64, device=like.device)


def bounded(pixels: Tensor, size: int) -> Tensor:
    """Return places brought into 0..`size` - 1, a free number."""
    return torch.minimum(pixels.clamp(min=0), scalar(pixels, size) - 1)


def longer(one: int, other: int) -> int:
    """Return the larger of two whole numbers, free ones or not."""
    return torch.sym_max(one, other)  # type: ignore[return-value]


def most_taps(length: int, scaled: int, outputs: int = BLOCK) -> int:
    """Return how many pixels `outputs` neighbours read at most where `length` become `scaled` or more."""
    return (outputs + 4) * length // scaled + 8


def nearest(axis: Axis) -> Tensor:
    """Return the output () of all that are `scaled` whose centre is nearest to that of a pixel."""
    outputs = torch.arange(axis.most, device=axis.corner.device)
    turn = 2 * axis.scaled
    off = ((2 * outputs + 1) * axis.line.length % turn - axis.scaled).abs()
    return torch.where(outputs < axis.scaled, off, turn).argmin()


def half_even(number: Tensor) -> Tensor:
    """Return a whole number, not negative, halved; halves to the even one, as Python's round."""
    return number // 2 + (number % 2) * (number // 2 % 2)


def inside(axis: Axis) -> Tensor:
    """Return which of the `seen` outputs lie in the picture: (seen,) bool."""
    outputs = torch.arange(axis.seen, device=axis.corner.device) + axis.corner
    return (outputs >= 0) & (outputs < axis.scaled)


def split(whole: Tensor) -> Tensor:
    """Return the high and the low parts of whole weights (N,K,taps) in float32: (N,2K,taps)."""
    high = torch.round(whole / RADIX)
    return torch.cat([high, whole - RADIX * high], dim=1).float()


def rounded(high: Tensor, low: Tensor, unit: Tensor) -> Tensor:
    """Return (RADIX * high + low) / unit rounded to levels, with no number on the way above 2^24."""
    carried = high + torch.floor(low / RADIX) + unit / (2.0 * RADIX)
    return torch.floor(carried / (unit / RADIX)).clamp(0.0, 255.0)


def _known(look: nn.Module) -> nn.Module:
    if not isinstance(look, Whole | Cut | Padded):
        raise UserError(
            f"views.looks: a {type(look).__name__} in a program of one graph; accepted: format=torchscript, "
            "or looks Whole, Cut, Padded"
        )
    return look
