"""An ONNX file gives what was evaluated, without torch; it says what it is, and that it was changed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_nets import MOST_PX, evaluated, gated, looking, rich, small
from torch import nn

from guie.errors import UserError
from guie.export import formats, runtime, writing
from guie.export import onnx as format_onnx
from guie.export.golden import GOLDEN_SIZES, draw
from guie.export.protobuf import append_metadata, metadata
from guie.export.pt2 import program
from guie.export.source import Request, Source
from guie.export.verify import describe, verify

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
BARE = Request(pixels="normalised")
ODD, BATCHES = ((5, 700), (31, 33), (1000, 2)), (1, 3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One whole export, verified in a process without torch: its source, its file, what was found."""
    source, path = looking(), tmp_path_factory.mktemp("onnx") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GOLDEN_BATCHES", BATCHES)
        found = writing.export(source, path, lambda pictures: evaluated(source, pictures), format="onnx")
    return source, path, found


@pytest.fixture(scope="module")
def bare():
    """Return the program of a source that reads normalised pixels: the quickest there is."""
    return program(Source({"": small()}), BARE, "other")


def written(made, folder, inline_bytes):
    path = folder / "model.onnx"
    return format_onnx.save(format_onnx.translated(made), path, inline_bytes=inline_bytes)


def pixels(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, 24, 24)).astype(np.float32)


def test_five_sizes_two_batches_and_both_dtypes_give_what_was_evaluated(exported):
    found = exported[2]
    assert found.difference <= formats.FORMATS["onnx"].largest
    assert found.sizes == GOLDEN_SIZES
    assert found.batches == BATCHES
    assert found.dtypes == ("float32", "uint8")


@pytest.mark.parametrize("size", ODD)
def test_sizes_that_the_export_did_not_try_give_what_was_evaluated(exported, size):
    source, path, _ = exported
    images = draw(size, 8, seed=1)  # of a batch that the export did not try
    np.testing.assert_allclose(runtime.load(path)(images), evaluated(source, images), atol=1e-5)


@pytest.mark.slow
def test_an_ensemble_of_all_kinds_of_looks_gives_what_was_evaluated(tmp_path):
    source, path = rich(), tmp_path / "model.onnx"
    found = writing.export(source, path, lambda pictures: evaluated(source, pictures), format="onnx")
    assert found.difference < 1e-5


def test_numbers_and_medians_are_torchs_own_to_the_last_bit(tmp_path):
    x, path = torch.arange(600.0).view(3, 200) % 37, tmp_path / "m.onnx"
    made = torch.export.export(Shares(), (x,))
    format_onnx.save(format_onnx.translated(made), path, inline_bytes=1000)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"images": x.numpy()})[0], Shares()(x).numpy())


class Shares(nn.Module):
    """0.7 of 500 is 350, but 349.99999 where 0.7 is kept in float32; a median of 200 is the lower one."""

    def forward(self, x):
        shares = (torch.arange(600).double() * 0.7).long().view(3, 200).float()
        return shares + x.median(1, keepdim=True).values + x.median(0).values


def test_floats_mean_the_nearest_levels_and_what_evaluation_would_see_otherwise_is_refused(exported):
    model, images = runtime.load(exported[1]), draw((20, 30), 1, seed=2)
    floats = images + np.float32(0.4)
    floats[images == 0] = -7
    floats[images == 255] = 900
    np.testing.assert_array_equal(model(floats.astype(np.float64)), model(images))
    with pytest.raises(ValueError, match=r"images: \[3, 20, 30\]; accepted: \(B,3,H,W\)"):
        model(images[0])
    with pytest.raises(ValueError, match="accepted: no side above 4000 pixels"):
        model(np.zeros((1, 3, MOST_PX + 1, 2), np.uint8))


def test_the_program_names_its_axes_and_takes_bytes(exported):
    session = onnxruntime.InferenceSession(str(exported[1]), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == (
        "images",
        "tensor(uint8)",
        ["batch", 3, "height", "width"],
    )
    assert (given.name, given.type, given.shape) == ("vectors", "tensor(float)", ["batch", 5])


def test_onnx_and_its_runtime_read_the_facts_that_are_read_without_them(exported):
    path = exported[1]
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == told
    assert json.loads(told["guie.json"]) == describe(path)
    assert describe(path)["format"] == "onnx"
    onnx.checker.check_model(path)
    command = f"import sys; from guie.export.verify import describe; describe({str(path)!r})"
    command += "; sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'onnxruntime')))"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_a_file_holds_no_path_of_the_machine_that_wrote_it(exported):
    content = exported[1].read_bytes()
    for told in ("site-packages", "forward", str(Path(__file__).parents[2]), str(Path.home())):
        assert told.encode() not in content


def test_a_flipped_bit_anywhere_is_found(exported, tmp_path):
    content, changed = exported[1].read_bytes(), tmp_path / "changed.onnx"
    assert format_onnx.damage(exported[1]) is None
    for place in np.linspace(0, len(content) - 3, 40).astype(int):
        assert format_onnx.damage(flipped(content, place, changed)), place
    (tmp_path / "golden.npz").write_bytes((exported[1].parent / "golden.npz").read_bytes())
    with pytest.raises(UserError, match=r"changed\.onnx is damaged: bytes differ from those written"):
        verify(flipped(content, len(content) // 2, changed))


def flipped(content, place, path):
    path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    return path


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_file_cut_short_or_another_file_says_nothing(exported, share, tmp_path):
    content, cut = exported[1].read_bytes(), tmp_path / "cut.onnx"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"cut\.onnx is no readable file of guie-export"):
        describe(cut)
    assert format_onnx.damage(cut)


def test_metadata_is_read_as_onnx_wrote_it_and_onnx_reads_what_is_appended(tmp_path):
    path, long = tmp_path / "m.onnx", "ü" * 40_000
    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.helper.set_model_props(model, {"one": "1", "long": long})
    onnx.save(model, path)
    append_metadata(path, "last", long)
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert told == {"one": "1", "long": long, "last": long}
    assert {entry.key: entry.value for entry in metadata(path)} == told


def test_normalised_pixels_give_the_network_alone(bare, tmp_path):
    written(bare, tmp_path, 10_000_000)
    x = pixels(3)
    spec = small().preprocess
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    with torch.inference_mode():
        expected = small()(torch.from_numpy((x * std + mean) * 255)).z.numpy()
    np.testing.assert_allclose(runtime.load(tmp_path / "model.onnx")(x), expected, atol=1e-5)


def test_large_weights_lie_beside_and_give_the_same_vectors(bare, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    whole.mkdir()
    parted.mkdir()
    assert [file.name for file in written(bare, whole, 10_000_000)] == ["model.onnx"]
    files = written(bare, parted, 0)
    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"]
    x = pixels(2)
    found = [runtime.load(folder / "model.onnx")(x) for folder in (whole, parted)]
    np.testing.assert_array_equal(*found)


def test_weights_that_lie_beside_are_hashed_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(format_onnx, "INLINE_BYTES", 0)
    source, path = Source({"": small()}), tmp_path / "m.onnx"
    writing.export(source, path, lambda images: evaluated(source, images), format="onnx", request=BARE)
    weights = tmp_path / "m.onnx.data"
    content = bytearray(weights.read_bytes())
    assert verify(path).difference < 1e-5
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"m\.onnx\.data does not belong to m\.onnx"):
        verify(path)
    weights.unlink()
    with pytest.raises(UserError, match=r"m\.onnx\.data is missing beside m\.onnx"):
        verify(path)


def test_a_fixed_batch_stands_in_the_file_and_another_is_refused(tmp_path):
    path = tmp_path / "fixed.onnx"
    format_onnx.write(Source({"": small()}), Request(pixels="normalised", batch=2), path, {})
    assert runtime.load(path)(pixels(2)).shape == (2, 6)
    with pytest.raises(Exception, match=r"Got: 3 Expected: 2"):
        runtime.load(path)(pixels(3))


@torch.library.custom_op("guie_tests::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


twist.register_fake(torch.empty_like)


class Twist(nn.Module):
    def forward(self, x):
        return twist(x)


class Singular(nn.Module):
    """Its operator shows only when torch takes it apart."""

    def forward(self, x):
        return torch.linalg.svdvals(x.reshape(x.shape[0], 2, -1))


@pytest.mark.parametrize(
    ("part", "operator"), [(Twist(), "guie_tests.twist.default"), (Singular(), "aten._linalg_svd.default")]
)
def test_an_operator_that_onnx_has_not_is_named_and_so_is_its_module(part, operator, tmp_path):
    embedder = small()
    embedder.neck.dropout = part
    user = rf"neck\.dropout \({type(part).__name__}\)"
    if isinstance(part, Singular):
        embedder.neck.linear = nn.Linear(2, 6)
    with pytest.raises(
        UserError, match=rf"no operator for {operator}, which .*{user} needs; accepted: torchsc"
    ):
        format_onnx.write(Source({"": embedder}), BARE, tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())


def test_what_onnx_cannot_hold_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"onnx with gated views, .*; accepted: torchscript, pt2"):
        format_onnx.write(gated(), Request(), tmp_path / "x.onnx", {})
    with pytest.raises(UserError, match="precision: bf16 with format=onnx; accepted: fp32, fp16, int8"):
        format_onnx.write(Source({"": small()}), Request("bf16"), tmp_path / "x.onnx", {})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux tells it")
def test_a_vit_h14_is_written_within_the_memory_that_it_has_itself(tmp_path):
    """2.5 GB of weights: above what protobuf holds. Its own process, for memory is counted by process."""
    command = [sys.executable, "-c", HUGE, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["files"] == ["model.onnx", "model.onnx.data"]
    assert found["difference"] < 1e-4
    assert found["grown_bytes"] < found["weights_bytes"]  # no second copy of them


HUGE = """
import json, sys
from pathlib import Path
import numpy as np
from guie import assembly
from guie.config.compose import composed
from guie.embed.pictures import vectors_of
from guie.export import onnx, runtime
from guie.export.source import Request, Source
def told(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
words = ["backbone=clip_vit_h14", "backbone.pretrained=null", "neck=linear"]
embedder = assembly.embedder(composed("train", words)).eval()
picture = np.random.default_rng(0).integers(0, 256, (1, 3, 500, 400), dtype=np.uint8)
expected, source = vectors_of(embedder, picture), Source({"": embedder})
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the network
before = told("VmRSS")
files = onnx.write(source, Request(), Path(sys.argv[1]), {})
grown = told("VmHWM") - before
difference = float(np.abs(runtime.load(files[0])(picture) - expected).max())
names = [file.name for file in files]
found = {"files": names, "difference": difference, "grown_bytes": grown, "weights_bytes": source.size_bytes}
print(json.dumps(found))
"""
