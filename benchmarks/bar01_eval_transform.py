"""Bar 1: the evaluation transform, 500x400 JPEG to 224 bicubic centre, against PIL + torchvision.

The peer is the open_clip and timm default: PIL decode, Resize, CenterCrop, ToTensor, Normalize. Ours is
decode and resize on uint8; the float variant normalises too, the uint8 variant leaves that to the device.

    python benchmarks/bar01_eval_transform.py
"""

import io

from timing import compare, report  # isort: skip  (first: it sets one thread)
import numpy as np
import torch
from bench_pictures import SMALL, jpegs
from PIL import Image
from torchvision import transforms

from guie import resize
from guie.types import Preprocess

SPEC = Preprocess(crop="center")
MEAN = torch.tensor(SPEC.mean)[:, None, None]
STD = torch.tensor(SPEC.std)[:, None, None]
SCALE, SHIFT = 1 / (255 * STD), -MEAN / STD
GEOMETRY = transforms.Compose(
    [transforms.Resize(224, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
)
TO_FLOAT = transforms.Compose([transforms.ToTensor(), transforms.Normalize(SPEC.mean, SPEC.std)])


def peer(data: bytes) -> torch.Tensor:
    return TO_FLOAT(GEOMETRY(Image.open(io.BytesIO(data)).convert("RGB")))


def ours_float(data: bytes) -> torch.Tensor:
    return torch.from_numpy(resize.load(data, SPEC)).float().mul_(SCALE).add_(SHIFT)


def check(pictures: list[bytes]) -> None:
    worst = 0
    for data in pictures:
        expected = np.asarray(GEOMETRY(Image.open(io.BytesIO(data)).convert("RGB"))).transpose(2, 0, 1)
        worst = max(worst, int(np.abs(resize.load(data, SPEC).astype(int) - expected).max()))
        torch.testing.assert_close(ours_float(data), peer(data), atol=1.01 / 255 / 0.224, rtol=0)
    assert worst <= 1, f"largest difference {worst} levels"


def main() -> None:
    pictures = jpegs(20, *SMALL)
    check(pictures)
    kib = sum(map(len, pictures)) / len(pictures) / 1000
    what = f"evaluation transform, 500x400 JPEG ({kib:.0f} kB) to 224, against PIL + torchvision"
    theirs = lambda: [peer(data) for data in pictures]  # noqa: E731
    report(1, f"{what}: uint8 out", compare(lambda: [resize.load(d, SPEC) for d in pictures], theirs), 2.5)
    report(1, f"{what}: float out", compare(lambda: [ours_float(d) for d in pictures], theirs), 2.5)


if __name__ == "__main__":
    main()
