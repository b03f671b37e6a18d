"""Augmentation of a whole batch of cached pictures: one resampling, one colour matrix, one cut-out."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from guie.data.draws import uniforms
from guie.errors import UserError
from guie.types import Crop, Preprocess

Fill = Literal["black", "white", "grey", "random", "mixed", "edge"]
_FILLS = {"black": 0.0, "white": 255.0, "grey": 127.5, "random": 0.0, "mixed": 0.0, "edge": 0.0}
_LUMA = (0.299, 0.587, 0.114)
# the place of each choice in a picture's row of draws: never reorder, or old runs do not resume
_NAMES = (
    "area ratio x y flip vflip rotate_on rotate zoom_on zoom shear fill_r fill_g fill_b "
    "colour_on brightness contrast saturation hue grey invert blur_on blur "
    "cut_on cut_area cut_ratio cut_x cut_y fill_kind"
).split()
_PLACE = {name: place for place, name in enumerate(_NAMES)}


class Warp:
    """Random crop, turn, zoom-out, flip and shear as one bilinear sampling, then colour, blur and cut-out.

    `scale`, `ratio`: area share and aspect of the crop (Szegedy et al. 2015, as in random resized crop).
    `rotate_degrees`: turns within +-this, with probability `rotate_p`; `quarter_turns_p`: instead by a
    random multiple of 90 degrees. `zoom_out`: with `zoom_out_p` the picture shrinks by up to this factor,
    the rest shows `fill` (`mixed`: black half of the times, else white, grey or a random colour).
    `brightness`, `contrast`, `saturation`: factor within 1 +- this; `hue`: turn of
    the colour circle within +- this share; all with `colour_p`. `cutout`: largest area share of a grey
    rectangle. `cached_px`: side of the cached pictures the crops are taken from (null: the net's size).
    `orientations`: 4 shows every picture in its quarter turns, 8 mirrored too, each a class of its own
    (strong on characters). `growth`: side in pixels -> share of training up to which pictures have it, as
    `{40: 0.4, 48: 0.75}`; then the net's own size (progressive resizing: most steps cost less).

    Raises:
        UserError: a range that is upside down or a probability outside 0..1.

    """

    stage = "batch"
    num_draws = len(_NAMES)

    def __init__(  # noqa: PLR0913  (the keys of configs/augment/warp.yaml)
        self,
        scale: tuple[float, float] = (0.35, 1.0),
        ratio: tuple[float, float] = (0.75, 1.3333),
        flip_p: float = 0.5,
        vflip_p: float = 0.0,
        rotate_degrees: float = 0.0,
        rotate_p: float = 1.0,
        quarter_turns_p: float = 0.0,
        zoom_out: float = 1.0,
        zoom_out_p: float = 0.0,
        shear: float = 0.0,
        fill: Literal["black", "white", "grey", "random", "mixed", "edge"] = "edge",
        colour_p: float = 0.8,
        brightness: float = 0.25,
        contrast: float = 0.25,
        saturation: float = 0.25,
        hue: float = 0.0,
        grey_p: float = 0.0,
        invert_p: float = 0.0,
        blur_p: float = 0.0,
        cutout: float = 0.0,
        cutout_p: float = 0.5,
        cached_px: int | None = None,
        orientations: Literal[1, 4, 8] = 1,
        growth: dict[int, float] | None = None,
        *,
        preprocess: Preprocess,
        num_steps: int,
    ):
        self.growth = _growth(growth or {}, num_steps)
        self.size_px = preprocess.size_px
        self.cached_px = cached_px or max(preprocess.size_px)
        self.orientations = orientations
        self.scale, self.ratio = _range("scale", scale), _range("ratio", ratio)
        self.flip_p, self.vflip_p = _share("flip_p", flip_p), _share("vflip_p", vflip_p)
        self.rotate, self.rotate_p = math.radians(rotate_degrees), _share("rotate_p", rotate_p)
        self.quarter_turns_p = _share("quarter_turns_p", quarter_turns_p)
        self.zoom_out, self.zoom_out_p = zoom_out, _share("zoom_out_p", zoom_out_p)
        self.shear, self.fill = shear, fill
        self.colour_p, self.brightness, self.contrast = _share("colour_p", colour_p), brightness, contrast
        self.saturation, self.hue = saturation, hue
        self.grey_p, self.invert_p = _share("grey_p", grey_p), _share("invert_p", invert_p)
        self.blur_p = _share("blur_p", blur_p)
        self.cutout, self.cutout_p = _share("cutout", cutout), _share("cutout_p", cutout_p)
        if fill not in _FILLS:
            raise UserError(f"augment.fill: {fill!r}; accepted: {', '.join(_FILLS)}")
        if zoom_out < 1:
            raise UserError(f"augment.zoom_out: {zoom_out}; accepted: 1 or more")

    def draws(self, seed: int, step: int, slots: np.ndarray) -> Tensor:
        """Return the draws of these positions in the global batch of a step, and the side of its pictures.

        (B,num_draws + 1) float64; the last column is the side in pixels, 0 for the net's own.
        """
        side = next((side for side, until in self.growth if step < until), 0)
        u = uniforms(seed, step, slots, self.num_draws)
        return torch.from_numpy(np.hstack([u, np.full((len(slots), 1), float(side))]))

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        """Return (B,3,h,w) float32 in 0..255 from images (B,3,S,S) uint8 and what `draws` gave."""
        with torch.no_grad():
            u = u.to(images.device, torch.float32)
            fill = self._fill_colour(u)
            sampled = self._resample(images, fill, u)
            coloured = self._recolour(sampled, fill, images, u).clamp_(0, 255)
            return self._cut(self._blur(coloured, u), u)

    def _fill_colour(self, u: Tensor) -> Tensor:
        colour = 255 * torch.stack([_u(u, "fill_r"), _u(u, "fill_g"), _u(u, "fill_b")], dim=1)
        if self.fill == "random":
            return colour
        if self.fill == "mixed":
            kind = _u(u, "fill_kind")[:, None]
            plain = torch.where(kind < 0.5, 0.0, torch.where(kind < 0.65, 255.0, 127.5))
            return torch.where(kind < 0.8, plain.expand_as(colour), colour)
        return torch.full((len(u), 3), _FILLS[self.fill], device=u.device)

    def _resample(self, images: Tensor, fill: Tensor, u: Tensor) -> Tensor:
        """Sample pictures with the fill colour taken off: `zeros` padding then shows it outside."""
        edge = self.fill == "edge"
        pixels = images.float() if edge else images - fill[:, :, None, None]
        side = int(u[0, -1])
        shape = [len(images), 3, *((side, side) if side else self.size_px)]
        grid = F.affine_grid(self.matrix(u), shape, align_corners=False)
        return F.grid_sample(pixels, grid, "bilinear", "border" if edge else "zeros", align_corners=False)

    def matrix(self, u: Tensor) -> Tensor:
        """Return the map (B,2,3) from places in the output to places in the input, both in -1..1."""
        area = _between(_u(u, "area"), *self.scale)
        aspect = torch.exp(_between(_u(u, "ratio"), math.log(self.ratio[0]), math.log(self.ratio[1])))
        wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        x, y = (1 - wide) * (2 * _u(u, "x") - 1), (1 - high) * (2 * _u(u, "y") - 1)
        grow = _between(_u(u, "zoom"), 1.0, self.zoom_out)
        zoom = torch.where(_u(u, "zoom_on") < self.zoom_out_p, grow, torch.ones_like(grow))
        angle = self._angle(u)
        flip = _sign(_u(u, "flip") < self.flip_p)
        vflip = _sign(_u(u, "vflip") < self.vflip_p)
        lean = self.shear * (2 * _u(u, "shear") - 1)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        top = torch.stack([flip * wide * cos, wide * (lean * cos - sin) * flip, x], dim=1)
        bottom = torch.stack([vflip * high * sin, vflip * high * (lean * sin + cos), y], dim=1)
        return torch.stack([top, bottom], dim=1)

    def _angle(self, u: Tensor) -> Tensor:
        """Return angles (B,); `rotate_on` first decides on a quarter turn, then on a free one."""
        place, on = _u(u, "rotate"), _u(u, "rotate_on")
        quarter = torch.floor(place * 4) * (math.pi / 2)
        free = self.rotate * (2 * place - 1)
        rest = self.quarter_turns_p + (1 - self.quarter_turns_p) * self.rotate_p
        angle = torch.where(on < rest, free, torch.zeros_like(free))
        return torch.where(on < self.quarter_turns_p, quarter, angle)

    def _recolour(self, sampled: Tensor, fill: Tensor, images: Tensor, u: Tensor) -> Tensor:
        """Apply brightness, contrast, saturation, hue, grey and inversion as one matrix per picture."""
        matrix, offset = self.colour_matrix(u, _mean_luma(images))
        offset = offset + (matrix @ fill[:, :, None])[..., 0]
        return torch.baddbmm(offset[:, :, None], matrix, sampled.flatten(2)).view_as(sampled)

    def colour_matrix(self, u: Tensor, luma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B,3,3) and (B,3): colour -> matrix @ colour + offset; `luma` (B,) is mean greys."""
        on = (_u(u, "colour_on") < self.colour_p).float()
        grey = torch.tensor(_LUMA, device=u.device).expand(3, 3)
        eye = torch.eye(3, device=u.device)
        vivid = 1 + on * self.saturation * (2 * _u(u, "saturation") - 1)
        vivid = torch.where(_u(u, "grey") < self.grey_p, torch.zeros_like(vivid), vivid)[:, None, None]
        matrix = grey + vivid * (eye - grey)
        if self.hue:
            matrix = matrix @ _hue_turn(on * self.hue * 2 * math.pi * (2 * _u(u, "hue") - 1))
        bright = 1 + on * self.brightness * (2 * _u(u, "brightness") - 1)
        steep = 1 + on * self.contrast * (2 * _u(u, "contrast") - 1)
        sign = 1 - 2 * (_u(u, "invert") < self.invert_p).float()
        gain = sign * bright * steep
        # contrast keeps the mean grey where it is; inversion mirrors the whole: 255 - value
        offset = sign * bright * luma * (1 - steep) + 255 * (1 - sign) / 2
        return gain[:, None, None] * matrix, offset[:, None].expand(-1, 3)

    def _blur(self, images: Tensor, u: Tensor) -> Tensor:
        """Mix some pictures with their 3x3 binomial blur, taken twice."""
        if not self.blur_p:
            return images
        chosen = torch.nonzero(_u(u, "blur_on") < self.blur_p)[:, 0]
        if len(chosen):
            soft = images[chosen]
            for side in ((1, 0, 1, 0), (0, 1, 0, 1)) * 2:  # two 2x2 boxes, padded in turn, make one binomial
                soft = F.avg_pool2d(F.pad(soft, side, "replicate"), 2, 1)
            images[chosen] = torch.lerp(images[chosen], soft, _u(u, "blur")[chosen, None, None, None])
        return images

    def _cut(self, images: Tensor, u: Tensor) -> Tensor:
        """Paint one grey rectangle into some pictures (random erasing, Zhong et al. 2020)."""
        if not self.cutout:
            return images
        high, wide = images.shape[-2:]
        area = _between(_u(u, "cut_area"), 0.02, self.cutout) * (_u(u, "cut_on") < self.cutout_p)
        aspect = torch.exp(_between(_u(u, "cut_ratio"), math.log(0.4), math.log(2.5)))
        across = _stretch(wide, (area * aspect).sqrt(), _u(u, "cut_x"))
        down = _stretch(high, (area / aspect).sqrt(), _u(u, "cut_y"))
        hidden = down[:, None, :, None] & across[:, None, None, :]
        return images.masked_fill_(hidden, 127.5)


def _growth(plan: dict[int, float], num_steps: int) -> list[tuple[int, float]]:
    """Return (side, the step it ends before), rising in both."""
    rising = [(int(side), float(share)) for side, share in plan.items()]
    shares = [share for _, share in rising]
    if rising != sorted(rising) or shares != sorted(shares) or any(not 0 < share <= 1 for share in shares):
        raise UserError(f"augment.growth: {plan}; accepted: side: share of training, both rising, as 40: 0.4")
    return [(side, share * num_steps) for side, share in rising]


def cached_preprocess(preprocess: Preprocess, cached_px: int) -> Preprocess:
    """Return how a picture is resized for the cache: whole, square; padded only where the net's own is."""
    crop: Crop = "pad" if preprocess.crop == "pad" else "stretch"
    return Preprocess((cached_px, cached_px), crop=crop, background=preprocess.background)


def _mean_luma(images: Tensor) -> Tensor:
    # every 4th pixel both ways is enough for a mean and a sixteenth of the reading
    means = images[:, :, ::4, ::4].float().mean(dim=(2, 3))
    return means @ torch.tensor(_LUMA, device=images.device)


def _hue_turn(angle: Tensor) -> Tensor:
    """Return rotations (B,3,3) of RGB about the grey axis."""
    third = torch.full((3, 3), 1 / 3, device=angle.device)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device) / math.sqrt(3)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * (torch.eye(3, device=angle.device) - third) + third + sin * cross


def _stretch(size: int, share: Tensor, place: Tensor) -> Tensor:
    """Return (B,size) bool: a stretch of `share` of the pixels, its start drawn by `place`."""
    pixel = torch.arange(size, device=share.device)
    length = (share.clamp(max=1) * size).round()[:, None]
    start = (place[:, None] * (size - length + 1)).floor()
    return (pixel >= start) & (pixel < start + length)


def _u(u: Tensor, name: str) -> Tensor:
    return u[:, _PLACE[name]]


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _sign(negative: Tensor) -> Tensor:
    return 1 - 2 * negative.float()


def _range(key: str, value: tuple[float, float]) -> tuple[float, float]:
    if len(value) != 2 or not 0 < value[0] <= value[1]:
        raise UserError(f"augment.{key}: {list(value)}; accepted: two numbers above 0, the smaller first")
    return float(value[0]), float(value[1])


def _share(key: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"augment.{key}: {value}; accepted: 0 to 1")
    return float(value)
