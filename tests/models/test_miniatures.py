"""Every kind of backbone, every neck, pooling and head, built small and stepped twice; weights from files."""

import copy
import functools

import numpy as np
import open_clip
import pytest
import torch
from presets import PX, node, paths, register_tiny_towers, smallest
from torch import nn

import guie.build as building
from guie.errors import UserError
from guie.export.torchscript import torchscript_allowed
from guie.heads.margin import ArcFace
from guie.models import backbones
from guie.models.backbones import OpenClip, Timm
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import CLS, GeM
from guie.types import Batch

CLASSES, PICTURES = 3, 6
TINY_CLIP = "tiny-ViT"
FACTS = {
    "num_classes": CLASSES,
    "class_counts": np.full(CLASSES, PICTURES // CLASSES),
    "class_domains": np.arange(CLASSES),
    "domain_names": [f"domain {label}" for label in range(CLASSES)],
}


@pytest.fixture(scope="session", autouse=True)
def tiny_clip(tmp_path_factory):
    """Register a miniature of the CLIP ViT family with open_clip's own mechanism."""
    register_tiny_towers(tmp_path_factory.mktemp("open_clip"))


MINIATURES = {
    "small": lambda: Timm("resnet10t", False, PX),
    "resnet": lambda: Timm("resnet18", False, PX),
    "resnet_stages": lambda: Timm("resnet10t", False, PX, stages=[2, 3, 4]),
    "efficientnet": lambda: Timm("efficientnet_b0", False, PX),
    "convnext": lambda: Timm("convnext_atto", False, PX),
    "vit": lambda: Timm("vit_tiny_patch16_224", False, PX, options={"depth": 2}),
    "vit_registers": lambda: Timm("vit_small_patch14_reg4_dinov2", False, 28, options={"depth": 1}),
    "siglip": lambda: Timm("vit_base_patch16_siglip_224", False, PX, options={"depth": 1}),
    "swin": lambda: Timm("swin_tiny_patch4_window7_224", False, PX, options={"depths": (1, 1)}),
    "clip": lambda: OpenClip(TINY_CLIP),
    "clip_tokens": lambda: OpenClip(TINY_CLIP, output="tokens"),
    "clip_width": lambda: OpenClip(TINY_CLIP, with_projection=False),
}


@functools.cache
def miniature(name):
    torch.manual_seed(0)
    return MINIATURES[name]()


def batch(px=PX):
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(PICTURES) % CLASSES
    images = torch.randint(0, 256, (PICTURES, 3, px, px), generator=random).to(torch.uint8)
    return Batch(images, labels, labels, labels)


def step_twice(model, head, px=PX):
    """Take two small steps; return the losses before, between and after, a memory left out of them."""
    parameters = [p for p in [*model.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3e-4)
    data, losses = batch(px), []
    for _ in range(3):
        losses.append(head.eval()(model(data.images), data).total.item())
        optimizer.zero_grad()
        head.train()(model(data.images), data).total.backward()
        optimizer.step()
    return losses


def fresh_copy(model, build):
    copy = build()
    copy.load_state_dict(model.state_dict())
    return copy.eval()


@pytest.mark.parametrize("name", MINIATURES)
def test_a_backbone_of_each_family_learns_and_reloads(name):
    backbone = miniature(name)
    px = backbone.preprocess.size_px[0]
    build = lambda: Embedder(MINIATURES[name](), GeM(), Linear(8, in_dim=backbone.out_dim))  # noqa: E731
    torch.manual_seed(0)
    model = Embedder(backbone, GeM(), Linear(8, in_dim=backbone.out_dim))
    losses = step_twice(model.train(), ArcFace(num_classes=CLASSES, embed_dim=8), px)
    assert losses[2] < losses[0]
    model.eval()
    images = batch(px).images
    torch.testing.assert_close(fresh_copy(model, build).embed(images), model.embed(images))


def check_learns_reloads_and_is_traced(build):
    torch.manual_seed(0)
    model = build().train()
    losses = step_twice(model, ArcFace(num_classes=CLASSES, embed_dim=model.neck.embed_dim))
    assert losses[2] < losses[0]
    model.eval()
    images = batch().images
    again = fresh_copy(model, build)
    with torch.no_grad(), torchscript_allowed():
        torch.testing.assert_close(again.embed(images), model.embed(images))
        traced = torch.jit.trace_module(again, {"embed": images[:2]}, check_trace=False)
        torch.testing.assert_close(traced.embed(images), model.embed(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", paths("pool"), ids=lambda path: path.stem)
def test_every_pool_learns_reloads_and_is_traced(path):
    tokens = path.stem in ("cls", "token_mean")
    source = miniature("clip_tokens" if tokens else "resnet_stages" if "stage" in path.stem else "small")
    check_learns_reloads_and_is_traced(
        lambda: Embedder(copy.deepcopy(source), building.build(node(path)), Linear(8, in_dim=source.out_dim))
    )


# A neck of domains needs its own heads: it is built with them where they are tested.
@pytest.mark.parametrize(
    "path", [path for path in paths("neck") if "domain" not in path.stem], ids=lambda path: path.stem
)
def test_every_neck_learns_reloads_and_is_traced(path):
    source = miniature("clip_tokens")
    check_learns_reloads_and_is_traced(
        lambda: Embedder(copy.deepcopy(source), CLS(), building.build(node(path), in_dim=source.out_dim))
    )


@pytest.mark.parametrize(
    "path", [path for path in paths("head") if "???" not in path.read_text()], ids=lambda path: path.stem
)
def test_every_head_learns_and_reloads(path):
    if path.stem == "pml":
        pytest.importorskip("pytorch_metric_learning")

    def build():
        torch.manual_seed(0)  # a teacher has its weights from elsewhere, not from the state dict
        return building.build(smallest(node(path)), embed_dim=8, feature_dim=32, **FACTS)

    head = build()
    model = Embedder(copy.deepcopy(miniature("clip_tokens")), CLS(), Linear(8, in_dim=32))
    losses = step_twice(model, head)
    assert losses[2] < losses[0]
    again = build()
    again.load_state_dict(head.state_dict())
    output = model(batch().images)
    assert again.eval()(output, batch()).total.item() == head.eval()(output, batch()).total.item()


def test_kinds_widths_and_prefixes_are_what_the_models_give():
    expected = {
        "small": ("map", 512, 0),
        "resnet_stages": ("map", 128 + 256 + 512, 0),
        "vit": ("tokens", 192, 1),
        "vit_registers": ("tokens", 384, 5),
        "siglip": ("vector", 768, 0),
        "swin": ("map", 192, 0),
        "clip": ("vector", 16, 0),
        "clip_tokens": ("tokens", 32, 1),
        "clip_width": ("vector", 32, 0),
    }
    for name, facts in expected.items():
        backbone = miniature(name)
        assert (backbone.kind, backbone.out_dim, backbone.prefix_tokens) == facts, name
        found = backbone.eval()(torch.randn(2, 3, *backbone.preprocess.size_px))
        assert {"map": 4, "tokens": 3, "vector": 2}[backbone.kind] == (
            found[0] if isinstance(found, list) else found
        ).dim()


def test_clip_tokens_begin_with_the_class_token():
    vector, tokens = miniature("clip_width").eval(), miniature("clip_tokens").eval()
    state = {k: v for k, v in tokens.state_dict().items() if k != "model.proj"}
    vector.load_state_dict(state)
    x = torch.randn(2, 3, PX, PX)
    torch.testing.assert_close(CLS()(tokens(x), 1), vector(x))


def test_preprocessing_is_the_model_s_own():
    siglip = miniature("siglip").preprocess
    assert (siglip.mean, siglip.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    resnet = miniature("small").preprocess
    assert (resnet.size_px, resnet.crop, resnet.crop_fraction) == ((PX, PX), "center", 0.875)
    clip = miniature("clip").preprocess
    assert clip.mean == (0.48145466, 0.4578275, 0.40821073)
    assert (clip.size_px, clip.crop, clip.interpolation) == ((PX, PX), "center", "bicubic")
    assert Timm("resnet10t", False, 48, crop="stretch").preprocess.crop_fraction == 1.0


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_timm_weights_come_from_a_local_file(tmp_path, suffix):
    source = Timm("resnet10t", False, PX).model
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        import safetensors.torch

        safetensors.torch.save_file(source.state_dict(), path)
    else:
        torch.save({"state_dict": source.state_dict()}, path)
    loaded = Timm("resnet10t", str(path), PX).model
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_clip_weights_come_from_a_local_file(tmp_path):
    source = open_clip.create_model(TINY_CLIP)
    path = tmp_path / "clip.pt"
    torch.save(source.state_dict(), path)
    loaded = OpenClip(TINY_CLIP, str(path)).model
    for name, value in source.visual.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


class NotATensor:
    """Something that a weights-only file may not hold."""


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: Timm("resnet999", False), "backbone.name: timm has no model 'resnet999'"),
        (
            lambda d: Timm("resnet10t", f"{d}/absent.pth"),
            "backbone.pretrained: there is no file '.*absent.pth'",
        ),
        (
            lambda d: Timm("resnet10t", f"{d}/other.pth"),
            r"does not fit 'resnet10t': it lacks \d+ of \d+ tensors, for example bn1.bias",
        ),
        (lambda d: Timm("resnet10t", f"{d}/code.pth"), "cannot be read as tensors only and is not loaded"),
        (lambda d: Timm("resnet10t", f"{d}/text.pth"), "backbone.pretrained: '.*text.pth'"),
        (
            lambda d: Timm("resnet10t", False, options={"colour": 1}),
            "backbone: 'resnet10t' does not take .*colour",
        ),
        (lambda d: OpenClip("ViT-Z"), "backbone.name: open_clip has no 'ViT-Z'"),
        (
            lambda d: OpenClip("ViT-B-32", "laion9"),
            "backbone.pretrained: 'laion9' received; accepted for 'ViT-B-32'",
        ),
        (
            lambda d: OpenClip("ViT-B-32", "openai"),
            "'openai' has another activation; accepted: ViT-B-32-quickgelu",
        ),
        (lambda d: OpenClip(TINY_CLIP, f"{d}/absent.pt"), "there is no file"),
        (
            lambda d: OpenClip(TINY_CLIP, output="map"),
            "backbone.output: 'map' received; accepted: vector, tokens",
        ),
    ],
)
def test_a_mistake_is_one_line_with_the_cure(tmp_path, build, message):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save(NotATensor(), tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(UserError, match=message) as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["timm", "open_clip"])
def test_offline_weights_are_refused_with_the_cure(monkeypatch, target):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(f"{target}.create_model", no_network)
    with pytest.raises(
        UserError, match=r"cannot be had \(no route to host\); give a local file .*pretrained=null"
    ):
        Timm("resnet10t") if target == "timm" else OpenClip("ViT-B-32-quickgelu", "openai")


def test_a_member_of_an_ensemble_is_named_with_the_cure_too(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    (path,) = [path for path in paths("backbone") if path.stem == "ensemble_clip_dinov2"]
    monkeypatch.setattr("open_clip.create_model", no_network)
    with pytest.raises(
        UserError, match=r"'laion2b_s32b_b82k' for 'ViT-L-14' cannot be had .*give a local file"
    ):
        building.build(node(path))


def test_an_unexpected_failure_is_not_hidden(monkeypatch):
    monkeypatch.setattr("timm.create_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Timm("resnet10t", False)


def test_the_backbones_are_plain_modules():
    assert issubclass(backbones.Timm, nn.Module) and issubclass(backbones.OpenClip, nn.Module)
