"""Gradients and statistics with and without gradient checkpointing, in float64."""

import json

import open_clip
import pytest
import torch
from presets import PX, register_tiny_towers
from torch import nn

from guie.errors import UserError
from guie.models.backbones import OpenClip, Timm


@pytest.fixture(scope="module", autouse=True)
def tiny_towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    register_tiny_towers(folder)
    tower = {"image_size": PX, "layers": [1, 1, 1, 1], "width": 8}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    (folder / "tiny-RN.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": tower, "text_cfg": text}))
    open_clip.add_model_config(folder)


BACKBONES = {
    "resnet": lambda on: Timm("resnet14t", False, PX, drop_path=0.3, checkpointing=on),
    "attention": lambda on: Timm("resnet10t", False, PX, attention=True, checkpointing=on),
    "stages": lambda on: Timm("resnet10t", False, PX, stages=[2, 3, 4], checkpointing=on),
    "efficientnet": lambda on: Timm("efficientnet_b0", False, PX, checkpointing=on),
    "convnext": lambda on: Timm("convnext_atto", False, PX, checkpointing=on),
    "vit": lambda on: Timm("vit_tiny_patch16_224", False, PX, options={"depth": 2}, checkpointing=on),
    "clip": lambda on: OpenClip("tiny-ViT", checkpointing=on),
    "clip_tokens": lambda on: OpenClip("tiny-ViT", output="tokens", checkpointing=on),
    "clip_timm": lambda on: OpenClip("tiny-convnext", checkpointing=on),
}


def trained_once(name, checkpointing):
    """Return gradients and buffers after one backward pass, and how often the network's modules ran."""
    torch.manual_seed(0)
    backbone = BACKBONES[name](checkpointing).double().train()
    runs = []
    for module in backbone.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(lambda *_: runs.append(1))
    torch.manual_seed(1)
    found = backbone(torch.randn(3, 3, PX, PX, dtype=torch.float64))
    maps = found if isinstance(found, list) else [found]
    sum((one * torch.randn_like(one)).sum() for one in maps).backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    return gradients, dict(backbone.named_buffers()), len(runs)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_and_statistics_are_equal_and_blocks_run_twice(name):
    plain, tracked, runs = trained_once(name, False)
    again, tracked_again, runs_again = trained_once(name, True)
    assert runs_again > runs
    assert plain.keys() == again.keys() and tracked.keys() == tracked_again.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, rtol=1e-9, atol=1e-10, msg=key)
    for key, buffer in tracked.items():
        torch.testing.assert_close(tracked_again[key], buffer, rtol=1e-12, atol=0, msg=key)


def test_batch_norms_that_replace_the_models_own_are_tracked_once_too():
    backbone = Timm("resnet10t", False, PX, checkpointing=True).train()
    block = backbone.model.layer2[0]
    block.bn1 = nn.BatchNorm2d(block.bn1.num_features)
    backbone(torch.randn(2, 3, PX, PX)).sum().backward()
    assert block.bn1.num_batches_tracked == 1
    assert set(block.bn1._buffers) == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("coat_lite_tiny", lambda: Timm("coat_lite_tiny", False, checkpointing=True)),
        ("tiny-RN", lambda: OpenClip("tiny-RN", checkpointing=True)),
    ],
)
def test_a_model_that_cannot_is_refused_also_when_it_says_nothing(name, build):
    message = f"backbone.checkpointing: true received; '{name}' does not support it"
    with pytest.raises(UserError, match=message):
        build()
