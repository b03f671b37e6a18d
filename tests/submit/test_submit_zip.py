"""The zip for Universal Image Embedding: it runs alone and offline, and nothing else is ever zipped."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from guie.build import build
from guie.config.compose import composed
from guie.config.schema import Submit
from guie.embed.pictures import vectors_of
from guie.errors import UserError
from guie.export.source import Source
from guie.export.torchscript import torchscript_allowed
from guie.export.writing import export
from guie.submit import universal
from guie.submit.story import submit_configured
from guie.types import Output, Preprocess


class Tiny(nn.Module):
    """The least that an embedder is."""

    def __init__(self, dim: int = 5):
        super().__init__()
        self.preprocess = Preprocess(size_px=(16, 16))
        self.neck = nn.Linear(3, dim)
        self.embed_dim = dim
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.preprocess, name)).view(1, 3, 1, 1) * 255
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> Output:
        feature = ((images.float() - self.mean) / self.std).mean((2, 3))
        raw = self.neck(feature)
        return Output(feature, None, raw, nn.functional.normalize(raw, dim=1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.pt"
    embedder = Tiny()
    export(Source({"": embedder}), path, lambda pictures: vectors_of(embedder, pictures))
    return path


def test_an_exported_model_becomes_a_zip_that_ran_alone_and_offline(exported, tmp_path, capsys):
    out = tmp_path / "submission.zip"
    submit_configured(vars(Submit(kind="guie", pt=str(exported), out=str(out))))
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: 5-d, 0.0 MiB, offline (") and "for 224x224, 480x640, 33x20" in said
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["saved_model.pt"]
        assert archive.read("saved_model.pt") == exported.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["submission.zip"]


def test_a_model_that_is_too_large_too_wide_or_changed_leaves_no_zip(exported, tmp_path, monkeypatch):
    out = tmp_path / "submission.zip"
    with pytest.raises(UserError, match=r"0.0 MiB; accepted: at most 0 \(max_mib\)"):
        universal.write_zip(out, exported, max_mib=0.001)
    monkeypatch.setattr(universal, "WIDTH", 4)
    with pytest.raises(UserError, match=r"gives 5 numbers; accepted: at most 4 \(guie-export keep=4\)"):
        universal.write_zip(out, exported, max_mib=10)
    assert list(tmp_path.iterdir()) == []


def test_a_zip_with_other_files_or_none_is_refused(tmp_path):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.pt", b"")
        archive.writestr("readme", b"")
    with pytest.raises(UserError, match=r"s.zip: holds model.pt, readme; accepted: saved_model.pt alone"):
        universal.check_zip(path, 10)
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"s.zip: cannot be read .*; accepted: a zip with saved_model.pt"):
        universal.check_zip(path, 10)


def test_a_flipped_byte_is_found(exported, tmp_path):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(exported, "saved_model.pt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"s.zip: cannot be read \(Bad CRC-32"):
        universal.check_zip(path, 10)


def test_a_file_that_is_no_torchscript_is_named_with_what_torch_says(tmp_path):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("saved_model.pt", b"weights")
    with pytest.raises(UserError, match=r"saved_model.pt does not load alone and offline: .*torchscript"):
        universal.check_zip(path, 10)


def test_a_model_that_answers_otherwise_when_asked_again_is_named(tmp_path):
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("asked", torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            self.asked += 1
            return nn.functional.normalize(torch.stack([self.asked, torch.ones(1)], dim=1), dim=1)

    with torchscript_allowed():
        torch.jit.save(torch.jit.script(Forgetful()), str(tmp_path / "model.pt"))
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "model.pt", "saved_model.pt")
    told = r"\(1, 3, 224, 224\) uint8 gave another vector when asked again; accepted: the same"
    with pytest.raises(UserError, match=told):
        universal.check_zip(path, 10)


def test_it_is_asked_as_the_preset_of_its_name_says():
    stated = build(composed("export", ["contract=kaggle_guie"])["contract"])
    assert stated.asked(()) == universal.TAKEN.asked(())
    assert (stated.name, stated.dim, stated.most_dim) == ("kaggle_guie", None, universal.WIDTH)
