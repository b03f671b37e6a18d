"""A contract refuses what cannot keep it, sets what it asks for and asks the written file, alone, offline."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guie.build import build
from guie.cli import export as command
from guie.config.compose import composed
from guie.config.folders import directory
from guie.embed.pictures import vectors_of
from guie.errors import UserError
from guie.export import asking, contract, writing
from guie.export.contract import Contract, check_file, promised, stated
from guie.export.opset import newer
from guie.export.source import Request, Source
from guie.export.torchscript import program, torchscript_allowed
from guie.export.verify import describe, verify
from guie.types import Output, Preprocess

PRESETS = sorted(path.stem for path in (directory() / "contract").glob("*.yaml"))
HELD = Contract("held", dtypes=["uint8", "float32"], batches=[1, 3], sizes=[[33, 20], [9, 40]], dim=4)


class Small(nn.Module):
    """The least that an embedder is: a convolution and a linear layer."""

    def __init__(self, mode: str = "bicubic"):
        super().__init__()
        self.preprocess = Preprocess(size_px=(16, 24), interpolation=mode)
        self.layer, self.neck, self.embed_dim = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 4), 4
        self.use_preprocess(self.preprocess)

    def use_preprocess(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Output:
        feature = nn.functional.gelu(self.layer((images.float() - self.mean) / self.std)).mean((2, 3))
        raw = self.neck(feature)
        return Output(feature, None, raw, nn.functional.normalize(raw))


def written(path: Path, held: Contract, **request: str) -> None:
    torch.manual_seed(0)
    embedder = Small().eval()
    source = Source({"": embedder}, facts={"space_id": "abc", **stated(held)})
    asked = Request(**request)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GOLDEN_SIZES", ((9, 40),))
        writing.export(source, path, lambda pictures: vectors_of(embedder, pictures), request=asked)


@pytest.fixture(autouse=True)
def deprecated_torchscript():
    with torchscript_allowed():
        yield


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """One file that was exported with a contract."""
    path = tmp_path_factory.mktemp("contract") / "model.pt"
    with torchscript_allowed():
        written(path, replace(HELD, torch="1.11"))
    return path


def test_a_file_says_which_contract_it_keeps_and_is_asked_again(kept, caplog, monkeypatch):
    monkeypatch.setattr("guie.export.verify.compare", lambda *given, **device: None)
    told = describe(kept)
    assert json.loads(json.dumps(asdict(replace(HELD, torch="1.11")))) == told["contract"]
    assert promised(told).dim == 4 and promised({}) is None
    with caplog.at_level(logging.INFO, "guie"):
        verify(kept)
    assert "asking it as contract held does" in caplog.text
    assert "torch 1.11 does not run antialiased resize of uint8 on the CPU (torch 2.1), which" in caplog.text


def test_a_file_that_says_it_keeps_a_contract_which_it_does_not_is_found(kept):
    with pytest.raises(
        UserError, match=r"^contract held: \(1, 3, 33, 20\) uint8 gave \(1, 4\); accepted: \(1, 5\)$"
    ):
        check_file(kept, replace(HELD, dim=5), (16, 24))


def test_pictures_that_their_user_normalises_come_in_the_size_of_the_network():
    held = Contract("d", pixels="normalised", dtypes=["float32"], batches=[1, 4], sizes=None, most_dim=256)
    question = {"pixels": "normalised", "shape": [4, 3, 16, 24], "dtype": "float32"}
    assert held.asked((16, 24)) == [question | {"shape": [1, 3, 16, 24]}, question]
    drawn = asking.drawn(question)
    assert drawn.dtype == np.float32 and abs(drawn.mean()) < 0.05 and abs(drawn.std() - 1) < 0.05


def test_a_model_of_another_width_is_refused_before_anything_is_written(tmp_path):
    for held, told in ((replace(HELD, dim=64), "64"), (replace(HELD, dim=None, most_dim=3), "at most 3")):
        with pytest.raises(
            UserError, match=rf"^contract held: the model gives 4 numbers; accepted: {told} \("
        ):
            written(tmp_path / "model.pt", held)
        assert not list(tmp_path.iterdir())


RIGHT = {"shape": [2, 4], "dtype": "float32", "finite": True, "off_unit": 1e-7, "repeats": True}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"shape": [1, 4]}, r"\(1, 4\); accepted: \(2, 4\)"),
        ({"shape": [2, 3]}, r"\(2, 3\); accepted"),
        ({"shape": [2, 4, 1]}, r"\(2, 4, 1\); accepted"),
        ({"dtype": "float16"}, "float16; accepted: float32"),
        ({"finite": False, "off_unit": float("nan")}, "not finite"),
        ({"off_unit": 0.1}, r"length is 1\.0e-01 from 1; accepted: within 1e-03"),
        ({"off_unit": float("nan")}, "length is nan"),
        ({"repeats": False}, "another vector when asked again"),
    ],
)
def test_every_fault_of_an_answer_is_one_line(monkeypatch, tmp_path, wrong, told):
    held = Contract("held", batches=[2], sizes=[[8, 8]], dim=4)
    monkeypatch.setattr(contract, "_answers", lambda *_: [RIGHT])
    check_file(tmp_path, held, (8, 8))
    monkeypatch.setattr(contract, "_answers", lambda *_: [RIGHT | wrong])
    with pytest.raises(UserError, match=rf"^contract held: \(2, 3, 8, 8\) uint8 gave .*{told}"):
        check_file(tmp_path, held, (8, 8))


def test_an_error_is_an_answer_too(monkeypatch, tmp_path):
    monkeypatch.setattr(contract, "_answers", lambda *_: [{"error": "no kernel"}] * 8)
    with pytest.raises(UserError, match=r"uint8 gave an error \(no kernel\); accepted: \(1, 4\) float32$"):
        check_file(tmp_path, HELD)


def test_at_most_so_many_numbers_is_a_contract_too(monkeypatch, tmp_path):
    held = Contract("held", batches=[2], sizes=[[8, 8]], most_dim=4)
    for width, fits in ((1, True), (4, True), (5, False)):
        monkeypatch.setattr(contract, "_answers", lambda *_, width=width: [RIGHT | {"shape": [2, width]}])
        faults = list(contract._faults(held.asked((8, 8))[0], RIGHT | {"shape": [2, width]}, held))
        assert (not faults) == fits


def test_answers_are_measured_as_numpy_measures_them():
    question = {"pixels": "levels", "shape": [2, 3, 4, 5], "dtype": "uint8"}
    rows = np.array([[3, 4], [0, 2]], np.float32)
    found = asking.answered(lambda images: rows, question)
    assert found == {"shape": [2, 2], "dtype": "float32", "finite": True, "off_unit": 4.0, "repeats": True}
    counted = iter(range(9))
    assert not asking.answered(lambda images: rows + next(counted), question)["repeats"]

    def fail(images):
        raise ValueError("one\ntwo")

    assert asking.answered(fail, question) == {"error": "two"}
    drawn = asking.drawn(question)
    assert drawn.shape == (2, 3, 4, 5) and drawn.dtype == np.uint8
    floats = asking.drawn(question | {"dtype": "float32"})
    np.testing.assert_array_equal(drawn, floats)


def test_the_process_that_asks_has_neither_guie_nor_a_network():
    code = f"import sys, runpy; names = runpy.run_path({str(contract.ASKING)!r}); import socket\n"
    code += "sys.addaudithook(names['refuse']); sys.meta_path.insert(0, names['beside']('fresh')['Absent'])\n"
    code += "for action in ('import guie', 'socket.create_connection((\"127.0.0.1\", 9))'):\n"
    code += "    try: exec(action)\n    except (ImportError, OSError) as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "guie is kept out" in first and second.startswith("the network is not reachable")


def test_a_file_that_does_not_load_is_named(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match=r"^contract held: model\.pt does not load alone and offline: "):
        check_file(tmp_path / "model.pt", HELD, (16, 24))


def test_each_preset_states_the_interface_of_its_system():
    made = {name: composed("export", [f"contract={name}"]) for name in PRESETS}
    held = {name: build(cfg["contract"]) for name, cfg in made.items()}
    assert PRESETS == ["guie_25th", "guie_5th", "isc21", "kaggle_guie"]
    assert [one.name for one in held.values()] == PRESETS
    assert {name: (one.dim, one.most_dim) for name, one in held.items()} == {
        "guie_25th": (64, None),
        "guie_5th": (64, None),
        "isc21": (256, None),
        "kaggle_guie": (None, 64),
    }
    assert list(held["guie_5th"].dtypes) == ["uint8", "float32"] and list(held["guie_5th"].batches) == [1]
    assert held["guie_25th"].batches[1] > 1 and list(held["guie_25th"].dtypes) == ["uint8"]
    assert held["isc21"].sizes is None and made["isc21"]["pixels"] == "normalised"
    assert [cfg["format"] for cfg in made.values()] == ["torchscript"] * 4


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_preset_sets_keeps_its_own_contract(name):
    cfg = composed("export", [f"contract={name}", "pt=model.pt"])
    build(cfg["contract"]).check_order([cfg["format"]], cfg["pixels"], cfg["batch"], cfg["size"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["contract=kaggle_guie", "format=onnx"],
            "format: onnx with contract kaggle_guie; accepted: torchscript",
        ),
        (["contract=isc21", "pixels=levels"], "pixels: levels with contract isc21; accepted: normalised"),
        (["contract=guie_25th", "batch=1"], "batch: 1 with contract guie_25th; accepted: null, for any"),
        (["contract=guie_5th", "size=[8,8]"], r"size: \[8, 8\] with contract guie_5th; accepted: null"),
        (
            ["contract=guie_6th"],
            "contract: there is no 'guie_6th'; accepted: guie_25th, guie_5th, isc21, kaggle",
        ),
        (["contract.dims=64"], "contract.dims"),
    ],
)
def test_what_cannot_keep_a_contract_is_refused_before_a_checkpoint_is_read(tmp_path, words, told):
    with pytest.raises(UserError, match=f"^{told}"):
        command.run(composed("export", [f"pt={tmp_path / 'model.pt'}", "ckpt=absent", *words]))


@pytest.mark.parametrize(
    ("words", "told"), [([], "nothing"), (["pt=a", "huggingface=b"], "pt and huggingface")]
)
def test_an_export_is_one_thing(words, told):
    with pytest.raises(UserError, match=rf"^pt: {told} given; accepted: one of pt=FILE, bundle, huggingface"):
        command.run(composed("export", ["ckpt=x", *words]))


def test_the_one_batch_that_is_asked_for_may_be_the_only_one():
    build(composed("export", ["contract=guie_5th"])["contract"]).check_order(
        ["torchscript"], "levels", 1, None
    )


def names_of(path: Path) -> set[str]:
    return set(torch.jit.export_opnames(torch.jit.load(str(path))))


def test_a_file_names_no_kernel_that_it_does_not_use_so_that_an_older_torch_loads_it(kept, tmp_path):
    resizing = {name for name in names_of(kept) if "upsample" in name}
    assert resizing == {"aten::_upsample_bicubic2d_aa", "aten::_upsample_bilinear2d_aa"}


def archive(path: Path, code: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/code/__torch__/m.py", code)
        file.writestr("m/extra/guie.json", json.dumps({"told": "torch.pad("}))
    return path


def test_what_is_newer_is_found_in_the_code_with_the_version_that_brought_it(tmp_path):
    attends = archive(
        tmp_path / "a.pt", "x = torch.scaled_dot_product_attention(q, k, v)\ny = torch.gelu(x)\n"
    )
    assert newer(attends, "1.11") == ["scaled_dot_product_attention (torch 2.0)"]
    assert newer(attends, "2.0") == newer(attends, "2.15.0") == []
    old = archive(tmp_path / "b.pt", "y = torch.gelu(x, approximate='none')\n")
    assert newer(old, "1.11") == ["gelu(approximate=...) (torch 1.12)"]
    torch.jit.save(program(Source({"": Small().eval()}), Request()), str(tmp_path / "c.pt"))
    assert newer(tmp_path / "c.pt", "1.11")[0].startswith("antialiased resize of uint8 on the CPU")


@pytest.mark.parametrize("given", ["abc", "2", 1.1, 2])
def test_a_version_that_is_none_is_refused_when_it_is_ordered(given):
    with pytest.raises(UserError, match=rf"^contract.torch: '?{given}'?; accepted: a version in quotes"):
        Contract("mine", torch=given)


def test_the_version_may_be_named_on_the_command_line():
    made = composed("export", ["contract=guie_5th", '+contract.torch="1.10"'])
    assert build(made["contract"], where="contract").torch == "1.10"
