"""The exported file gives what was evaluated, for any size and batch; one that does not is never kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guie import resize
from guie.embed.pictures import vectors_of
from guie.errors import UserError
from guie.export import destination, fresh, torchscript, writing
from guie.export.destination import check_destination
from guie.export.formats import FORMATS, check_formats
from guie.export.golden import GOLDEN_SIZES, Golden, draw, make_golden
from guie.export.prepare import Levels, Prepare
from guie.export.source import Request, Source, evaluating
from guie.export.torchscript import program, torchscript_allowed
from guie.export.verify import FRESH, Verified, describe, verify
from guie.export.writing import export
from guie.types import Output, Preprocess

TOLERANCE = FORMATS["torchscript"].largest

SMALL_SIZES = ((1, 1), (9, 40), (33, 20))
SPEC = Preprocess(size_px=(32, 32))
SPECS = {
    "stretch": SPEC,
    "stretch to a rectangle": replace(SPEC, size_px=(24, 40), interpolation="bilinear"),
    "center": replace(SPEC, crop="center", crop_fraction=0.875),
    "center whole": replace(SPEC, crop="center"),
    "pad": replace(SPEC, crop="pad", background=(10, 200, 30)),
    "pad to a rectangle": replace(SPEC, crop="pad", size_px=(24, 40)),
}


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, stride=2)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(torch.relu(self.layer(images))).mean((2, 3))


class Uncompilable(Convolution):
    """TorchScript has no keyword dictionaries."""

    def forward(self, images: Tensor, **options: int) -> Tensor:
        return super().forward(images)


class Tiny(nn.Module):
    """The least that an embedder is: what export relies on and nothing else."""

    def __init__(self, backbone: nn.Module, preprocess: Preprocess = SPEC, seed: int = 0):
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.neck = nn.Linear(8, 4)
        self.embed_dim = 4
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1) * 255)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))

    def forward(self, images: Tensor) -> Output:
        feature = self.backbone((images.float() - self.mean) / self.std)
        raw = self.neck(feature)
        return Output(feature, None, raw, nn.functional.normalize(raw))


@pytest.fixture(autouse=True)
def deprecated_torchscript():
    with torchscript_allowed():
        yield


@pytest.fixture
def embedder() -> Tiny:
    return Tiny(Convolution()).eval()


def written(embedder: nn.Module, path: Path, **options: bool) -> Verified:
    source = Source({"": embedder}, facts={"space_id": "abc"})
    return export(source, path, lambda pictures: vectors_of(embedder, pictures), **options)


def golden_of(embedder: nn.Module, sizes: tuple[tuple[int, int], ...] = SMALL_SIZES) -> Golden:
    return make_golden(lambda pictures: vectors_of(embedder, pictures), sizes=sizes)


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(writing, "GOLDEN_SIZES", SMALL_SIZES)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """One real export, with a real fresh process, that tests copy before they change it."""
    path = tmp_path_factory.mktemp("export") / "model.pt"
    verified = written(Tiny(Convolution()), path)
    assert verified.difference <= TOLERANCE
    assert verified.cosine > 0.99999
    assert verified.sizes == GOLDEN_SIZES
    assert verified.batches == (1, 3, 8)
    assert verified.dtypes == ("float32", "uint8")
    return path


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    shutil.copy(exported.parent / "golden.npz", tmp_path)
    return Path(shutil.copy(exported, tmp_path))


def save(embedder: nn.Module, path: Path) -> Path:
    torch.jit.save(program(Source({"": embedder}), Request()), str(path))
    return path


def difference(model: Path, golden: Path) -> float:
    report = fresh.compare(str(model), str(golden), "cpu")
    assert not report["faults"]
    return report["difference"]


def test_an_export_leaves_the_model_and_its_golden_file_and_nothing_else(exported):
    assert sorted(os.listdir(exported.parent)) == ["golden.npz", "model.pt"]


def test_a_file_says_what_it_is_without_torch(exported):
    facts = describe(exported)
    assert facts["format"] == "torchscript"
    assert facts["embed_dim"] == 4
    assert facts["space_id"] == "abc"
    assert facts["preprocess"]["size_px"] == [32, 32]
    command = f"import sys; from guie.export.verify import describe; describe({str(exported)!r})"
    command += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


@pytest.mark.parametrize(("batch", "dtype"), [(1, torch.float16), (3, torch.float32), (8, torch.uint8)])
def test_every_size_batch_and_dtype_gives_unit_vectors_of_the_evaluation_path(exported, batch, dtype):
    model = torch.jit.load(str(exported))
    golden = np.load(exported.parent / "golden.npz")
    for index in range(len(GOLDEN_SIZES)):
        found = model(torch.from_numpy(golden[f"images_{index}"][:batch]).to(dtype))
        assert found.shape == (batch, 4)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(
            found.detach().numpy(), golden[f"vectors_{index}"][:batch], atol=TOLERANCE, rtol=0
        )
        np.testing.assert_allclose(found.detach().norm(dim=1).numpy(), 1, atol=1e-5)


@pytest.mark.parametrize("size", [*GOLDEN_SIZES, (31, 33), (5, 700), (701, 13), (1000, 2)])
@pytest.mark.parametrize("name", SPECS)
def test_the_file_resizes_exactly_as_the_evaluation_does(name, size):
    pictures = draw(size, 2, seed=1)
    expected = [resize.apply(picture.transpose(1, 2, 0), SPECS[name]) for picture in pictures]
    found = torch.jit.script(Prepare(SPECS[name]))(torch.from_numpy(pictures))
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))


def test_float_pictures_are_clamped_and_rounded_to_whole_levels():
    levels = torch.tensor([-3.0, 0.5, 1.5, 254.6, 400.0, float("nan")])
    found = torch.jit.script(Levels())(levels.expand(1, 3, 1, 6))
    assert found[0, 0, 0].tolist() == [0, 0, 2, 255, 255, 0]


def test_another_shape_than_pictures_is_refused_with_what_is_accepted(embedder):
    with pytest.raises(Exception, match=r"\(B,3,H,W\), RGB"):
        program(Source({"": embedder}), Request())(torch.zeros(1, 32, 32, 3))


def test_a_network_that_cannot_be_compiled_keeps_a_free_batch():
    embedder = Tiny(Uncompilable()).eval()
    script = program(Source({"": embedder}), Request())
    golden = golden_of(embedder, ((20, 30),))
    for batch in (1, 3, 8):
        vectors = script(torch.from_numpy(golden.images[0][:batch])).detach().numpy()
        np.testing.assert_allclose(vectors, golden.vectors[0][:batch], atol=TOLERANCE, rtol=0)


def test_the_embedder_comes_back_in_the_mode_it_had():
    embedder = Tiny(Convolution()).train()
    embedder.neck.eval()
    with evaluating(Source({"": embedder})) as source:
        assert not any(module.training for module in source.embedders[""].modules())
    assert embedder.backbone.drop.training
    assert not embedder.neck.training


def shift_mean(embedder: Tiny) -> None:
    embedder.mean += 1.0


def scale_std(embedder: Tiny) -> None:
    embedder.std *= 1.01


def change_a_weight(embedder: Tiny) -> None:
    with torch.no_grad():
        embedder.neck.weight[0, 0] += 1e-3


def resize_another_way(embedder: Tiny) -> None:
    embedder.preprocess = replace(embedder.preprocess, interpolation="bilinear")


def crop_another_way(embedder: Tiny) -> None:
    embedder.preprocess = replace(embedder.preprocess, crop="center", crop_fraction=0.875)


TAMPERINGS = [shift_mean, scale_std, change_a_weight, resize_another_way, crop_another_way]


@pytest.mark.parametrize("tamper", TAMPERINGS)
def test_the_comparison_sees_a_tampered_file(tamper, embedder, tmp_path):
    golden_of(embedder).save(tmp_path / "golden.npz")
    assert difference(save(embedder, tmp_path / "honest.pt"), tmp_path / "golden.npz") <= TOLERANCE
    tamper(embedder)
    assert difference(save(embedder, tmp_path / "tampered.pt"), tmp_path / "golden.npz") > 10 * TOLERANCE


def test_a_failed_verification_keeps_nothing_and_spares_the_older_file(copied, small, monkeypatch):
    before = {name: (copied.parent / name).read_bytes() for name in os.listdir(copied.parent)}

    def tampered(source: Source, request: Request):
        shift_mean(source.embedders[""])
        return program(source, request)

    monkeypatch.setattr(torchscript, "program", tampered)
    with pytest.raises(
        UserError, match=r"verification of model.pt failed: largest difference .* at most 1e-05"
    ):
        written(Tiny(Convolution()), copied, overwrite=True)
    assert {name: (copied.parent / name).read_bytes() for name in os.listdir(copied.parent)} == before


def test_vectors_that_are_not_numbers_never_reach_a_file(embedder, tmp_path):
    with torch.no_grad():
        embedder.neck.bias[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        written(embedder, tmp_path / "model.pt")
    assert not os.listdir(tmp_path)


def test_a_difference_that_is_not_a_number_stays_the_largest(embedder, tmp_path):
    golden_of(embedder).save(tmp_path / "golden.npz")
    with torch.no_grad():
        embedder.neck.bias[0] = float("nan")
    assert np.isnan(difference(save(embedder, tmp_path / "model.pt"), tmp_path / "golden.npz"))


def test_the_fresh_process_cannot_import_the_project(exported):
    script = f"import sys; sys.argv = ['', {str(exported)!r}, 'no-golden', 'cpu']; import runpy\n"
    script += f"names = runpy.run_path({str(FRESH)!r}); sys.meta_path.insert(0, names['Absent'])\n"
    script += "import guie"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "guie is kept out of the verification" in done.stderr


def test_a_flipped_byte_is_found(copied):
    content = bytearray(copied.read_bytes())
    weights = content.find(b"PK\x03\x04", len(content) // 2)
    content[weights + 200] ^= 1
    copied.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        verify(copied)


def test_a_golden_file_of_another_export_is_refused(copied):
    (copied.parent / "golden.npz").write_bytes(b"another")
    with pytest.raises(UserError, match=r"does not belong to model.pt"):
        verify(copied)


def test_a_missing_golden_file_is_named(copied):
    (copied.parent / "golden.npz").unlink()
    with pytest.raises(UserError, match=r"golden.npz is missing beside model.pt"):
        verify(copied)


@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_a_file_that_guie_did_not_write_is_named(tmp_path, content):
    (tmp_path / "other.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"other.pt is no readable file of guie-export"):
        describe(tmp_path / "other.pt")


def test_a_second_model_in_a_folder_does_not_take_the_first_ones_golden_file(copied):
    assert writing.golden_name(copied, "golden.npz") == "golden.npz"
    other = copied.with_name("other.pt")
    assert writing.golden_name(other) == "other.golden.npz"
    (copied.parent / "other.golden.npz").touch()  # of other.onnx
    assert writing.golden_name(other) == "other.pt.golden.npz"


def test_a_model_may_be_called_what_golden_files_are_called(tmp_path):
    assert writing.golden_name(tmp_path / "golden.npz") == "golden.golden.npz"


def saying(path: Path, facts: object) -> Path:
    """Write an archive that says `facts` of itself."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/guie.json", json.dumps(facts))
    return path


def test_a_file_that_says_less_than_all_do_is_none_of_guie_and_can_be_replaced(tmp_path, small):
    for facts in ({}, [], {"golden": "golden.npz"}):
        path = saying(tmp_path / "model.pt", facts)
        with pytest.raises(UserError, match=r"model.pt is no readable file of guie-export"):
            verify(path)
    written(Tiny(Convolution()), path, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["golden.npz", "model.pt"]


def test_a_file_may_not_name_files_elsewhere_and_none_is_written_there(tmp_path, small, embedder):
    (tmp_path / "in").mkdir()
    honest = {"format": "torchscript", "golden_sha256": "", "tolerance": {}}
    for name in ("", "..", "/golden.npz", "../golden.npz"):
        for facts in ({**honest, "golden": "g.npz", "parts": {name: ""}}, {**honest, "golden": name}):
            path = saying(tmp_path / "in" / "model.pt", facts)
            with pytest.raises(UserError, match=r"model.pt is no readable file of guie-export"):
                describe(path)
    written(embedder, path, overwrite=True)
    assert os.listdir(tmp_path) == ["in"]


def test_weights_beside_a_file_replace_only_its_own(tmp_path, embedder):
    (tmp_path / "model.bin").write_bytes(b"firmware")
    with pytest.raises(UserError, match=r"pt: its weights go to .*model.bin, which exists; accepted"):
        written(embedder, tmp_path / "model.xml", format="openvino", overwrite=True)
    assert (tmp_path / "model.bin").read_bytes() == b"firmware"


def test_an_existing_file_is_refused_unless_overwriting_is_asked(tmp_path):
    (tmp_path / "model.pt").touch()
    with pytest.raises(UserError, match=r"model.pt exists; .*overwrite=true"):
        check_destination(tmp_path / "model.pt")
    assert check_destination(tmp_path / "model.pt", overwrite=True) == tmp_path / "model.pt"


def test_a_folder_is_no_file_name(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        check_destination(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"folder .*/absent does not exist"):
        check_destination(tmp_path / "absent" / "model.pt")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that not even root may write to")
def test_a_folder_that_cannot_be_written_is_named_before_any_work():
    with pytest.raises(UserError, match=r"cannot write /proc/model.pt"):
        check_destination("/proc/model.pt")


def test_low_disk_is_named_before_any_work(tmp_path, monkeypatch, embedder):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(UserError, match=r"has 0 MB free; the export needs about \d+ MB"):
        written(embedder, tmp_path / "model.pt")


def test_a_disk_that_fills_while_writing_leaves_nothing(tmp_path, small, monkeypatch, embedder):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torchscript, "program", fail)
    with pytest.raises(UserError, match="No space left on device; nothing was replaced"):
        written(embedder, tmp_path / "model.pt")
    assert not os.listdir(tmp_path)


def test_an_unknown_format_lists_those_that_exist():
    with pytest.raises(UserError, match=r"format: 'coreml' is not known; accepted: torchscript, pt2, onnx"):
        check_formats("coreml")


def test_a_format_whose_packages_are_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr("guie.export.formats.find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(UserError, match=r"openvino needs openvino, not .*pip install 'guie\[openvino\]'"):
        check_formats("openvino")


def test_golden_pictures_are_the_same_every_time():
    np.testing.assert_array_equal(draw((20, 30), 3, seed=0), draw((20, 30), 3, seed=0))
    assert (draw((20, 30), 1, seed=0) != draw((20, 30), 1, seed=1)).any()


def test_the_report_of_a_fresh_process_is_plain_json(embedder, tmp_path):
    golden_of(embedder).save(tmp_path / "golden.npz")
    report = fresh.compare(str(save(embedder, tmp_path / "model.pt")), str(tmp_path / "golden.npz"), "cpu")
    assert json.loads(json.dumps(report)) == report
    assert report["batches"] == [1, 3, 8]
