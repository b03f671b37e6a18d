"""Small embedders for the formats that ONNX leads to, and what evaluation makes of pictures."""

import numpy as np
import torch
from torch import nn

from guie.embed.ensemble import Ensemble
from guie.embed.pictures import vectors_of
from guie.export.source import Source
from guie.models.convnet import ConvNet
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import Average
from guie.postprocess.layers import Mapped
from guie.side import SIDE_DIM
from guie.views import Cut, Padded, Views, Whole

MOST_PX = 4000


def small(seed=0, *, side=False, centre=False):
    """Return an embedder of 24 px pictures, six numbers wide."""
    torch.manual_seed(seed)
    backbone = ConvNet([[4], [8]], image_px=24, centre=centre)
    neck = Linear(6, in_dim=backbone.out_dim + (SIDE_DIM if side else 0))
    for parameter in [*backbone.parameters(), *neck.parameters()]:
        nn.init.normal_(parameter, std=0.5)
    return Embedder(backbone, Average(), neck, side=side).eval()


def looking(*, seed=1):
    """Return an embedder with side inputs that looks at the middle of a square, and a map behind."""
    views = Views({"middle": Padded(0.7, most_px=MOST_PX)})
    return Source({"": small(seed, side=True)}, views=views, layers=[mapped(6)])


def rich():
    """Return two embedders, one with side inputs, four looks of each, and a map behind."""
    views = Views({"whole": Whole(), "middle": Cut(0.7)}, flip=True, summed="raw")
    both = {"a": small(0, centre=True), "b": small(1, side=True)}
    return Source(both, {"a": 0.4, "b": 1.0}, "concat", views, [mapped(12)])


def gated():
    """Return a source whose views are chosen for each picture."""
    views = Views()
    views.gating = object()
    return Source({"": small()}, views=views)


def mapped(width):
    """Return a map of `width` numbers to five."""
    draw = np.random.default_rng(0)
    weight, bias = draw.normal(size=(5, width)), draw.normal(size=5) * 0.1
    return Mapped(weight.astype(np.float32), bias.astype(np.float32))


def evaluated(source, pictures):
    """Return the vectors (N,D) that evaluation gives."""
    parts = {name: vectors_of(one, pictures, source.views) for name, one in source.embedders.items()}
    vectors = Ensemble(source.weights, source.combine).joined(parts)
    for step in source.layers:
        vectors = vectors @ step.weight.T + step.bias
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
