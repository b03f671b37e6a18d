"""What the golden pairs tell: lengths, margins that a network trims, pixels as networks read them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx_nets import evaluated, small
from PIL import Image
from torch import nn

from guie import exporting, resize
from guie.bundle.writing import Order
from guie.bundle.writing import write as write_bundle
from guie.datasets.manifest import from_columns
from guie.errors import UserError
from guie.export import formats, fresh, runtime, verify, writing
from guie.export.formats import FORMATS, tolerance
from guie.export.golden import Golden, draw, make_golden, normalised
from guie.export.source import Request, Source
from guie.export.torchscript import program, torchscript_allowed
from guie.models.backbones import Timm
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import Average
from guie.views import Views


class Longer(nn.Module):
    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.times * nn.functional.normalize(images.float().mean((2, 3)), dim=1)


@pytest.mark.parametrize(("times", "seen"), [(1.0, False), (1.01, True), (0.99, True)])
def test_a_vector_that_is_not_of_unit_length_is_seen_whatever_its_direction(times, seen, tmp_path):
    images = draw((9, 12), 3, seed=0)
    with torch.no_grad():
        vectors = Longer(1.0)(torch.from_numpy(images)).numpy()
    Golden([images], [vectors], (1, 3)).save(tmp_path / "golden.npz")
    with torchscript_allowed():
        torch.jit.script(Longer(times)).save(str(tmp_path / "model.pt"))
    report = fresh.compare(str(tmp_path / "model.pt"), str(tmp_path / "golden.npz"), "cpu")
    assert bool(report["faults"]) == seen
    assert not seen or f"vectors of length {times}" in report["faults"][0]


def test_a_cosine_is_that_of_directions(tmp_path):
    images = draw((9, 12), 3, seed=0)
    with torch.no_grad():
        vectors = Longer(1.0)(torch.from_numpy(images)).numpy()
    Golden([images], [vectors], (1, 3)).save(tmp_path / "golden.npz")
    with torchscript_allowed():
        torch.jit.script(Longer(0.9995)).save(str(tmp_path / "model.pt"))
    report = fresh.compare(str(tmp_path / "model.pt"), str(tmp_path / "golden.npz"), "cpu")
    assert report["cosine"] == pytest.approx(1, abs=1e-6)


def test_every_third_picture_has_a_margin_and_small_ones_have_none():
    pictures = draw((40, 60), 6, seed=0)
    for number, picture in enumerate(pictures):
        assert (picture[:, :10] == 255).all() == (number % 3 == 2)
        assert (picture[:, 10:30, 15:45] < 255).all()
    assert (draw((1, 1), 3, seed=0) < 255).all()


def test_a_file_that_does_not_trim_is_not_taken_for_one_that_does(tmp_path):
    torch.manual_seed(0)
    backbone = Timm("resnet10t", pretrained=False, image_px=32, trim=True)
    embedder = Embedder(backbone, Average(), Linear(6, in_dim=backbone.out_dim)).eval()
    source = Source({"": embedder})
    golden = make_golden(lambda pictures: evaluated(source, pictures), sizes=((40, 30),))
    golden.save(tmp_path / "golden.npz")
    found = {}
    for name in ("trims", "does not"):
        with torchscript_allowed():
            torch.jit.save(program(source, Request()), str(tmp_path / f"{name}.pt"))
        report = fresh.compare(str(tmp_path / f"{name}.pt"), str(tmp_path / "golden.npz"), "cpu")
        found[name] = report["difference"]
        backbone.trim = nn.Identity()
    largest = FORMATS["torchscript"].largest
    assert found["trims"] <= largest
    assert found["does not"] > 10 * largest


@pytest.mark.parametrize("crop", ["stretch", "center", "pad"])
def test_normalised_golden_pictures_are_what_the_evaluation_shows_the_network(crop):
    embedder = small()
    embedder.use_preprocess(replace(embedder.preprocess, crop=crop, crop_fraction=0.875))
    source = Source({"": embedder})
    golden = writing.golden_of(source, Request(pixels="normalised"), lambda p: evaluated(source, p))
    with torch.no_grad(), torchscript_allowed():
        found = program(source, Request(pixels="normalised"))(torch.from_numpy(golden.images[0]))
    np.testing.assert_allclose(found, golden.vectors[0], atol=FORMATS["torchscript"].largest, rtol=0)


def test_normalised_numbers_are_levels_less_the_mean_in_deviations():
    spec = replace(small().preprocess, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    picture = draw((30, 40), 1, seed=0)[0].transpose(1, 2, 0)
    levels = resize.apply(picture, spec)
    for channel, found in enumerate(normalised(picture, spec)):
        expected = (levels[channel] / 255.0 - spec.mean[channel]) / spec.std[channel]
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("precision", "told"), [("fp32", False), ("int8", True)])
def test_vectors_that_hardly_differ_tell_nothing_of_a_file_that_may_differ_more(precision, told):
    vectors = np.array([[1.0, 0.0], [np.cos(0.1), np.sin(0.1)]], np.float32)
    assert writing.alike(vectors, tolerance("onnx", precision)) == told
    assert not writing.alike(np.eye(2, dtype=np.float32), tolerance("onnx", precision))


def test_bad_pictures_are_passed_over_when_ranges_are_taken(monkeypatch, tmp_path):
    files = {f"{number}.png": draw((8, 9), 1, number)[0].transpose(1, 2, 0) for number in range(4)}
    for name, picture in files.items():
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "1.png").write_bytes(b"no picture")
    rows = from_columns("drawn", tmp_path, {"file": list(files), "label": list(files)})
    monkeypatch.setattr(exporting, "runs_of", lambda cfg: {"": "run"})
    meta = {"config": {"dataset": {}, "data_root": ""}}
    asked = {"seed": 0, "data_root": None}
    monkeypatch.setattr(exporting.checkpoint, "locate", lambda *place: place)
    monkeypatch.setattr(exporting.checkpoint, "read", lambda place: SimpleNamespace(meta=meta))
    monkeypatch.setattr(exporting.assembly, "manifests", lambda *node: {})
    monkeypatch.setattr(exporting.assembly, "training_rows", lambda found: rows)
    assert len(exporting.training_pictures(asked, count=2)) == 2
    assert len(exporting.training_pictures(asked, count=4)) == 3


def gate(source):
    views = Views()
    views.gating = object()
    return replace(source, views=views)


@pytest.mark.parametrize(
    ("format", "precision", "made", "told"),
    [
        ("onnx", "fp32", gate, "format: onnx with gated views"),
        ("openvino", "fp32", gate, "format: openvino with gated views"),
        ("onnx", "bf16", lambda source: source, "precision: bf16 with format=onnx"),
        ("pt2", "int8", lambda source: source, "precision: int8 with format=pt2"),
        ("openvino", "int8", lambda source: source, "precision: int8 without calibration pictures"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "bundle"])
def test_what_a_format_does_not_hold_is_refused_before_anything_is_embedded(
    kind, format, precision, made, told, tmp_path, monkeypatch
):
    def embedding(pictures):
        raise AssertionError("embedded before it was refused")

    monkeypatch.setattr(formats, "find_spec", lambda name: name)
    source, request = made(Source({"": small()})), Request(precision)
    with pytest.raises(UserError, match=told):
        if kind == "file":
            path = tmp_path / f"model{FORMATS[format].suffix}"
            writing.export(source, path, embedding, format=format, request=request)
        else:
            write_bundle(Order(source, embedding, [format], {}, request), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


class Double(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(images.double().mean((2, 3)), dim=1)


def test_a_file_that_gives_another_dtype_does_not_run(tmp_path):
    with torchscript_allowed():
        torch.jit.script(Double()).save(str(tmp_path / "model.pt"))
    with pytest.raises(TypeError, match=r"the file gave torch.float64; accepted: float32"):
        runtime.load(tmp_path / "model.pt")(draw((9, 12), 1, seed=0))


def test_what_came_into_the_process_by_another_door_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "damage", lambda path: None)
    monkeypatch.setattr(verify, "_run_fresh", lambda *given: {"smuggled": ["timm", "torchvision"]})
    with pytest.raises(UserError, match=r"loading model.pt imported timm, torchvision; it must do without"):
        verify.compare(tmp_path / "model.pt", tmp_path / "golden.npz", tolerance("torchscript", "fp32"))
