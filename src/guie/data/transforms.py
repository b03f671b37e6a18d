"""Transforms that albumentations lacks, in its form: what copy detection and the landmark systems draw on.

Each takes and returns (H,W,3) uint8 and draws from albumentations' own generators, so that one seed decides.
`augment.extra` and `augment.stages` know them by class name, beside albumentations' own.
"""

from __future__ import annotations

import math
from typing import Any

import albumentations
import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from guie.data.boxes import random_box
from guie.errors import UserError
from guie.images import BadImage, decode

_FONTS = [
    getattr(cv2, f"FONT_HERSHEY_{name}")
    for name in ("SIMPLEX", "PLAIN", "DUPLEX", "COMPLEX", "TRIPLEX", "SCRIPT_SIMPLEX", "SCRIPT_COMPLEX")
]
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!?&%@#"


class Pixelise(albumentations.ImageOnlyTransform):
    """Shrink by a factor drawn from `ratio` and enlarge again without smoothing."""

    def __init__(self, ratio: tuple[float, float] = (0.1, 0.9), p: float = 0.5):
        super().__init__(p=p)
        self.ratio = _range("ratio", ratio, 0, 1)

    def get_params(self) -> dict[str, Any]:
        """Draw the factor."""
        return {"factor": self.py_random.uniform(*self.ratio)}

    def apply(self, img: np.ndarray, factor: float = 1.0, **params: Any) -> np.ndarray:
        """Return the picture in larger pixels."""
        high, wide = img.shape[:2]
        small = cv2.resize(img, (max(1, round(wide * factor)), max(1, round(high * factor))))
        return cv2.resize(small, (wide, high), interpolation=cv2.INTER_NEAREST)


class ShufflePixels(albumentations.ImageOnlyTransform):
    """Let a share `factor` of the pixels change places among themselves."""

    def __init__(self, factor: float = 0.1, p: float = 0.5):
        super().__init__(p=p)
        self.factor = _range("factor", (0, factor), 0, 1)[1]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the places and the order in which they are filled."""
        count = math.prod(params["shape"][:2])
        places = self.random_generator.permutation(count)[: round(self.factor * count)]
        return {"places": places, "order": self.random_generator.permutation(len(places))}

    def apply(self, img: np.ndarray, places: Any = (), order: Any = (), **params: Any) -> np.ndarray:
        """Return the picture with those pixels exchanged."""
        flat = img.reshape(-1, img.shape[2]).copy()
        flat[places] = flat[places[order]]
        return flat.reshape(img.shape)


class EdgeEnhance(albumentations.ImageOnlyTransform):
    """Pillow's EDGE_ENHANCE or EDGE_ENHANCE_MORE, each half of the times."""

    def __init__(self, p: float = 0.5):
        super().__init__(p=p)

    def get_params(self) -> dict[str, Any]:
        """Draw which of the two."""
        return {"more": self.py_random.random() < 0.5}

    def apply(self, img: np.ndarray, more: bool = False, **params: Any) -> np.ndarray:
        """Return the picture with stronger edges."""
        chosen = ImageFilter.EDGE_ENHANCE_MORE if more else ImageFilter.EDGE_ENHANCE
        return np.asarray(Image.fromarray(img).filter(chosen))


class AreaCrop(albumentations.ImageOnlyTransform):
    """Cut a random area share of random aspect, without resizing (random resized crop, first half)."""

    def __init__(
        self,
        scale: tuple[float, float] = (0.15, 1.0),
        ratio: tuple[float, float] = (0.75, 1.3333),
        p: float = 1.0,
    ):
        super().__init__(p=p)
        self.scale, self.ratio = _range("scale", scale, 0, 1), _range("ratio", ratio, 0.01, 100)

    def get_params(self) -> dict[str, Any]:
        """Draw area, aspect and place."""
        return {"u": [self.py_random.random() for _ in range(4)]}

    def apply(self, img: np.ndarray, u: Any = (), **params: Any) -> np.ndarray:
        """Return the cut."""
        left, top, wide, high = random_box(img.shape[1], img.shape[0], u, self.scale, self.ratio)
        return img[top : top + high, left : left + wide]


class PictureOverlay(albumentations.ImageOnlyTransform):
    """Lay the picture over another one of the training set or under it, each half of the times.

    The upper one has `size` of the lower one's height, keeps its aspect, lies anywhere and lets through all
    but `opacity` of it.
    """

    def __init__(
        self,
        opacity: tuple[float, float] = (0.6, 1.0),
        size: tuple[float, float] = (0.4, 0.6),
        p: float = 0.5,
    ):
        super().__init__(p=p)
        self.opacity, self.size = _range("opacity", opacity, 0, 1), _range("size", size, 0.01, 1)
        self.pictures: Any = None

    def get_params(self) -> dict[str, Any]:
        """Draw the other picture, which is above, opacity, size and place."""
        if not self.pictures:
            raise UserError("augment: PictureOverlay has no other pictures; accepted: it in augment.stages")
        draw = self.py_random
        look = {"opacity": draw.uniform(*self.opacity), "size": draw.uniform(*self.size)}
        places = {"above": draw.random() < 0.5, "x": draw.random(), "y": draw.random()}
        return {"other": self._other(draw.randrange(len(self.pictures))), **look, **places}

    def _other(self, row: int) -> np.ndarray | None:
        try:
            return decode(self.pictures.read(row))
        except BadImage:
            return None  # who trains on that row reports it

    def apply(
        self,
        img: np.ndarray,
        other: Any = None,
        opacity: float = 1.0,
        size: float = 0.5,
        above: bool = True,
        x: float = 0.0,
        y: float = 0.0,
        **params: Any,
    ) -> np.ndarray:
        """Return the lower picture with the upper one on it; the picture itself where the other is bad."""
        if other is None:
            return img
        lower, upper = (other, img) if above else (img, other)
        high, wide = lower.shape[:2]
        tall = max(1, round(size * high))
        broad = min(wide, max(1, round(tall * upper.shape[1] / upper.shape[0])))
        top, left = int(y * (high - tall + 1)), int(x * (wide - broad + 1))
        made = lower.copy()
        block = made[top : top + tall, left : left + broad]
        patch = cv2.resize(upper, (broad, tall), interpolation=cv2.INTER_AREA)
        block[:] = cv2.addWeighted(patch, opacity, block, 1 - opacity, 0)
        return made


class TextOverlay(albumentations.ImageOnlyTransform):
    """Write one or two lines of 5 to 9 random letters, `size` of the height tall, in a random colour."""

    def __init__(self, size: tuple[float, float] = (0.1, 0.3), p: float = 0.5):
        super().__init__(p=p)
        self.size = _range("size", size, 0, 1)

    def get_params(self) -> dict[str, Any]:
        """Draw letters, font, size, colour and place."""
        draw = self.py_random
        lines = ["".join(draw.choices(_LETTERS, k=draw.randint(5, 9))) for _ in range(draw.randint(1, 2))]
        look = {"font": draw.choice(_FONTS), "colour": tuple(draw.randrange(256) for _ in range(3))}
        place = {"x": draw.uniform(0, 0.5), "y": draw.uniform(0, 0.5), "size": draw.uniform(*self.size)}
        return {"lines": lines, **look, **place}

    def apply(
        self,
        img: np.ndarray,
        lines: Any = (),
        font: int = 0,
        colour: Any = (),
        x: float = 0.0,
        y: float = 0.0,
        size: float = 0.0,
        **params: Any,
    ) -> np.ndarray:
        """Return a copy with the text on it."""
        made = img.copy()
        high, wide = img.shape[:2]
        tall = max(3.0, size * high)
        scale = tall / cv2.getTextSize("H", font, 1.0, 1)[0][1]
        for number, line in enumerate(lines):
            at = (int(x * wide), int(y * high + (1 + 1.4 * number) * tall))
            cv2.putText(made, line, at, font, scale, colour, max(1, round(tall / 10)), cv2.LINE_AA)
        return made


class GlyphOverlay(albumentations.ImageOnlyTransform):
    """Draw a sign like an emoji (face, star, heart or disc), `size` of the height large, somewhere."""

    def __init__(self, size: tuple[float, float] = (0.1, 0.3), p: float = 0.5):
        super().__init__(p=p)
        self.size = _range("size", size, 0, 1)

    def get_params(self) -> dict[str, Any]:
        """Draw sign, colour, size and place."""
        draw = self.py_random
        colour = tuple(draw.randrange(256) for _ in range(3))
        place = {"x": draw.random(), "y": draw.random(), "size": draw.uniform(*self.size)}
        return {"sign": draw.choice(sorted(_SIGNS)), "colour": colour, **place}

    def apply(
        self,
        img: np.ndarray,
        sign: str = "disc",
        colour: Any = (),
        x: float = 0.0,
        y: float = 0.0,
        size: float = 0.0,
        **params: Any,
    ) -> np.ndarray:
        """Return a copy with the sign on it."""
        made = img.copy()
        high, wide = img.shape[:2]
        radius = max(2.0, size * high / 2)
        middle = (radius + x * max(0.0, wide - 2 * radius), radius + y * max(0.0, high - 2 * radius))
        _SIGNS[sign](made, np.array(middle), radius, colour)
        return made


class RandAugment(albumentations.ImageOnlyTransform):
    """`num_ops` operations, each with probability `op_p` (Cubuk et al., NeurIPS 2020).

    `ops` gives each operation's value at magnitude 0 and 1; the magnitude is drawn from a normal distribution
    (`magnitude` = mean and deviation, clipped to 0..1) or uniformly from `uniform`. Operations may repeat
    unless `distinct`. Geometry takes a random sign.
    """

    def __init__(
        self,
        ops: dict[str, Any],
        num_ops: int = 2,
        op_p: float = 1.0,
        magnitude: tuple[float, float] = (0.5, 0.0),
        uniform: tuple[float, float] | None = None,
        distinct: bool = False,
        p: float = 1.0,
    ):
        super().__init__(p=p)
        unknown = sorted(set(ops) - set(_OPERATIONS))
        if unknown or not ops:
            raise ValueError(
                f"ops: {', '.join(unknown) or 'none'}; accepted: {', '.join(sorted(_OPERATIONS))}"
            )
        self.ops = {name: tuple(span or (0.0, 1.0)) for name, span in ops.items()}
        self.num_ops, self.op_p, self.magnitude, self.uniform = num_ops, op_p, magnitude, uniform
        self.distinct = distinct

    def get_params(self) -> dict[str, Any]:
        """Draw operations, their values and signs."""
        draw, names = self.py_random, list(self.ops)
        chosen = draw.sample(names, self.num_ops) if self.distinct else draw.choices(names, k=self.num_ops)
        steps = []
        for name in chosen:
            low, high = self.ops[name]
            strength = draw.uniform(*self.uniform) if self.uniform else draw.gauss(*self.magnitude)
            value = low + (high - low) * min(1.0, max(0.0, strength))
            place = (draw.random(), draw.random())
            if draw.random() < self.op_p:
                steps.append((name, value, draw.choice((-1, 1)), place))
        return {"steps": steps}

    def apply(self, img: np.ndarray, steps: Any = (), **params: Any) -> np.ndarray:
        """Return the picture after the drawn operations."""
        picture = Image.fromarray(img)
        for name, value, sign, place in steps:
            picture = _OPERATIONS[name](picture, value, sign, place)
        return np.asarray(picture)


class LongEdgeCrop(albumentations.ImageOnlyTransform):
    """Cut a square of the short side at a random place along the long one."""

    def __init__(self, p: float = 0.5):
        super().__init__(p=p)

    def get_params(self) -> dict[str, Any]:
        """Draw the place."""
        return {"place": self.py_random.random()}

    def apply(self, img: np.ndarray, place: float = 0.0, **params: Any) -> np.ndarray:
        """Return the square."""
        high, wide = img.shape[:2]
        side = min(high, wide)
        top, left = int(place * (high - side + 1)), int(place * (wide - side + 1))
        return img[top : top + side, left : left + side]


class RescaleInPlace(albumentations.ImageOnlyTransform):
    """Crop or pad (black) either side to a factor within 1 +- `limit`, then back to the old size."""

    def __init__(self, limit: float = 0.2, p: float = 1.0):
        super().__init__(p=p)
        self.limit = _range("limit", (0, limit), 0, 1)[1]

    def get_params(self) -> dict[str, Any]:
        """Draw a factor and a place for each side."""
        draw = self.py_random
        factors = [draw.uniform(1 - self.limit, 1 + self.limit) for _ in range(2)]
        return {"factors": factors, "places": [draw.random(), draw.random()]}

    def apply(self, img: np.ndarray, factors: Any = (), places: Any = (), **params: Any) -> np.ndarray:
        """Return the picture, resized to what it was."""
        high, wide = img.shape[:2]
        size = [max(1, round(side * factor)) for side, factor in zip((high, wide), factors, strict=True)]
        ground = np.zeros((*size, 3), np.uint8)
        (from_y, to_y, tall), (from_x, to_x, broad) = (
            _overlap(old, new, place) for old, new, place in zip((high, wide), size, places, strict=True)
        )
        ground[to_y : to_y + tall, to_x : to_x + broad] = img[from_y : from_y + tall, from_x : from_x + broad]
        return cv2.resize(ground, (wide, high))


def _overlap(old: int, new: int, place: float) -> tuple[int, int, int]:
    """Return where to read, where to write and how much, for a stretch put `place` along the other."""
    shift = int(place * (abs(old - new) + 1))
    return (shift, 0, new) if new <= old else (0, shift, old)


def _face(image: np.ndarray, middle: np.ndarray, radius: float, colour: Any) -> None:
    _disc(image, middle, radius, colour)
    for side in (-1, 1):
        _disc(image, middle + radius * np.array([0.35 * side, -0.25]), radius / 8, (0, 0, 0))
    axes = (max(1, int(radius * 0.5)),) * 2
    cv2.ellipse(image, _point(middle), axes, 0, 20, 160, (0, 0, 0), max(1, int(radius / 10)), cv2.LINE_AA)


def _star(image: np.ndarray, middle: np.ndarray, radius: float, colour: Any) -> None:
    turns = np.arange(10) * np.pi / 5 - np.pi / 2
    lengths = np.where(np.arange(10) % 2, 0.4, 1.0) * radius
    _filled(image, middle + lengths[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1), colour)


def _heart(image: np.ndarray, middle: np.ndarray, radius: float, colour: Any) -> None:
    t = np.linspace(0, 2 * np.pi, 40)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    _filled(image, middle + radius / 17 * np.stack([16 * np.sin(t) ** 3, -y], axis=1), colour)


def _disc(image: np.ndarray, middle: np.ndarray, radius: float, colour: Any) -> None:
    cv2.circle(image, _point(middle), max(1, int(radius)), colour, -1, cv2.LINE_AA)


def _filled(image: np.ndarray, corners: np.ndarray, colour: Any) -> None:
    cv2.fillPoly(image, [np.round(corners).astype(np.int32)], colour, cv2.LINE_AA)


def _point(place: np.ndarray) -> tuple[int, int]:
    return int(place[0]), int(place[1])


_SIGNS = {"disc": _disc, "face": _face, "heart": _heart, "star": _star}


def _affine(picture: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float) -> Image.Image:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )


def _faded(picture: Image.Image, value: float, place: tuple[float, float], fade: float) -> Image.Image:
    """Darken a rectangle, `value` of either side long, to `fade` of its light."""
    made = np.array(picture)
    high, wide = (max(1, round(value * side)) for side in made.shape[:2])
    top, left = (
        int(at * (side - part + 1)) for at, side, part in zip(place, made.shape, (high, wide), strict=False)
    )
    block = made[top : top + high, left : left + wide]
    block[:] = (block * fade).astype(np.uint8)
    return Image.fromarray(made)


_OPERATIONS = {
    "Identity": lambda picture, value, sign, place: picture,
    "AutoContrast": lambda picture, value, sign, place: ImageOps.autocontrast(picture, cutoff=value),
    "Equalize": lambda picture, value, sign, place: ImageOps.equalize(picture),
    "Invert": lambda picture, value, sign, place: ImageOps.invert(picture),
    "Posterize": lambda picture, value, sign, place: ImageOps.posterize(
        picture, max(1, min(8, round(value)))
    ),
    "Solarize": lambda picture, value, sign, place: ImageOps.solarize(picture, round(value)),
    "Color": lambda picture, value, sign, place: ImageEnhance.Color(picture).enhance(value),
    "Contrast": lambda picture, value, sign, place: ImageEnhance.Contrast(picture).enhance(value),
    "Brightness": lambda picture, value, sign, place: ImageEnhance.Brightness(picture).enhance(value),
    "Sharpness": lambda picture, value, sign, place: ImageEnhance.Sharpness(picture).enhance(value),
    "Rotate": lambda picture, value, sign, place: picture.rotate(sign * value, Image.Resampling.BILINEAR),
    "ShearX": lambda picture, value, sign, place: _affine(picture, 1, sign * value, 0, 0, 1, 0),
    "ShearY": lambda picture, value, sign, place: _affine(picture, 1, 0, 0, sign * value, 1, 0),
    "TranslateX": lambda picture, value, sign, place: _affine(
        picture, 1, 0, sign * value * picture.width, 0, 1, 0
    ),
    "TranslateY": lambda picture, value, sign, place: _affine(
        picture, 1, 0, 0, 0, 1, sign * value * picture.height
    ),
    "BlockFade": lambda picture, value, sign, place: _faded(picture, value, place, fade=0.5),
    "Cutout": lambda picture, value, sign, place: _faded(picture, value, place, fade=0.0),
}

GROUPS = ("OneOf", "SomeOf", "RandomOrder", "Sequential")


def pipeline(stages: dict[str, Any], *, key: str, pictures: Any = None) -> albumentations.Compose:
    """Return the stages in order: `{name: {arguments}}` of classes here or of albumentations.

    The name is the class unless the arguments name one as `stage` (two of one class). OneOf, SomeOf,
    RandomOrder and Sequential take `transforms`, again such a mapping. `pictures` (`len`, `read(row)`) are
    what `PictureOverlay` lays over or under. Raises UserError naming the stage.
    """
    made = albumentations.Compose(_made(stages, key))
    for stage in _leaves(made):
        if isinstance(stage, PictureOverlay):
            stage.pictures = pictures
    return made


def _leaves(stage: Any) -> list[Any]:
    inner = getattr(stage, "transforms", None)
    return [stage] if inner is None else [leaf for child in inner for leaf in _leaves(child)]


def _made(stages: dict[str, Any], key: str) -> list[Any]:
    made = []
    for name, given in stages.items():
        arguments = dict(given or {})
        kind = str(arguments.pop("stage", name))
        if kind in GROUPS:
            arguments["transforms"] = _made(arguments.get("transforms") or {}, f"{key}.{name}.transforms")
        made.append(_one(kind, arguments, f"{key}.{name}"))
    return made


def _one(kind: str, arguments: dict[str, Any], key: str) -> Any:
    found = globals().get(kind) or getattr(albumentations, kind, None)
    accepted = (albumentations.BasicTransform, albumentations.BaseCompose)
    if not (isinstance(found, type) and issubclass(found, accepted)):
        raise UserError(f"{key}: unknown stage {kind!r}; accepted: names of albumentations' transforms")
    lists = {name: tuple(value) if isinstance(value, list) and kind not in GROUPS else value
             for name, value in arguments.items()}  # fmt: skip
    try:
        return found(**lists)
    except (TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{key}: {first}; accepted: the arguments of {kind}") from None


def _range(name: str, value: Any, low: float, high: float) -> tuple[float, float]:
    first, last = (float(v) for v in value)
    if not low <= first <= last <= high:
        raise ValueError(f"{name}: {list(value)}; accepted: {low} to {high}, the smaller first")
    return first, last
