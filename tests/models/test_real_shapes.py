"""The real architectures of the backbones' YAMLs on the meta device: shapes without weights or arithmetic."""

import functools

import open_clip
import pytest
import torch
from presets import node, paths

import guie.build as building

WIDTHS = {
    "clip_vit_b32": 512,
    "clip_vit_l14_336": 768,
    "clip_vit_h14": 1024,
    "clip_vit_bigg14": 1280,
    "clip_eva02_l14_336": 768,
    "clip_convnext_large": 768,
    "clip_siglip_so400m": 1152,
    "siglip2_so400m": 1152,
    "efficientnet_b5": 2048,
    "efficientnet_b7": 2560,
    "efficientnetv2_m": 1280,
    "resnet152": 2048,
    "seresnext101": 2048,
    "resnet101_attention": 2048,
    "multi_stage": 256 + 512 + 1024 + 2048,
    "convnext_large": 1536,
    "vit_giant_dinov2": 1536,
    "vit_large_dinov3": 1024,
    "ensemble_clip_b32": 3 * 512,
    "ensemble_clip_dinov2": 768 + 1024,
    "clip_vit_b32_transformer": 2 * 768,
}
OTHERS = [path.stem for path in paths("backbone") if path.stem not in WIDTHS]


def unweighted(found):
    """Return the node without pretrained weights, at every depth."""
    inner = {key: unweighted(value) for key, value in found.items() if isinstance(value, dict)}
    return found | inner | ({"pretrained": None} if "name" in found else {})


def on_meta(found, monkeypatch):
    """Return the backbone and what it gives for one picture."""
    monkeypatch.setattr(open_clip, "create_model", functools.partial(open_clip.create_model, device="meta"))
    with torch.device("meta"):
        backbone = building.build(unweighted(found)).eval()
        given = backbone(torch.zeros(1, 3, *backbone.preprocess.size_px))
    return backbone, given if isinstance(given, list) else [given]


@pytest.mark.parametrize("name", [*WIDTHS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_the_stated_shape_is_what_the_real_architecture_gives(name, monkeypatch):
    (path,) = [path for path in paths("backbone") if path.stem == name]
    backbone, maps = on_meta(node(path), monkeypatch)
    channels = 2 if backbone.kind == "tokens" else 1
    assert sum(one.shape[channels] for one in maps) == backbone.out_dim == WIDTHS.get(name, backbone.out_dim)
    assert {one.dim() for one in maps} == {{"map": 4, "tokens": 3, "vector": 2}[backbone.kind]}


@pytest.mark.parametrize(
    ("name", "width"),
    [("clip_vit_l14", 1024), ("clip_eva02_b16", 768), ("clip_siglip_b16", 768), ("clip_convnext_base", 1024)],
)
def test_a_clip_tower_without_its_projection_gives_its_width(name, width, monkeypatch):
    (path,) = [path for path in paths("backbone") if path.stem == name]
    backbone, (vector,) = on_meta(node(path) | {"with_projection": False}, monkeypatch)
    assert vector.shape == (1, backbone.out_dim) == (1, width)
