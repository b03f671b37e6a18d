"""Every backbone's YAML: its weights exist, and the smallest relative of it learns, reloads and is traced."""

import json
import re

import open_clip
import pytest
import timm
import torch
from presets import node, paths, register_tiny_towers, smallest

import guie.build as building
from guie.export.torchscript import torchscript_allowed
from guie.heads.margin import ArcFace
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import GeM
from guie.types import Batch

BACKBONES = {path.stem: node(path) for path in paths("backbone")}
MINIATURES = {}
for stem, found in BACKBONES.items():
    MINIATURES.setdefault(json.dumps(smallest(found), sort_keys=True), stem)
SIZE = re.compile(r"_(tiny|small|base|large|giant|huge_plus|b16|l16|so400m)(?=_|$)")
FAMILIES = {SIZE.sub("", stem): stem for stem in sorted(MINIATURES.values(), reverse=True)}
RELATIVES = [
    pytest.param(text, id=stem, marks=[] if stem in FAMILIES.values() else [pytest.mark.slow])
    for text, stem in MINIATURES.items()
]


@pytest.fixture(scope="module", autouse=True)
def tiny_towers(tmp_path_factory):
    register_tiny_towers(tmp_path_factory.mktemp("towers"))


def models(found):
    """Return the nodes of single models in a node."""
    nested = [part for value in found.values() if isinstance(value, dict) for part in models(value)]
    return nested or [found]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_names_weights_that_exist(name):
    for found in models(BACKBONES[name]):
        building.check_keys(found["_target_"], [key for key in found if key != "_target_"])
        if found["_target_"].endswith("Timm"):
            known = timm.list_models(found["name"].split(".")[0], pretrained=found.get("pretrained", True))
            assert found["name"].split(".")[0] in [model.split(".")[0] for model in known]
            assert found.get("pretrained", True) is False or found["name"] in known
        elif found["_target_"].endswith("OpenClip"):
            assert found["pretrained"] in open_clip.list_pretrained_tags_by_model(found["name"])
            tag = open_clip.get_pretrained_cfg(found["name"], found["pretrained"])
            own = open_clip.get_model_config(found["name"])
            assert bool(tag.get("quick_gelu")) == bool(own.get("quick_gelu"))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("text", RELATIVES)
def test_the_smallest_relative_of_every_backbone_learns_reloads_and_is_traced(text):
    def build():
        torch.manual_seed(0)
        backbone = building.build(json.loads(text))
        return Embedder(backbone, GeM(per_stage=True), Linear(8, in_dim=backbone.out_dim))

    model = build().train()
    images = torch.randint(0, 256, (6, 3, *model.preprocess.size_px)).to(torch.uint8)
    labels = torch.arange(6) % 3
    head = ArcFace(num_classes=3, embed_dim=8)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-4)
    losses = []
    for _ in range(3):
        loss = head(model(images), Batch(images, labels, labels, labels)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    model.eval()
    again = build()
    again.load_state_dict(model.state_dict())
    with torch.no_grad(), torchscript_allowed():
        expected = model.embed(images)
        torch.testing.assert_close(again.eval().embed(images), expected)
        traced = torch.jit.trace_module(again, {"embed": images[:2]}, check_trace=False)
        torch.testing.assert_close(traced.embed(images), expected, atol=1e-5, rtol=0)
