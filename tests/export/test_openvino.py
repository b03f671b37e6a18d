"""OpenVINO's two files give what was evaluated, without torch, and nobody is told of it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from onnx_nets import evaluated, gated, mapped, small
from torch import nn

from guie.errors import UserError
from guie.export import formats, runtime, writing
from guie.export import onnx as format_onnx
from guie.export import openvino as format_openvino
from guie.export.golden import draw
from guie.export.source import Request, Source
from guie.export.verify import describe, verify

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in formats.FORMATS["openvino"].packages),
    reason="needs the extra openvino",
)
BARE = Request(pixels="normalised")
TOLD = "a < b & \"c\" isn't 'd'"
SIZES = ((1, 1), (37, 500), (224, 224), (3000, 40))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One whole export of two embedders, verified in a process without torch."""
    both = {"a": small(0, centre=True), "b": small(1)}
    source, path = Source(both, {"a": 0.4, "b": 1.0}, layers=[mapped(12)]), tmp_path_factory.mktemp("ov")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GOLDEN_SIZES", SIZES)
        patch.setattr(writing, "GOLDEN_BATCHES", (1, 3))
        path /= "model.xml"
        found = writing.export(source, path, lambda pictures: evaluated(source, pictures), format="openvino")
    return source, path, found


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Return the ONNX file of a source that reads normalised pixels."""
    path = tmp_path_factory.mktemp("program") / "model.onnx"
    return format_onnx.program_file(Source({"": small()}), BARE, path)[0]


@pytest.fixture
def copied(exported, tmp_path):
    for file in exported[1].parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model.xml"


def converted(program, path):
    format_openvino.convert(program, path, half=False)
    format_openvino.seal(path, {"told": TOLD})
    return runtime.load(path)


def pixels(count):
    return np.random.default_rng(0).normal(size=(count, 3, 24, 24)).astype(np.float32)


def test_sizes_batches_and_both_dtypes_give_what_was_evaluated(exported):
    source, path, found = exported
    assert found.difference <= formats.FORMATS["openvino"].largest
    assert found.sizes == SIZES
    assert found.dtypes == ("float32", "uint8")
    assert sorted(os.listdir(path.parent)) == ["golden.npz", "model.bin", "model.xml"]
    images = draw((5, 700), 2, seed=1)
    np.testing.assert_allclose(runtime.load(path)(images), evaluated(source, images), atol=1e-3)


def test_openvino_reads_the_facts_that_are_read_without_it(exported):
    path = exported[1]
    model = format_openvino.imported().Core().read_model(path)
    assert json.loads(model.get_rt_info("guie").value) == describe(path)
    assert describe(path)["format"] == "openvino"
    command = f"import sys; from guie.export.verify import describe; describe({str(path)!r})"
    command += "; sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'openvino')))"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_facts_of_any_characters_come_back(program, tmp_path):
    converted(program, tmp_path / "m.xml")
    assert format_openvino.read_facts(tmp_path / "m.xml")["told"] == TOLD
    assert format_openvino.damage(tmp_path / "m.xml") is None


def test_a_flipped_bit_anywhere_in_the_program_is_found(exported, tmp_path):
    content, changed = exported[1].read_bytes(), tmp_path / "changed.xml"
    assert format_openvino.damage(exported[1]) is None
    for place in np.linspace(0, len(content) - 1, 40).astype(int):
        changed.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert format_openvino.damage(changed), place


def test_changed_or_missing_weights_are_found(copied):
    weights = copied.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.bin does not belong to model\.xml"):
        verify(copied)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.bin is missing beside model\.xml"):
        verify(copied)


def test_a_file_cut_short_says_nothing(copied):
    copied.write_bytes(copied.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"model\.xml is no readable file of guie-export"):
        describe(copied)


def test_nobody_is_told_when_a_file_is_written_or_loaded(program, tmp_path):
    """The package openvino-telemetry keeps its counts in ~/intel, and sends them."""
    home, path = tmp_path / "home", tmp_path / "m.xml"
    home.mkdir()
    told = f"""
        import sys
        from pathlib import Path
        from guie.export import openvino, runtime
        openvino.convert(Path({str(program)!r}), Path({str(path)!r}), half=False)
        runtime.load({str(path)!r})
        sys.exit("openvino_telemetry.main" in sys.modules)
    """
    lines = "\n".join(line.strip() for line in told.splitlines())
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(home)}
    assert subprocess.run([sys.executable, "-c", lines], env=environment, check=False).returncode == 0
    assert not list(home.iterdir())


def test_half_weights_take_half_the_bytes_and_come_near(program, tmp_path):
    x, whole = pixels(4), converted(program, tmp_path / "fp32.xml")(pixels(4))
    format_openvino.convert(program, tmp_path / "fp16.xml", half=True)
    found = runtime.load(tmp_path / "fp16.xml")(x)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - whole).max() < 1e-3
    sizes = {path.stem: path.stat().st_size for path in tmp_path.glob("*.bin")}
    assert sizes["fp16"] < 0.55 * sizes["fp32"]


class Determinant(nn.Module):
    """ONNX has it, OpenVINO has not."""

    def forward(self, x):
        return x + torch.linalg.det(x.reshape(x.shape[0], -1, 2, 2)).sum(1, keepdim=True)


def test_what_openvino_cannot_hold_is_refused_with_the_reason(tmp_path):
    embedder = small()
    embedder.neck.dropout = Determinant()
    with pytest.raises(UserError, match=r"openvino has no operator for ONNX's Det.*; accepted: onnx, torch"):
        format_openvino.write(Source({"": embedder}), BARE, tmp_path / "x.xml", {})
    with pytest.raises(UserError, match=r"openvino with gated views, .*; accepted: torchscript, pt2"):
        format_openvino.write(gated(), Request(), tmp_path / "x.xml", {})
    assert not list(tmp_path.iterdir())
