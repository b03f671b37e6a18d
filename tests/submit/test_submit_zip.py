"""The zip for Universal Image Embedding: it runs alone and offline, and nothing else is ever zipped."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from guie.config.schema import Submit
from guie.embed.pictures import vectors_of
from guie.errors import UserError
from guie.export.source import Source
from guie.export.torchscript import torchscript_allowed
from guie.export.verify import package_folders
from guie.export.writing import export
from guie.submit import offline, universal
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


def answer(**change):
    return {"size": [4, 4], "shape": [1, 5], "dtype": "float32", "length": 1.0, "finite": True} | {
        "repeats": True,
        **change,
    }


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": [1, 65]}, r"shape \(1, 65\) for a picture of 4x4; accepted: \(1,D\) float32 of length 1"),
        ({"shape": [5]}, r"shape \(5,\) for"),
        ({"dtype": "float16"}, "dtype float16 for"),
        ({"finite": False}, "numbers that are not finite for"),
        ({"repeats": False}, "another vector when asked again for"),
        ({"length": 0.9}, "length 0.900000 for"),
    ],
)
def test_what_the_challenge_would_not_take_is_named(change, said):
    universal._check_answer(Path("s.zip"), answer())
    with pytest.raises(UserError, match=rf"s.zip: {said}"):
        universal._check_answer(Path("s.zip"), answer(**change))


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
    with pytest.raises(UserError, match=r"saved_model.pt does not run alone and offline: .*TorchScript"):
        universal.check_zip(path, 10)


def test_the_process_of_the_check_reaches_no_host_and_no_hidden_package():
    program = f"""
import sys, socket, json
sys.path.insert(0, {str(Path(offline.__file__).parent)!r})
import offline
sys.addaudithook(offline.refuse)
sys.meta_path.insert(0, offline.Absent)
told = []
for attempt in (
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: socket.getaddrinfo("example.org", 80),
    lambda: __import__("timm"),
):
    try:
        attempt()
    except (OSError, ModuleNotFoundError) as error:
        told.append(str(error))
print(json.dumps(told))
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert len(told) == 3 and all("not reachable" in line for line in told[:2]) and "kept out" in told[2]
    assert any("site-packages" in folder for folder in package_folders())


def test_the_check_asks_as_the_challenge_does_and_notes_what_differs():
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("asked", torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            self.asked += 1
            return self.asked.view(1, 1) * images.float().mean().view(1, 1)

    with torchscript_allowed():
        model = torch.jit.script(Forgetful())
    found = list(offline.ask(model, torch))
    assert [asked["size"] for asked in found] == [[224, 224], [480, 640], [33, 20]]
    assert all(asked["shape"] == [1, 1] and not asked["repeats"] and asked["finite"] for asked in found)
