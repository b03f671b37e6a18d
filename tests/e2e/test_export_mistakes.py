"""guie-export: what cannot be is one line and exit code 2 before a checkpoint is read, and leaves nothing."""

from __future__ import annotations

import os

import numpy as np
import pytest
from commands import console, run

from guie import exporting
from guie.errors import UserError
from guie.export import verify
from guie.postprocess.layers import Mapped, Subtracted, width_behind

FILE, BUNDLE = "pt=model.pt", "bundle=made"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([FILE, "format=null"], "format: None is not known; accepted: torchscript, pt2, onnx, openvino"),
        ([BUNDLE, "format=[torchscript,[pt2]]"], "format: ['pt2'] is not known; accepted: torchscript"),
        ([FILE, "precision=fp8"], "precision: 'fp8'; accepted: fp32, bf16, fp16, int8"),
        ([FILE, "precision=int8"], "precision: int8 with format=torchscript; accepted: fp32, bf16, fp16, or"),
        ([BUNDLE, "format=[onnx,pt2]", "precision=bf16"], "precision: bf16 with format=onnx; accepted: fp32"),
        ([FILE, "batch=0"], "batch: 0; accepted: 1 or more, or null for any"),
        ([FILE, "size=0"], "size: [0, 0]; accepted: [height,width] in pixels, or null for any"),
        ([FILE, "size=[1,2,3]"], "size: [1, 2, 3]; accepted: [height,width] in pixels"),
        ([FILE, "size=[224]"], "size: [224]; accepted: [height,width] in pixels"),
        ([FILE, "size=large"], "size: large; accepted: [height,width] in pixels"),
        ([FILE, "size=true"], "size: True; accepted: [height,width] in pixels"),
        ([FILE, "size=64", "pixels=normalised"], "size: [64, 64] with pixels=normalised, which have the"),
        ([FILE, "pixels=raw"], "pixels: 'raw'; accepted: levels, normalised"),
        (["pt=model.onnx"], "pt: model.onnx with format=torchscript; accepted: a name that ends in .pt, or"),
        (["pt=model.pt", "format=onnx"], "pt: model.pt with format=onnx; accepted: a name that ends in"),
        (["pt=m.bin", "format=openvino"], "pt: m.bin with format=openvino; accepted: a name that ends in"),
        ([FILE, "views=classifier_tta"], "ckpt_cls: not given; accepted: a run of head=classifier_tta"),
        ([FILE, "ckpt_cls=gate", "views=flip"], "ckpt_cls: given, but nothing is chosen by it; accepted"),
        ([FILE, "evaluation=eval"], "evaluation: eval with pt, which has no card to tell of it; accepted"),
        ([FILE, "device=cuda"], "device: cuda with pt; accepted: cpu, or any with verify=PATH"),
        (["huggingface=/proc/model"], "huggingface: cannot write /proc/model: "),
    ],
)
def test_what_cannot_be_is_refused_at_once(words, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, lines = console(monkeypatch, capsys, "export", "ckpt=nowhere", *words)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(f"guie-export: {said}")
    assert not os.listdir(tmp_path)


def test_ctrl_c_is_one_line_and_leaves_what_was_there(tiny_run, tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "_run_fresh", stopped)
    (tmp_path / "model.pt").write_bytes(b"former")
    words = [f"ckpt={tiny_run.folder}", f"pt={tmp_path / 'model.pt'}", "overwrite=true"]
    code, lines = console(monkeypatch, capsys, "export", *words)
    assert (code, lines[-1]) == (130, "guie-export: stopped; nothing was written or replaced")
    assert os.listdir(tmp_path) == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == b"former"


def test_a_contract_of_another_width_is_refused_before_anything_is_embedded(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "export", None)
    words = [f"ckpt={tiny_run.folder}", f"pt={tmp_path / 'model.pt'}"]
    with pytest.raises(UserError, match="contract isc21: the model gives 64 numbers; accepted: 256"):
        run("export", *words, "contract=isc21")
    with pytest.raises(UserError, match="contract guie_25th: the model gives 8 numbers; accepted: 64"):
        run("export", *words, "contract=guie_25th", "keep=8")


def test_a_width_is_that_behind_the_last_map():
    def mapped(width, before):
        return Mapped(np.zeros((width, before), np.float32), np.zeros(width, np.float32))

    subtracted = Subtracted(np.zeros((5, 8), np.float32), 1, 0.1)
    assert width_behind([subtracted], 8) == 8
    assert width_behind([mapped(6, 8), mapped(4, 6), subtracted], 8) == 4


def test_models_are_called_what_files_may_be_called(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("../a", ".a", "a/b"):
        code, lines = console(monkeypatch, capsys, "export", f"ckpt={{{name}:x,b:y}}", FILE)
        assert code == 2
        assert f"ckpt: '{name}' as a model's name; accepted: letters, digits" in lines[-1]
