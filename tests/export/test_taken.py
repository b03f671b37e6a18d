"""What a file takes: of one batch and size no other, normalised pixels no levels; nothing of this machine."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_nets import small

from guie.export import runtime, torchscript
from guie.export.prepare import Levels, Normalised
from guie.export.source import Request, Source


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("taken") / "model.pt"
    torchscript.write(Source({"": small()}), Request(batch=2, size_px=(30, 20)), path, {})
    return path


@pytest.fixture(autouse=True)
def deprecated_torchscript():
    with torchscript.torchscript_allowed():
        yield


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


def test_a_torchscript_file_for_one_batch_and_size_takes_no_other(file):
    model = runtime.load(file)
    assert model(zeros(2, 3, 30, 20)).shape == (2, 6)
    for shape in [(3, 3, 30, 20), (2, 3, 20, 30), (2, 3, 30, 21)]:
        with pytest.raises(Exception, match=r"accepted: \(2,3,30,20\), RGB"):
            model(zeros(*shape))


def test_levels_of_any_batch_and_size_are_of_three_colours():
    script = torch.jit.script(Levels())
    for shape in [(1, 3, 1, 1), (5, 3, 7, 2)]:
        assert script(torch.zeros(shape)).shape == shape
    for shape in [(3, 7, 2), (1, 4, 7, 2), (1, 7, 2, 3)]:
        with pytest.raises(Exception, match=r"accepted: \(B,3,H,W\), RGB"):
            script(torch.zeros(shape))


def test_normalised_pixels_are_of_the_networks_size_and_no_levels():
    script = torch.jit.script(Normalised(None, (24, 24)))
    assert script(torch.zeros(2, 3, 24, 24, dtype=torch.float64)).dtype == torch.float32
    for images in (torch.zeros(2, 3, 24, 25), torch.zeros(2, 3, 24, 24, dtype=torch.uint8)):
        with pytest.raises(Exception, match=r"accepted: \(B,3,24,24\), normalised, float32"):
            script(images)


def test_the_runtime_refuses_levels_for_a_file_that_takes_normalised_pixels():
    with pytest.raises(ValueError, match="images: uint8; accepted: float32, normalised"):
        runtime.as_stated(zeros(1, 3, 2, 2), uint8=False)


def test_nothing_of_the_machine_that_wrote_it_is_in_a_torchscript_file(file):
    with zipfile.ZipFile(file) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist()) + file.read_bytes()
    for told in ("site-packages", str(Path(__file__).parents[2]), str(Path.home()), str(file.parent)):
        assert told.encode() not in content
    assert file.with_name("model.pt.smaller").exists() is False
