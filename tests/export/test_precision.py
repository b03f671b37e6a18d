"""Files in less than float32: what is short, what is not, how near they come, what is refused."""

import numpy as np
import pytest
import torch
from onnx_nets import evaluated, small
from torch import nn

from guie.errors import UserError
from guie.export import formats, quantise, runtime
from guie.export.composed import Network
from guie.export.golden import draw
from guie.export.precision import SHORT, Short, cast
from guie.export.source import Request, Source
from guie.models.backbones import Timm
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import CLS
from guie.types import Preprocess

BARE = {"pixels": "normalised"}


def transformer():
    torch.manual_seed(0)
    options = {"depth": 2}
    backbone = Timm("vit_tiny_patch16_224", pretrained=False, image_px=32, options=options)
    return Embedder(backbone, CLS(), Linear(6, in_dim=backbone.out_dim)).eval()


def pictures(count=5):
    return [draw((40 + number, 50), 1, number)[0].transpose(1, 2, 0) for number in range(count)]


def least_cosine(found, expected):
    return float((found * expected).sum(1).min())


def normalised(images, spec):
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    return ((images / 255 - mean) / std).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A source that reads normalised pixels, and its float32 ONNX file."""
    pytest.importorskip("onnxruntime")
    from guie.export import onnx

    source, path = Source({"": transformer()}), tmp_path_factory.mktemp("whole") / "model.onnx"
    onnx.program_file(source, Request(**BARE), path)
    return source, path


@pytest.fixture(scope="module")
def short(whole, tmp_path_factory):
    """The file in int8, and what it takes."""
    source, program = whole
    path = tmp_path_factory.mktemp("short") / "model.onnx"
    quantise.quantise(program, path, source, Request("int8", calibration=pictures(), **BARE))
    shown = normalised(draw((32, 32), 3, 9), source.preprocess)
    return path, shown


@pytest.mark.parametrize("precision", SHORT)
@pytest.mark.parametrize("build", [small, transformer])
def test_a_backbones_weights_are_short_and_all_else_is_not(build, precision):
    embedder = build()
    twin = cast(Source({"": embedder}), precision).embedders[""]
    assert {weight.dtype for weight in twin.backbone.parameters()} == {SHORT[precision]}
    assert {weight.dtype for weight in twin.neck.parameters()} == {torch.float32}
    assert twin.get_buffer("pixel_scale").dtype == torch.float32
    assert {weight.dtype for weight in embedder.parameters()} == {torch.float32}


def test_what_is_pooled_are_the_backbones_numbers_by_its_rounded_weights():
    embedder, twin = transformer(), cast(Source({"": transformer()}), "bf16").embedders[""]
    images = torch.from_numpy(draw((32, 32), 2, 0))
    scale, shift = embedder.get_buffer("pixel_scale"), embedder.get_buffer("pixel_shift")
    with torch.no_grad():
        shown = torch.addcmul(shift, images.float(), scale).bfloat16()
        maps = embedder.backbone.bfloat16()(shown)
        expected = nn.functional.normalize(embedder.neck(maps[:, 0].float()), dim=1)
        np.testing.assert_allclose(twin(images).z, expected, atol=1e-6)


def test_weights_that_two_layers_share_are_still_shared():
    backbone = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    backbone[1].weight = backbone[0].weight
    backbone.prefix_tokens = 0
    twin = Short(backbone, torch.bfloat16).backbone
    assert twin[0].weight is twin[1].weight and backbone[0].weight.dtype == torch.float32


def test_maps_of_several_stages_come_back_in_float32():
    backbone = Timm("resnet10t", pretrained=False, image_px=32, stages=[1, 2])
    found = Short(backbone.eval(), torch.bfloat16)(torch.zeros(1, 3, 32, 32))
    assert [stage.dtype for stage in found] == [torch.float32] * 2


def test_where_a_margin_ends_is_seen_in_float32():
    backbone = Timm("resnet10t", pretrained=False, image_px=32, trim=True).eval()
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 10:20, 10:20] = 1.0
    twin, seen = Short(backbone, torch.bfloat16), []
    twin.trim.register_forward_hook(lambda _, given, found: seen.extend([given[0].dtype, found]))
    twin.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    twin(images)
    assert seen[0] == torch.float32
    torch.testing.assert_close(seen[2], backbone.trim(images).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("precision", SHORT)
def test_a_torchscript_file_is_near_the_evaluation_and_half_as_large(tmp_path, precision):
    source, images, size = Source({"": transformer()}), draw((37, 50), 3, 0), {}
    for name in ("fp32", precision):
        path = tmp_path / f"{name}.pt"
        formats.writer("torchscript").write(source, Request(name), path, {"format": "torchscript"})
        size[name] = path.stat().st_size
    vectors = runtime.load(path)(images)
    assert vectors.dtype == np.float32
    assert least_cosine(vectors, evaluated(source, images)) >= formats.COSINES[precision]
    assert size[precision] < 0.6 * size["fp32"]


def test_a_backbone_that_needs_float32_is_refused_in_one_line():
    class Stubborn(nn.Module):
        prefix_tokens, kind, out_dim, preprocess = 0, "vector", 4, Preprocess(size_px=(2, 2))

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, pictures):
            return self.layer(pictures.float().flatten(1))

    embedder = Embedder(Stubborn(), CLS(), Linear(2, in_dim=4)).eval()
    with pytest.raises(UserError, match=r"^precision: bf16 with a backbone that needs float32 .*: fp32$"):
        cast(Source({"": embedder}), "bf16")


def test_torchs_formats_refuse_int8_with_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"precision: int8 with format=torchscript; .*=onnx or openvino"):
        formats.writer("torchscript").write(
            Source({"": small()}), Request("int8"), tmp_path / "m.pt", {"format": "torchscript"}
        )


def test_int8_are_products_with_the_backbones_weights_alone(whole, short):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(short[0]).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    int8 = [name for name, tensor in weights.items() if tensor.data_type == onnx.TensorProto.INT8]
    matrices = [name for name in int8 if len(weights[name].dims) > 1]
    assert len(matrices) == 1 + 4 * 2  # pictures to tokens; four products in each of two blocks
    assert [name for name in weights if "neck" in name and weights[name].data_type == 1]
    _, nodes = quantise.products(whole[1])
    assert len(nodes) == len(matrices)


def test_weights_in_int8_are_those_of_the_network_within_half_a_step(whole, short):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(short[0]).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    name = next(name for name in held if name.endswith("patch_embed.proj.weight_quantized"))
    scale = held[name.replace("_quantized", "_scale")]
    expected = whole[0].embedders[""].backbone.model.patch_embed.proj.weight.detach().numpy()
    off = np.abs(held[name] * scale.reshape(-1, 1, 1, 1) - expected)
    assert scale.shape == (len(expected),)
    assert (off <= scale.reshape(-1, 1, 1, 1) * 0.501).all()


def test_int8_is_near_the_network_and_a_third_as_large(whole, short):
    source, program = whole
    path, shown = short
    found, expected = runtime.load(path)(shown), runtime.load(program)(shown)
    assert formats.COSINES["int8"] <= least_cosine(found, expected) < 1 - 1e-7
    assert path.stat().st_size < 0.35 * program.stat().st_size
    with torch.no_grad():
        raw, _ = Network(source.embedders[""])(torch.from_numpy(draw((32, 32), 3, 9)))
    np.testing.assert_allclose(expected, nn.functional.normalize(raw, dim=1), atol=1e-4)


def test_calibration_sees_what_the_program_takes():
    source = Source({"": small()})
    free = list(quantise.shown(source, Request("int8", calibration=pictures(2))))
    assert [batch.shape for batch in free] == [(1, 3, 40, 50), (1, 3, 41, 50)]
    np.testing.assert_array_equal(free[0][0], pictures(2)[0].transpose(2, 0, 1))
    fixed = Request("int8", batch=2, size_px=(30, 20), calibration=pictures(3))
    batches = list(quantise.shown(source, fixed))
    assert [batch.shape for batch in batches] == [(2, 3, 30, 20)] * 2
    np.testing.assert_array_equal(batches[1][0], batches[1][1])
    bare = next(quantise.shown(source, Request("int8", calibration=pictures(1), **BARE)))
    assert bare.shape == (1, 3, 24, 24) and bare.dtype == np.float32


def test_int8_without_pictures_is_refused(whole, tmp_path):
    with pytest.raises(UserError, match="precision: int8 without calibration pictures"):
        quantise.quantise(whole[1], tmp_path / "m.onnx", whole[0], Request("int8", **BARE))
