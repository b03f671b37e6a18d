"""Rates by depth, as they are after steps of the engine; fused kernels."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from tiny import TinyEmbedder, TinyHead, batches, settings
from torch import nn

from guie.errors import UserError
from guie.models.backbones import Timm
from guie.train.distributed import Hardware, World
from guie.train.engine import Engine
from guie.train.layers import depths
from guie.train.optim import adamw, load_state, settle, sgd
from guie.train.task import Run, Task

TIMM = partial(Timm, pretrained=False)
VIT = {"embed_dim": 12, "depth": 3, "num_heads": 2, "patch_size": 16}


def clip_tower():
    """Return an open_clip tower as `OpenClip` holds it, in small."""
    from open_clip.transformer import VisionTransformer

    return nn.ModuleDict({"model": VisionTransformer(32, 16, 16, 3, 2, 2.0, output_dim=8)})


TOWERS = {
    # builder, depth of some weights
    "vit": (
        lambda: TIMM("vit_tiny_patch16_224", image_px=32, options=VIT),
        {"cls_token": 4, "pos_embed": 4, "patch_embed.proj.weight": 4, "blocks.0.norm1.weight": 3}
        | {"blocks.1.mlp.fc1.bias": 2, "blocks.2.attn.qkv.weight": 1, "norm.weight": 1},
    ),
    "resnet": (
        lambda: TIMM("resnet18"),
        {"conv1.weight": 9, "bn1.bias": 9, "layer1.0.conv1.weight": 8, "layer1.1.conv1.weight": 7}
        | {"layer4.0.downsample.0.weight": 2, "layer4.1.bn2.weight": 1},
    ),
    "convnext": (
        lambda: TIMM("convnext_atto"),
        {"stem.0.weight": 14, "stages.0.blocks.0.conv_dw.weight": 13, "stages.3.blocks.1.conv_dw.weight": 2}
        | {"head.norm.weight": 1},
    ),
    "open_clip": (
        lambda: clip_tower(),
        {"class_embedding": 4, "positional_embedding": 4, "conv1.weight": 4, "ln_pre.weight": 4}
        | {"transformer.resblocks.0.ln_1.weight": 3, "transformer.resblocks.2.mlp.c_fc.weight": 1}
        | {"ln_post.weight": 1, "proj": 1},
    ),
}


class Stub(nn.Module):
    """An embedder whose features are a weighted sum of its backbone's weights: cheap gradients everywhere."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.neck = backbone, nn.Linear(3, 3)

    def forward(self, images):
        total = sum(weight.mean() for weight in self.backbone.parameters())
        return total + self.neck(torch.ones(len(images), 3))


@pytest.mark.parametrize("name", TOWERS)
def test_rates_after_stepping_are_the_base_times_decay_to_the_depth(name):
    make, expected = TOWERS[name]
    embedder, head = Stub(make()), nn.Linear(2, 2)
    optimizer = adamw(lr=1e-3, layer_decay=0.7, embedder=embedder, head=head)
    engine = Engine(
        Task(embedder, head, optimizer, batches(), 4),
        settings(warmup=0.5),
        Hardware(),
        World(),
        Run(),
    )
    for _ in range(4):  # after a third of the steps the warm-up has come to 4 / 6
        embedder(torch.ones(2, 3)).sum().backward()
        engine._set_rates()
        optimizer.step()
        engine.step += 1
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = dict(embedder.backbone.get_submodule("model").named_parameters())
    for weight, depth in expected.items():
        assert rates[id(found[weight])] == pytest.approx(1e-3 * 4 / 6 * 0.7**depth), weight
    assert rates[id(embedder.neck.weight)] == rates[id(head.weight)] == pytest.approx(1e-3 * 4 / 6)
    assert len(rates) == sum(1 for module in (embedder, head) for _ in module.parameters())


def test_the_deepest_weights_move_least():
    """With AdamW's first step, which is as long as the rate, the decay shows in the weights themselves."""
    embedder = Stub(TIMM("resnet18"))
    before = {name: p.detach().clone() for name, p in embedder.backbone.model.named_parameters()}
    optimizer = adamw(lr=1e-2, weight_decay=0.0, layer_decay=0.5, embedder=embedder, head=nn.Identity())
    embedder(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    moved = {
        n: float((p.detach() - before[n]).abs().max()) for n, p in embedder.backbone.model.named_parameters()
    }
    assert moved["layer4.1.conv2.weight"] / moved["layer4.0.conv1.weight"] == pytest.approx(2, rel=1e-2)
    assert moved["layer4.1.conv2.weight"] == pytest.approx(5e-3, rel=1e-2)


def test_maps_of_several_stages_and_own_networks_go_by_numbered_blocks_in_their_order():
    layers = depths(TIMM("resnet18", stages=[2, 3]))
    order = ["conv1", "layer1.0.conv1", "layer1.1.conv2", "layer2.0.conv1", "layer3.1.conv1"]
    found = [layers[f"model.{name}.weight"] for name in order]
    assert all(a > b for a, b in pairwise(found)) and found[-1] <= 2
    assert depths(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)))["0.weight"] == 2


def test_what_is_added_to_a_tower_learns_as_the_neck_does():
    backbone = TIMM("resnet18")
    backbone.attention = nn.Linear(3, 1)
    assert depths(backbone)["attention.weight"] == 0
    assert depths(nn.ModuleList([backbone, TIMM("resnet18")]))["1.model.conv1.weight"] == 9


def test_a_decay_out_of_range_is_named():
    with pytest.raises(UserError, match=r"optim\.layer_decay: 1\.5; accepted: 0 < layer_decay <= 1"):
        sgd(layer_decay=1.5, embedder=TinyEmbedder(), head=TinyHead())


def trained(fused):
    torch.manual_seed(0)
    embedder, head = TinyEmbedder().double(), TinyHead().double()
    optimizer = adamw(fused=fused, embedder=embedder, head=head)
    for batch in batches()(0, 20):
        optimizer.zero_grad()
        head(embedder(batch.images), batch).total.backward()
        optimizer.step()
    return head.weight.detach(), optimizer


def test_fused_kernels_give_equal_weights_and_a_state_that_either_continues():
    (one, plain), (other, fused) = trained(False), trained(True)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    load_state(plain, fused.state_dict())
    load_state(fused, plain.state_dict())
    assert not plain.param_groups[0]["fused"] and fused.param_groups[0]["fused"]


def test_kernels_are_fused_on_a_gpu_only_unless_asked_for():
    for device, expected in (("cpu", None), ("cuda", True)):
        optimizer = adamw(embedder=TinyEmbedder(), head=TinyHead())
        settle(optimizer, torch.device(device))
        assert {group["fused"] for group in optimizer.param_groups} == {expected}
    asked = adamw(fused=False, embedder=TinyEmbedder(), head=TinyHead())
    settle(asked, torch.device("cuda"))
    assert {group["fused"] for group in asked.param_groups} == {False}
