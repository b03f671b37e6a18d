"""Bar 2: the training transform (random resized crop + flip to 224), 1600x1200 JPEG, against albumentations.

Both sides cut the same boxes. The peer decodes with OpenCV as its documentation does; a second row feeds
it from PIL. Ours draws the box from the header and decodes only what the box needs; checked first: its mean
difference to full decode and antialiased resize is at most 1 level.

    python benchmarks/bar02_train_transform.py
"""

import io
import os
from statistics import mean
from typing import NamedTuple

from timing import compare, report  # isort: skip  (first: it sets one thread)

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
import albumentations as A
import cv2
import numpy as np
from bench_pictures import LARGE, jpegs
from PIL import Image

from guie import images, resize

cv2.setNumThreads(1)
SIZE = (224, 224)


class Sample(NamedTuple):
    """What both sides are given: a JPEG, the box (x, y, width, height) and whether to mirror."""

    data: bytes
    box: tuple[int, int, int, int]
    flip: bool


def samples(pictures: list[bytes]) -> list[Sample]:
    """Draw a box by albumentations' own rule (area .08..1, aspect 3/4..4/3) and a flip per picture."""
    transform = A.RandomResizedCrop(SIZE, scale=(0.08, 1.0), ratio=(0.75, 4 / 3))
    transform.set_random_seed(7)
    rng = np.random.default_rng(7)
    shape = {"shape": (LARGE[1], LARGE[0], 3)}
    drawn = []
    for data in pictures:
        x0, y0, x1, y1 = transform.get_params_dependent_on_data(shape, {})["crop_coords"]
        drawn.append(Sample(data, (x0, y0, x1 - x0, y1 - y0), bool(rng.random() < 0.5)))
    return drawn


def ours(sample: Sample) -> np.ndarray:
    images.read_header(sample.data)  # a loader draws the box from it
    cut = resize.load_crop(sample.data, sample.box, SIZE, interpolation="bilinear")
    return np.ascontiguousarray(cut[:, :, ::-1]) if sample.flip else cut


def peer_transforms(sample: Sample) -> A.Compose:
    """The peer's transform with the drawn box and flip put in: its code runs, only the draw is replaced."""
    crop, (x, y, width, height) = A.RandomResizedCrop(SIZE), sample.box
    draw = crop.get_params_dependent_on_data

    def same_box(params: dict, data: dict) -> dict:
        return {**draw(params, data), "crop_coords": (x, y, x + width, y + height)}

    crop.get_params_dependent_on_data = same_box
    return A.Compose([crop, A.HorizontalFlip(p=1.0 if sample.flip else 0.0)])


def from_opencv(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def from_pil(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def check(drawn: list[Sample]) -> float:
    """Return the mean difference to full decode + antialiased resize in levels; at most 1, or it fails."""
    differences = []
    for sample in drawn:
        expected = resize.crop_resize(images.decode(sample.data), sample.box, SIZE, "bilinear")
        expected = expected[:, :, ::-1] if sample.flip else expected
        differences.append(float(np.abs(ours(sample).astype(int) - expected).mean()))
    assert mean(differences) <= 1, f"mean difference {mean(differences):.2f} levels"
    return mean(differences)


def main() -> None:
    drawn = samples(jpegs(8, *LARGE) * 3)
    difference = check(drawn)
    kib = sum(len(sample.data) for sample in drawn) / len(drawn) / 1000
    transforms = [peer_transforms(sample) for sample in drawn]
    what = f"training transform, 1600x1200 JPEG ({kib:.0f} kB), mean difference {difference:.2f} levels"
    for name, decode in (("OpenCV", from_opencv), ("PIL", from_pil)):
        peer = lambda decode=decode: [  # noqa: E731
            transform(image=decode(sample.data))["image"]
            for transform, sample in zip(transforms, drawn, strict=True)
        ]
        ratio = compare(lambda: [ours(sample) for sample in drawn], peer)
        report(2, f"{what}, against {name} + albumentations", ratio, 1.8)


if __name__ == "__main__":
    main()
