"""Augmentation of one encoded picture: a crop cut while decoding, a flip, albumentations' stages."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from guie.data.draws import integers, uniforms
from guie.errors import UserError
from guie.images import Box, read_header
from guie.types import Preprocess

_NUM_DRAWS = 5  # area, aspect, x, y, flip


class Plain:
    """No augmentation: the evaluation preprocessing."""

    stage = "sample"

    def __init__(self, *, preprocess: Preprocess):
        self.preprocess = preprocess

    def draws(self, seed: int, step: int, slots: np.ndarray) -> np.ndarray:
        """Return (B,0): nothing is random."""
        return np.empty((len(slots), 0))

    def __call__(self, data: bytes, u: np.ndarray) -> np.ndarray:
        """Return (3,h,w) uint8.

        Raises:
            BadImage: the bytes are no picture that can be decoded.

        """
        from guie.resize import load

        return load(data, self.preprocess)


class CropFlip:
    """Random resized crop (Szegedy et al. 2015), drawn from the header so that less is decoded, and a flip.

    `scale`, `ratio`: area share and aspect of the crop. `extra`: albumentations stages by class name, each
    with its arguments, in order, on the crop: `{ColorJitter: {p: 0.8}, CoarseDropout: {}}`; every stage's
    choices are seeded by (seed, step, slot). `orientations`: 4 shows every picture in its quarter
    turns, 8 mirrored too, each a class of its own.

    Raises:
        UserError: a range that is upside down, or a stage or argument that albumentations refuses.

    """

    stage = "sample"

    def __init__(
        self,
        scale: tuple[float, float] = (0.35, 1.0),
        ratio: tuple[float, float] = (0.75, 1.3333),
        flip_p: float = 0.5,
        extra: dict[str, Any] | None = None,
        orientations: Literal[1, 4, 8] = 1,
        *,
        preprocess: Preprocess,
    ):
        for key, (low, high) in (("scale", scale), ("ratio", ratio)):
            if not 0 < low <= high:
                raise UserError(
                    f"augment.{key}: {[low, high]}; accepted: two numbers above 0, the smaller first"
                )
        self.scale, self.ratio, self.flip_p, self.preprocess = scale, ratio, flip_p, preprocess
        self.orientations = orientations
        self.extra = _pipeline(extra) if extra else None

    def draws(self, seed: int, step: int, slots: np.ndarray) -> np.ndarray:
        """Return (B,6): five draws in 0..1 and a seed for albumentations."""
        seeds = integers(seed + 1, step, slots)[:, None].astype(np.float64)
        return np.hstack([uniforms(seed, step, slots, _NUM_DRAWS), seeds])

    def __call__(self, data: bytes, u: np.ndarray) -> np.ndarray:
        """Return (3,h,w) uint8.

        Raises:
            BadImage: the bytes are no picture that can be decoded.

        """
        from guie.resize import load_crop

        header, spec = read_header(data), self.preprocess
        box = random_box(header.width, header.height, u, self.scale, self.ratio)
        image = load_crop(
            data, box, spec.size_px, interpolation=spec.interpolation, background=spec.background
        )
        if u[4] < self.flip_p:
            image = image[:, :, ::-1]
        if self.extra is not None:
            self.extra.set_random_seed(int(u[5]))
            changed = self.extra(image=np.ascontiguousarray(image.transpose(1, 2, 0)))["image"]
            image = changed.transpose(2, 0, 1)
        return np.ascontiguousarray(image)


def random_box(
    width: int, height: int, u: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Return (x, y, width, height) in whole pixels: area and log aspect uniform, cut to the picture."""
    area = width * height * (scale[0] + (scale[1] - scale[0]) * u[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = math.exp(low + (high - low) * u[1])
    wide = min(width, max(1, round(math.sqrt(area * aspect))))
    tall = min(height, max(1, round(math.sqrt(area / aspect))))
    return int(u[2] * (width - wide + 1)), int(u[3] * (height - tall + 1)), wide, tall


def _pipeline(stages: dict[str, Any]) -> Any:
    import albumentations

    made = []
    for name, arguments in stages.items():
        stage = getattr(albumentations, name, None)
        if not (isinstance(stage, type) and issubclass(stage, albumentations.BasicTransform)):
            raise UserError(
                f"augment.extra: unknown stage {name!r}; accepted: names of albumentations' transforms"
            )
        try:
            made.append(stage(**(arguments or {})))
        except (TypeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"augment.extra.{name}: {first}; accepted: albumentations' arguments") from None
    return albumentations.Compose(made)
