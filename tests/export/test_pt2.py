"""A .pt2 file gives what was evaluated: any size and batch, views, ensembles, maps; torch alone loads it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_nets import evaluated, looking, small
from system_a import classifier_of, preset, small_system

from guie.embed.pictures import vectors_of
from guie.errors import UserError
from guie.export import archive, pt2, runtime, writing
from guie.export.formats import FORMATS
from guie.export.golden import draw
from guie.export.source import Request, Source
from guie.export.writing import export
from guie.views import Gate, Padded, Views, Whole

TOLERANCE = FORMATS["pt2"].largest
SIZES = [(1, 1), (37, 500), (224, 224), (24, 24), (30, 41), (3000, 40)]
FACTS = {"format": "pt2", "pixels": "levels"}


def difference(file: Path, source: Source, size: tuple[int, int], batch: int) -> float:
    pictures = draw(size, batch, seed=5)
    expected = evaluated(source, list(pictures))
    found = runtime.load(file)(pictures)
    assert found.dtype == np.float32
    return float(np.abs(found - expected).max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One real export of a look, side inputs and a map, verified in a real fresh process."""
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    source = looking()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GOLDEN_SIZES", ((1, 1), (30, 41)))
        verified = export(source, path, lambda pictures: evaluated(source, pictures), format="pt2")
    assert verified.difference <= TOLERANCE
    assert verified.dtypes == ("float32", "uint8")
    return path, source


@pytest.fixture(scope="module")
def loaded(exported):
    return runtime.load(exported[0])


@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_batch_gives_the_evaluations_vectors(exported, loaded, size):
    pictures = draw(size, 8, seed=5)
    expected = evaluated(exported[1], list(pictures))
    for batch, dtype in ((1, np.float32), (3, np.uint8), (8, np.uint8)):
        found = loaded(pictures[:batch].astype(dtype))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:batch], atol=TOLERANCE, rtol=0)


def test_float_pictures_mean_the_nearest_whole_levels(loaded):
    levels = np.array([[-3.0, 0.5, 1.5], [254.6, 400.0, np.nan]], np.float32)
    whole = np.array([[0, 0, 2], [255, 255, 0]], np.uint8)
    both = [loaded(np.broadcast_to(pictures, (1, 3, 2, 3))) for pictures in (levels, whole)]
    np.testing.assert_array_equal(*both)


def test_torch_loads_it_without_the_loader_and_refuses_what_it_would_misread(exported, loaded):
    model = torch.export.load(exported[0]).module()
    pictures = torch.from_numpy(draw((30, 41), 2, seed=5))
    np.testing.assert_array_equal(model(pictures).detach().numpy(), loaded(pictures.numpy()))
    with pytest.raises(RuntimeError, match="Expected: Byte"):
        model(pictures.float())


def test_the_file_says_what_it_is_without_torch(exported):
    path, _ = exported
    command = f"import sys; from guie.export.verify import describe; facts = describe({str(path)!r})"
    command += "; sys.exit(facts['format'] != 'pt2' or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_nothing_of_the_machine_that_wrote_it_is_in_the_file(exported):
    content = exported[0].read_bytes()
    for place in (str(Path(pt2.__file__).parent), "site-packages", str(exported[0].parent)):
        assert place.encode() not in content


def test_a_flipped_byte_is_found(exported, tmp_path):
    content = bytearray(exported[0].read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.pt2").write_bytes(content)
    assert archive.damage(tmp_path / "model.pt2")


@pytest.fixture(scope="module")
def gated():
    embedder = small_system()
    embedder.use_preprocess(replace(embedder.preprocess, crop="stretch"))  # the cheapest graph
    looks = {"whole": Whole(), "padded": Padded(0.9)}
    gate = Gate(["padded"], square=["whole"], classifier=classifier_of(embedder))
    return Source({"": embedder}, views=Views(looks, gate=gate))


@pytest.fixture(scope="module")
def two_programs(gated, tmp_path_factory):
    path = tmp_path_factory.mktemp("gated") / "model.pt2"
    pt2.write(gated, Request(), path, FACTS)
    return path, runtime.load(path)


def expected_of(source: Source, pictures: np.ndarray) -> np.ndarray:
    return vectors_of(source.embedders[""], list(pictures), source.views)


def check_shapes(source, run):
    for size in [(40, 40), (1, 1), (30, 50), (50, 31), (2, 1), (300, 4)]:
        pictures = draw(size, 6, seed=3)
        expected = expected_of(source, pictures)
        np.testing.assert_allclose(run(pictures), expected, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(run(pictures[:1]), expected[:1], atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_gated_views_are_two_programs_behind_one_loader(gated, two_programs):
    path, run = two_programs
    with zipfile.ZipFile(path) as content:
        names = {Path(name).name for name in content.namelist() if "/models/" in name}
    assert names == {"square.json", "other.json"}
    check_shapes(gated, run)


@pytest.mark.slow
def test_system_as_gated_views_are_those_of_the_evaluation(tmp_path):
    embedder = small_system()
    source = Source({"": embedder}, views=preset("classifier_tta", classifier_of(embedder)))
    pt2.write(source, Request(), tmp_path / "model.pt2", FACTS)
    check_shapes(source, runtime.load(tmp_path / "model.pt2"))


@pytest.mark.slow
def test_two_programs_share_their_weights(gated, two_programs):
    with zipfile.ZipFile(two_programs[0]) as content:
        stored = [one for one in content.infolist() if "/weights/weight_" in one.filename]
    held = [*gated.embedders[""].state_dict().values(), *gated.views.gating.choice.buffers()]
    once = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert sum(one.file_size for one in stored) < once + 1500  # and the resizes' own few numbers
    assert len({one.CRC for one in stored}) == len(stored)


@pytest.mark.slow
def test_a_padded_picture_larger_than_padding_takes_whole_is_refused(two_programs):
    with pytest.raises(AssertionError, match="8192"):
        two_programs[1](np.zeros((1, 3, 8193, 2), np.uint8))


def test_of_one_size_gated_views_need_one_program(gated):
    for size in ((40, 40), (40, 30)):
        found = pt2.programs(gated, Request(size_px=size))
        assert list(found) == ["model"]
        pictures = draw(size, 3, seed=3)
        with torch.inference_mode():
            vectors = found["model"].module()(torch.from_numpy(pictures)).numpy()
        np.testing.assert_allclose(vectors, expected_of(gated, pictures), atol=TOLERANCE, rtol=0)


def test_one_batch_and_size_may_be_asked_for_and_no_other_is_taken(tmp_path):
    source = Source({"a": small(0), "b": small(1)}, {"a": 0.3, "b": 1.0})
    path = tmp_path / "model.pt2"
    pt2.write(source, Request(batch=2, size_px=(24, 24)), path, FACTS)
    assert difference(path, source, (24, 24), 2) <= TOLERANCE
    for size, batch in (((24, 24), 3), ((24, 25), 2)):
        with pytest.raises(AssertionError, match="Guard failed"):
            difference(path, source, size, batch)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_short_weights_are_in_the_file_and_near_the_evaluation(precision, tmp_path):
    source = Source({"": small()})
    sizes = {}
    for chosen in ("fp32", precision):
        path = tmp_path / f"{chosen}.pt2"
        pt2.write(source, Request(precision=chosen, size_px=(24, 24)), path, FACTS)
        with zipfile.ZipFile(path) as content:
            sizes[chosen] = sum(one.file_size for one in content.infolist() if "/weight_" in one.filename)
    pictures = draw((24, 24), 4, seed=5)
    cosines = (runtime.load(path)(pictures) * evaluated(source, list(pictures))).sum(1)
    assert cosines.min() > 0.999
    assert sizes[precision] < sizes["fp32"]


def test_pictures_may_come_normalised(tmp_path):
    source, path = Source({"": small()}), tmp_path / "model.pt2"
    pt2.write(source, Request(pixels="normalised"), path, {"format": "pt2", "pixels": "normalised"})
    pictures = draw((24, 24), 3, seed=5)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (source.preprocess.mean, source.preprocess.std))
    found = runtime.load(path)(((pictures / 255 - mean) / std).astype(np.float32))
    np.testing.assert_allclose(found, evaluated(source, list(pictures)), atol=TOLERANCE, rtol=0)


def test_int8_is_refused_with_what_computes_in_it():
    with pytest.raises(UserError, match=r"precision: int8 .*; accepted: .* format=onnx"):
        pt2.programs(Source({"": small()}), Request(precision="int8"))


class Undecided(torch.nn.Module):
    def forward(self, maps):
        return maps if maps.sum() > 0 else -maps


def test_a_network_that_branches_on_values_is_refused_with_the_module_that_does():
    embedder = small()
    embedder.neck = torch.nn.Sequential(embedder.neck, Undecided())
    with pytest.raises(UserError, match=r"cannot take \S+\.neck\.1 \(Undecided\) \(.+\); accepted: torch"):
        pt2.programs(Source({"": embedder}), Request(size_px=(24, 24)))


@pytest.mark.slow
def test_the_largest_tower_is_written_and_read_within_memory(tmp_path):
    from guie.models.backbones import OpenClip
    from guie.models.embedder import Embedder
    from guie.models.necks import BNLinear
    from guie.models.pooling import Average

    backbone = OpenClip("ViT-H-14", pretrained=None, image_px=224)
    source = Source({"": Embedder(backbone, Average(), BNLinear(64, in_dim=backbone.out_dim)).eval()})
    pt2.write(source, Request(), tmp_path / "model.pt2", FACTS)
    assert difference(tmp_path / "model.pt2", source, (60, 80), 1) <= TOLERANCE


@pytest.mark.slow
def test_looks_of_all_kinds_are_summed_as_in_evaluation(tmp_path):
    views = Views({"whole": Whole(), "padded": Padded(0.8)}, flip=True, summed="raw")
    source, path = Source({"": small()}, views=views), tmp_path / "model.pt2"
    pt2.write(source, Request(batch=2), path, FACTS)
    assert difference(path, source, (50, 31), 2) <= TOLERANCE
