"""Decoded pictures to network inputs: antialiased resizing on uint8, within 1 level of PIL's numbers.

Rows are filtered first, then columns, each rounded to 8 bits: the numbers of torch's and torchvision's
uint8 kernels, which exports use too. A few values in a million differ from PIL's by 2. Pillow 13 filters
columns first where that is cheaper (tall pictures), which shows only where the first pass clips.
The executor of `types.Preprocess`, up to and without normalisation, which happens on the device. torch is
imported in the functions that use it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from guie import images
from guie.types import Interpolation, Preprocess

if TYPE_CHECKING:
    from guie.images import Box, Colour

# Above this many times the target, resizing the invisible part of a side would cost all memory.
_EXTREME = 8
# Filter weights of a window are whole numbers of 1 / _UNIT, as in PIL.
_UNIT = 1 << 22
# How many output pixels beside the box may be computed to make the box's edge fall on a whole pixel.
_REACH = 12


def load(
    data: bytes, spec: Preprocess, *, max_pixels: int = images.MAX_PIXELS, box: Box | None = None
) -> np.ndarray:
    """Decode (of `box` that part) and preprocess: the exact evaluation path.

    Returns (3,h,w) uint8; raises BadImage.
    """
    return apply(images.decode(data, background=spec.background, max_pixels=max_pixels, box=box), spec)


def load_crop(
    data: bytes,
    box: Box,
    size_px: tuple[int, int],
    *,
    interpolation: Interpolation = "bicubic",
    oversample: float = 1.5,
    background: Colour = images.WHITE,
    max_pixels: int = images.MAX_PIXELS,
) -> np.ndarray:
    """Decode only what `box` needs and resize it: the training path. Returns (3,h,w) uint8.

    `box` (x, y, width, height) in pixels of the size that `images.read_header` states; `size_px` (h, w).
    See `images.decode_region` for `oversample`: 1 is fastest, a larger one nearer to full decode and resize
    (on large photographs a mean of 0.7 levels with 1, of 0.25 with 1.5). Raises BadImage.
    """
    region = images.decode_region(
        data, box, size_px, oversample=oversample, background=background, max_pixels=max_pixels
    )
    return crop_resize(region.image, region.box, size_px, interpolation)


def apply(image: np.ndarray, spec: Preprocess) -> np.ndarray:
    """Return `image` (H,W,3) uint8 as (3,h,w) uint8 with (h, w) = `spec.size_px`.

    Raises ValueError for another shape or dtype and for a crop or fraction that is not accepted.
    """
    _check_picture(image)
    if spec.crop == "stretch":
        return _resample(image, spec.size_px, spec.interpolation)
    if spec.crop == "center":
        return _center(image, spec)
    if spec.crop == "pad":
        return _pad(image, spec)
    raise ValueError(f"crop: {spec.crop!r}; accepted: stretch, center, pad")


def crop_resize(
    image: np.ndarray, box: Box, size_px: tuple[int, int], interpolation: Interpolation = "bicubic"
) -> np.ndarray:
    """Cut `box` (x, y, width, height) out of `image` (H,W,3) uint8 and resize it: (3,h,w) uint8.

    A box on whole pixels gives exactly the resized cut. Fractions are honoured to about 1/20 pixel, by
    resizing a slightly larger part of which the wanted rows and columns are kept. Raises ValueError for a
    box that is empty or not inside the picture.
    """
    _check_picture(image)
    height, width = image.shape[:2]
    x, y, box_width, box_height = box
    inside = -0.5 <= x and -0.5 <= y and x + box_width <= width + 0.5 and y + box_height <= height + 0.5
    if box_width <= 0 or box_height <= 0 or not inside:
        raise ValueError(f"box: {box}; accepted: x, y, width, height inside {width} x {height} pixels")
    top, bottom, above, below = _whole_pixels(y, box_height, size_px[0], height)
    left, right, before, after = _whole_pixels(x, box_width, size_px[1], width)
    larger = (above + size_px[0] + below, before + size_px[1] + after)
    resized = _resample(image[top:bottom, left:right], larger, interpolation)
    return resized[:, above : above + size_px[0], before : before + size_px[1]]


def center_size(height: int, width: int, spec: Preprocess) -> tuple[int, int]:
    """Return (height, width) to which `center` resizes before cutting.

    The side that binds becomes target / crop_fraction, rounded down as timm does; the other follows by
    `int()`, not `round()`, as torchvision's Resize: 1200 x 1600 becomes 224 x 298.
    """
    fraction = spec.crop_fraction
    if not 0 < fraction <= 1:
        raise ValueError(f"crop_fraction: {fraction}; accepted: above 0, up to 1")
    target_h, target_w = (math.floor(side / fraction) for side in spec.size_px)
    if target_h * width >= target_w * height:
        return target_h, int(target_h * width / height)
    return int(target_w * height / width), target_w


def _center(image: np.ndarray, spec: Preprocess) -> np.ndarray:
    height, width = image.shape[:2]
    size = center_size(height, width, spec)
    # round(), half to even, is where torchvision's center_crop and Python agree
    top = round((size[0] - spec.size_px[0]) / 2.0)
    left = round((size[1] - spec.size_px[1]) / 2.0)
    if max(size[0] / spec.size_px[0], size[1] / spec.size_px[1]) > _EXTREME:
        return _resample_window(image, size, (top, left), spec)
    resized = _resample(image, size, spec.interpolation)
    return resized[:, top : top + spec.size_px[0], left : left + spec.size_px[1]]


def _resample_window(
    image: np.ndarray, size: tuple[int, int], corner: tuple[int, int], spec: Preprocess
) -> np.ndarray:
    """Resize to `size` but compute only the `spec.size_px` window at `corner` (top, left): slower, small.

    PIL's fixed-point filter as plain matrix products, exact in float64, so that `export.prepare` gives the
    same numbers; like Pillow 13, columns first in a tall picture. Returns (3,h,w) uint8.
    """
    height, width = image.shape[:2]
    top, rows = _taps(corner[0], spec.size_px[0], height / size[0], height, spec.interpolation)
    left, columns = _taps(corner[1], spec.size_px[1], width / size[1], width, spec.interpolation)
    part = image[top : top + rows.shape[1], left : left + columns.shape[1]].transpose(2, 0, 1).astype(float)
    if height > width:
        return _levels(_levels(rows @ part) @ columns.T).astype(np.uint8)
    return _levels(rows @ _levels(part @ columns.T)).astype(np.uint8)


def _taps(
    corner: int, count: int, step: float, limit: int, interpolation: Interpolation
) -> tuple[int, np.ndarray]:
    """Return the first pixel that `count` outputs from `corner` on read, and weights (count, pixels)."""
    stretch = max(step, 1.0)
    reach = (2.0 if interpolation == "bicubic" else 1.0) * stretch
    start = corner * step
    first = max(int(start + 0.5 * step - reach + 0.5), 0)
    end = min(int(start + (count - 0.5) * step + reach + 0.5), limit)
    centres = start + (np.arange(count) + 0.5) * step
    x = np.abs((np.arange(first, end) + 0.5)[None, :] - centres[:, None]) / stretch
    if interpolation == "bilinear":
        kernel = np.maximum(1.0 - x, 0.0)
    else:
        near, far = (1.5 * x - 2.5) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        kernel = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    return first, np.round(kernel / kernel.sum(1, keepdims=True) * _UNIT)


def _levels(sums: np.ndarray) -> np.ndarray:
    """Return sums of levels times weights in 1 / _UNIT as whole levels."""
    return np.clip(np.floor(sums / _UNIT + 0.5), 0, 255)


def _pad(image: np.ndarray, spec: Preprocess) -> np.ndarray:
    height, width = image.shape[:2]
    scale = min(spec.size_px[0] / height, spec.size_px[1] / width)
    inner = tuple(
        min(max(round(side * scale), 1), limit)
        for side, limit in zip((height, width), spec.size_px, strict=True)
    )
    canvas = np.empty((3, *spec.size_px), np.uint8)
    canvas[:] = np.array(spec.background, np.uint8)[:, None, None]
    top, left = (spec.size_px[0] - inner[0]) // 2, (spec.size_px[1] - inner[1]) // 2
    resized = _resample(image, (inner[0], inner[1]), spec.interpolation)
    canvas[:, top : top + inner[0], left : left + inner[1]] = resized
    return canvas


def _resample(image: np.ndarray, size: tuple[int, int], interpolation: Interpolation) -> np.ndarray:
    """Resize (H,W,3) uint8 to (3,h,w) uint8, antialiased."""
    if image.shape[:2] == tuple(size):
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    import torch

    if not image.flags.writeable or min(image.strides) < 0:  # torch cannot borrow such memory
        image = image.copy()
    channels_last = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
    resized = torch.nn.functional.interpolate(
        channels_last, size=tuple(size), mode=interpolation, antialias=True, align_corners=False
    )
    return resized[0].numpy()


def _whole_pixels(start: float, length: float, target: int, limit: int) -> tuple[int, int, int, int]:
    """Return (first pixel, end pixel, output pixels to drop before, and after) for one axis.

    An edge at a fraction is moved outward by as many whole output pixels as bring it nearest to a whole
    input pixel of 0..`limit`.
    """
    step = length / target
    first, before = _nearest_whole(start, -step, limit)
    end, after = _nearest_whole(start + length, step, limit)
    return first, max(end, first + 1), before, after


def _nearest_whole(edge: float, step: float, limit: int) -> tuple[int, int]:
    """Return the whole pixel nearest to one of edge, edge + step, edge + 2 step, ... and how many steps."""
    best, best_error = (min(max(round(edge), 0), limit), 0), abs(edge - round(edge))
    for count in range(1, _REACH):
        if best_error < 0.02:
            break
        moved = edge + count * step
        if not 0 <= moved <= limit:
            break
        if (error := abs(moved - round(moved))) < best_error - 0.02:
            best, best_error = (round(moved), count), error
    return best


def _check_picture(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image: {image.shape} {image.dtype}; accepted: (H,W,3) uint8, not empty")
