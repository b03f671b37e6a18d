"""System A in miniature, and what it makes of one picture as its page (A5) says: torchvision and float64."""

import numpy as np
import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as torchvision

from guie.build import build
from guie.config.compose import composed
from guie.datasets.guie130k import CLASSES
from guie.embed.space import feature_space
from guie.models.embedder import Embedder
from guie.models.necks import BNLinear
from guie.models.pooling import Average
from guie.types import Preprocess
from guie.views import Classifier

PX = 16
THINGS = (0, 8, 10)  # apparel, packaged, toys: a contract of numbers
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Tower(nn.Module):
    """Pictures of 16 x 16 px to a vector of 12 numbers; the rule that it states is not the page's."""

    kind, out_dim, prefix_tokens = "vector", 12, 0

    def __init__(self):
        super().__init__()
        self.preprocess = Preprocess(size_px=(PX, PX), mean=MEAN, std=STD, crop="center", crop_fraction=0.9)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 12))

    def forward(self, x):
        return self.layers(x)


class AnySize(Tower):
    """The same of pictures of any size."""

    def __init__(self):
        super().__init__()
        self.layers.insert(2, nn.AdaptiveAvgPool2d(4))


def small_system(seed=0, kind=Tower):
    """Return an embedder with side inputs, its neck's statistics drawn."""
    torch.manual_seed(seed)
    tower = kind()
    made = Embedder(tower, Average(), BNLinear(8, in_dim=tower.out_dim + 3), side=True)
    made.neck.norm.running_mean.normal_()
    made.neck.norm.running_var.uniform_(0.5, 2.0)
    return made.eval()


def classifier_of(embedder, seed=8, names=tuple(CLASSES)):
    """Return a classifier of the embedder's features that sees many classes in noise."""
    draw = torch.Generator().manual_seed(seed)
    weight = 4 * torch.randn(len(names), embedder.backbone.out_dim, generator=draw)
    bias = 0.1 * torch.randn(len(names), generator=draw)
    return Classifier(list(names), weight, bias, f"drawn {seed}", feature_space(embedder))


def preset(name, classifier, *words):
    """Return the views of a config, as a command builds them."""
    cfg = composed("embed", ["dataset=toy", f"views={name}", *words])
    return build(cfg["views"], where="views", classifier=classifier)


def by_the_page(embedder, classifier, picture):
    """Return the vector (D,) float64 and the branch taken, of one picture (3,H,W) uint8."""
    height, width = picture.shape[1:]
    numbers = np.array([height / width, height / 224, width / 224])
    if width / height == 1.0:
        cut = torchvision.center_crop(picture, [inner(height), inner(width)])
        raw = neck(embedder, np.concatenate([clip(embedder, cut), numbers]))
        return raw / np.linalg.norm(raw), "square"
    feature = clip(embedder, picture)
    logits = classifier.weight.double().numpy() @ feature + classifier.bias.double().numpy()
    seen = [feature]
    side = max(height, width)
    square = padded(picture, side)
    seen.append(clip(embedder, torchvision.center_crop(square, [inner(side)] * 2)))
    is_thing = int(logits.argmax()) in THINGS
    if is_thing:
        seen.append(clip(embedder, square))
    raw = sum(neck(embedder, np.concatenate([feature, numbers])) for feature in seen) / len(seen)
    return raw / np.linalg.norm(raw), "thing" if is_thing else "other"


def inner(side):
    """Return 0.9 of a side, rounded down; of one pixel that pixel, of which the page would make nothing."""
    return max(int(0.9 * side), 1)


def padded(picture, side):
    """Return the picture in the middle of a black square, an odd rest below and to the right."""
    height, width = picture.shape[1:]
    left, top = (side - width) // 2, (side - height) // 2
    return torchvision.pad(picture, [left, top, side - width - left, side - height - top], fill=0)


def clip(embedder, picture):
    """Return the feature (F,) float64 of a picture stretched to the tower's input before / 255."""
    small = torchvision.resize(picture, [PX, PX], InterpolationMode.BICUBIC, antialias=True)
    pixels = torchvision.normalize(small.double() / 255, MEAN, STD)
    tower = embedder.backbone.double()
    with torch.no_grad():
        feature = tower(pixels[None])[0].numpy()
    tower.float()
    return feature


def neck(embedder, read):
    """Return batch norm without affine part, then the linear layer, of (F+3,)."""
    norm, linear = embedder.neck.norm, embedder.neck.linear
    mean, variance = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    scaled = (read - mean) / np.sqrt(variance + 1e-6)
    with torch.no_grad():
        return linear.weight.double().numpy() @ scaled + linear.bias.double().numpy()
