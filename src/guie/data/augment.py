"""Augmentation of one encoded picture: a crop cut while decoding, a flip, albumentations' stages."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from guie.data.boxes import random_box
from guie.data.draws import integers, uniforms
from guie.errors import UserError
from guie.images import decode_region, read_header
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

    `scale`, `ratio`: area share and aspect of the crop. `extra`: stages of albumentations and of
    `guie.data.transforms` by class name, each with its arguments, in order, on the crop:
    `{ColorJitter: {p: 0.8}, CoarseDropout: {}}`; every stage's choices are seeded by (seed, step, slot).
    `orientations`: 4 shows every picture in its quarter turns, 8 mirrored too, each a class of its own.

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
        self.extra = _pipeline(extra, "augment.extra") if extra else None

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


class Stages:
    """Stages on the whole picture, then the net's own preprocessing: where turns and overlays precede a crop.

    `stages` as `CropFlip.extra`. Large JPEGs are decoded at 1/2, 1/4 or 1/8 where that leaves `oversample`
    times the net's size. `PictureOverlay` takes its other pictures from the training set.

    Raises:
        UserError: a stage or argument that albumentations refuses.

    """

    stage = "sample"

    def __init__(
        self, stages: dict[str, Any], oversample: float = 2.0, *, preprocess: Preprocess, pictures: Any
    ):
        self.stages = _pipeline(stages, "augment.stages", pictures)
        self.oversample, self.preprocess = oversample, preprocess

    def draws(self, seed: int, step: int, slots: np.ndarray) -> np.ndarray:
        """Return (B,1): a seed for albumentations."""
        return integers(seed + 1, step, slots)[:, None].astype(np.float64)

    def __call__(self, data: bytes, u: np.ndarray) -> np.ndarray:
        """Return (3,h,w) uint8.

        Raises:
            BadImage: the bytes are no picture that can be decoded.

        """
        from guie.resize import apply

        header, spec = read_header(data), self.preprocess
        whole = (0, 0, header.width, header.height)
        image = decode_region(
            data, whole, spec.size_px, oversample=self.oversample, background=spec.background
        ).image
        self.stages.set_random_seed(int(u[0]))
        return apply(np.ascontiguousarray(self.stages(image=image)["image"]), spec)


class PerView:
    """Another augmentation for each view of a picture: with a sampler's `views: 2`, two by turns.

    `views`: augmentations of encoded pictures by name, in order; position i of the batch takes the one
    numbered i modulo their count.

    Raises:
        UserError: none given, or one that works on cached pictures.

    """

    stage = "sample"

    def __init__(self, views: dict[str, Any]):
        wrong = [name for name, view in views.items() if getattr(view, "stage", "") != "sample"]
        if wrong or not views:
            raise UserError(
                f"augment.views: {', '.join(wrong) or 'none'}; accepted: augmentations of encoded pictures "
                "(crop_flip, stages, none)"
            )
        self.views = list(views.values())

    def draws(self, seed: int, step: int, slots: np.ndarray) -> np.ndarray:
        """Return (B,1 + M): which view a slot is, and that view's draws."""
        slots = np.asarray(slots)
        which = slots % len(self.views)
        drawn = [view.draws(seed, step, slots) for view in self.views]
        made = np.zeros((len(slots), 1 + max(d.shape[1] for d in drawn)))
        made[:, 0] = which
        for number, own in enumerate(drawn):
            made[which == number, 1 : 1 + own.shape[1]] = own[which == number]
        return made

    def __call__(self, data: bytes, u: np.ndarray) -> np.ndarray:
        """Return (3,h,w) uint8 by the slot's augmentation."""
        return self.views[int(u[0])](data, u[1:])


def _pipeline(stages: dict[str, Any], key: str, pictures: Any = None) -> Any:
    from guie.data.transforms import pipeline  # albumentations costs two CPU seconds

    return pipeline(stages, key=key, pictures=pictures)
