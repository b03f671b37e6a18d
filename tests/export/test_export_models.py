"""Real backbones exported: the program in the file gives the evaluation's vectors, batch and size free."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from guie.embed.pictures import vectors_of
from guie.export.formats import FORMATS
from guie.export.golden import make_golden
from guie.export.source import Request, Source, evaluating
from guie.export.torchscript import program, torchscript_allowed
from guie.models.backbones import OpenClip, Timm
from guie.models.embedder import Embedder
from guie.models.ensemble import Ensemble
from guie.models.necks import BNLinear
from guie.models.pooling import CLS, Average, GeM

SIZES, BATCHES = ((1, 1), (40, 30), (20, 200)), (1, 3)


def resnet() -> Embedder:
    backbone = Timm("resnet10t", pretrained=False, image_px=32, crop="stretch")
    return Embedder(backbone, GeM(learnable=True), BNLinear(16, in_dim=backbone.out_dim))


def resnet_of_two_stages() -> Embedder:
    backbone = Timm("resnet10t", pretrained=False, image_px=32, crop="pad", stages=[2, 3])
    return Embedder(backbone, Average(), BNLinear(16, in_dim=backbone.out_dim))


def vision_transformer() -> Embedder:
    backbone = Timm("vit_tiny_patch16_224", pretrained=False, image_px=32)
    return Embedder(backbone, CLS(), BNLinear(16, in_dim=backbone.out_dim))


def resnet_with_attention_and_checkpointing() -> Embedder:
    backbone = Timm("resnet10t", pretrained=False, image_px=32, attention=True, checkpointing=True)
    return Embedder(backbone, GeM(eval_p=1.0), BNLinear(16, in_dim=backbone.out_dim))


def ensemble_of_two_sizes_a_prefix_of_it() -> Embedder:
    members = {
        "map": Timm("resnet10t", pretrained=False, image_px=48),
        "tokens": Timm("vit_tiny_patch16_224", pretrained=False, image_px=32, options={"depth": 1}),
    }
    backbone = Ensemble(members, {"map": GeM(), "tokens": CLS()})
    return Embedder(backbone, Average(), BNLinear(16, keep=5, in_dim=backbone.out_dim))


def frozen_clip_tower() -> Embedder:
    backbone = OpenClip("ViT-S-32-alt", pretrained=None, image_px=64)
    embedder = Embedder(backbone, Average(), BNLinear(16, in_dim=backbone.out_dim))
    embedder.freeze_backbone()
    return embedder


BUILDERS = [resnet, resnet_of_two_stages, resnet_with_attention_and_checkpointing, vision_transformer]
BUILDERS += [ensemble_of_two_sizes_a_prefix_of_it, frozen_clip_tower]


@pytest.mark.parametrize("build", BUILDERS)
def test_the_program_gives_the_evaluations_vectors(build, tmp_path):
    torch.manual_seed(0)
    embedder = build()
    embedder.neck.norm.running_mean.normal_()
    golden = make_golden(lambda pictures: vectors_of(embedder, pictures), sizes=SIZES, batches=BATCHES)
    with evaluating(Source({"": embedder})) as source, torchscript_allowed():
        torch.jit.save(program(source, Request()), str(tmp_path / "model.pt"))
        loaded = torch.jit.load(str(tmp_path / "model.pt"))
    for images, vectors in zip(golden.images, golden.vectors, strict=True):
        for batch in BATCHES:
            found = loaded(torch.from_numpy(images[:batch])).detach().numpy()
            np.testing.assert_allclose(found, vectors[:batch], atol=FORMATS["torchscript"].largest, rtol=0)
    assert embedder.neck.training
