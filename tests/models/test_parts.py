"""Pooling, necks and the embedder against numbers computed another way."""

import numpy as np
import pytest
import torch
from torch import nn

from guie.errors import UserError
from guie.models.embedder import Embedder
from guie.models.necks import FCBN, BNLinear, Identity, Linear
from guie.models.pooling import CLS, Average, GeM
from guie.types import Preprocess


class Patches(nn.Module):
    """A tiny backbone: non-overlapping patches, linear, ReLU; a map, or tokens with the mean first."""

    def __init__(self, kind="map", dropout=0.0):
        super().__init__()
        self.kind, self.out_dim, self.prefix_tokens = kind, 6, int(kind == "tokens")
        self.preprocess = Preprocess(size_px=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
        self.conv, self.norm = nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6)

    def forward(self, x):
        found = self.norm(self.conv(x)).relu()
        if self.kind == "map":
            return found
        tokens = found.flatten(2).transpose(1, 2)
        return (
            [found, found[:, :, :1]]
            if self.kind == "stages"
            else torch.cat([tokens.mean(1, True), tokens], 1)
        )


def pictures(number=4, px=8):
    return torch.randint(0, 256, (number, 3, px, px), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


def embedder(kind="map", pool=None, neck=Linear):
    torch.manual_seed(0)
    backbone = Patches(kind)
    width = backbone.out_dim * (2 if kind == "stages" else 1)
    return Embedder(
        backbone, pool or GeM(), neck(in_dim=width) if neck is Identity else neck(5, in_dim=width)
    )


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
@pytest.mark.parametrize("learnable", [False, True])
def test_gem_equals_a_loop(p, learnable):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    pool = GeM(p, learnable).double()
    for b in range(2):
        for c in range(3):
            powers = [max(v, 1e-6) ** p for v in x[b, c].flatten().tolist()]
            assert pool(x)[b, c].item() == pytest.approx((sum(powers) / len(powers)) ** (1 / p))


def test_gem_of_nothing_positive_has_a_finite_gradient_and_p_learns():
    pool = GeM(learnable=True)
    x = torch.full((1, 2, 3, 3), -1.0, requires_grad=True)
    pool(x).sum().backward()
    assert x.grad.isfinite().all() and pool.p.grad.isfinite().all()
    assert not GeM().p.requires_grad


def test_pools_leave_out_the_prefix_and_cls_takes_it():
    tokens = torch.randn(2, 5, 3)
    torch.testing.assert_close(Average()(tokens, 1), tokens[:, 1:].mean(1))
    torch.testing.assert_close(GeM()(tokens, 2), tokens[:, 2:].clamp_min(1e-6).pow(3).mean(1).pow(1 / 3))
    torch.testing.assert_close(CLS()(tokens, 1), tokens[:, 0])
    for pool in (GeM(), Average(), CLS()):
        torch.testing.assert_close(pool(tokens[:, 0]), tokens[:, 0])


def test_cls_without_a_class_token_is_refused():
    with pytest.raises(UserError, match="pool: cls received, but the backbone has no class token"):
        CLS()(torch.randn(2, 3, 4, 4))


def test_pooling_a_half_precision_map_answers_in_float32():
    x = torch.rand(2, 3, 4, 4).half()
    assert GeM()(x).dtype == Average()(x).dtype == torch.float32


def test_bn_linear_standardises_without_affine_part():
    neck = BNLinear(2, in_dim=3)
    x = torch.randn(50, 3) * 7 + 2
    standard = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(neck(x), neck.linear(standard), rtol=1e-4, atol=1e-5)
    assert [name for name, _ in neck.named_parameters()] == ["linear.weight", "linear.bias"]


def test_fc_bn_normalises_the_embedding():
    raw = FCBN(4, in_dim=3)(torch.randn(50, 3) * 7 + 2)
    torch.testing.assert_close(raw.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(raw.std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_are_normalised_inside_and_uint8_equals_float(dtype):
    model = embedder().to(dtype).eval()
    images = pictures()
    mean, std = np.array(model.preprocess.mean), np.array(model.preprocess.std)
    normal = (images.numpy() / 255 - mean[:, None, None]) / std[:, None, None]
    expected = model.pool(model.backbone(torch.from_numpy(normal).to(dtype)))
    torch.testing.assert_close(model.features(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(images).z, model(images.to(dtype)).z)


def test_the_preprocessing_of_a_checkpoint_can_be_taken_over():
    model = embedder().eval()
    model.use_preprocess(Preprocess(size_px=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    expected = model.pool(model.backbone(pictures() / 255))
    torch.testing.assert_close(model.features(pictures()), expected, rtol=1e-4, atol=1e-5)
    assert model.preprocess.mean == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("kind", ["map", "tokens", "stages"])
def test_output_parts_agree_and_z_has_unit_length(kind):
    model = embedder(kind).eval()
    output = model(pictures())
    assert output.raw.shape == (4, model.embed_dim)
    assert (output.tokens is not None) == (kind == "tokens")
    torch.testing.assert_close(output.z.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(model.features(pictures()), output.feature)
    torch.testing.assert_close(model.from_features(output.feature).z, output.z)
    torch.testing.assert_close(model.embed(pictures()), output.z)


def test_an_identity_neck_returns_the_backbone_alone():
    model = embedder(neck=Identity).eval()
    output = model(pictures())
    assert model.embed_dim == 6
    torch.testing.assert_close(output.raw, output.feature)


def test_a_frozen_backbone_neither_learns_nor_moves_its_statistics():
    model = embedder()
    model.freeze_backbone()
    model.train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model(pictures()).z.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(parameter.grad is not None for parameter in model.neck.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_embed_can_be_traced_with_any_batch():
    model = embedder().eval()
    traced = torch.jit.trace_module(model, {"embed": pictures()})
    torch.testing.assert_close(traced.embed(pictures(2)), model.embed(pictures(2)))


def test_autocast_leaves_unit_vectors_in_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert embedder().eval()(pictures()).z.dtype == torch.float32
