"""What a person can get wrong on the command line: one line that names it, exit code 2, nothing broken."""

import json
import re
import shutil

import pytest
import torch
import yaml
from commands import TINY, console


@pytest.fixture
def said(monkeypatch, capsys, tmp_path):
    """Return a call that runs a command in an empty folder and gives its one line of complaint."""
    monkeypatch.chdir(tmp_path)

    def mistaken(command, *arguments):
        code, lines = console(monkeypatch, capsys, command, *arguments)
        assert code == 2, lines
        assert not [line for line in lines if "Traceback" in line or "Error executing job" in line]
        assert [line for line in lines if line.startswith(f"guie-{command}: ")] == lines[-1:]
        return lines[-1].removeprefix(f"guie-{command}: ")

    return mistaken


@pytest.fixture
def interrupted(tiny_run, tmp_path):
    """Return a copy of the tiny run as it would be had it been killed before its end."""
    folder = tmp_path / "interrupted"
    shutil.copytree(tiny_run.folder, folder)
    (folder / "run.json").write_text(json.dumps({"format": 1, "state": "running"}))
    return folder


def places(tiny_run, folder):
    return [*TINY, f"data_root={tiny_run.data}", f"run_dir={folder}"]


def test_a_missing_data_set(said, tmp_path):
    missing = ["dataset=[folder]", f"dataset.folder.root={tmp_path / 'none'}", "eval_on=[folder]"]
    line = said("train", *missing, f"eval_on.folder.root={tmp_path / 'none'}", "run_dir=run")
    assert line.startswith("dataset.folder.root: no folder ") and "accepted:" in line


@pytest.mark.parametrize(
    "mistake",
    ["dataset=[folder] dataset.folder.root=none", "ckpt=none", "trainer.epochs=0", "device=gpu"],
)
def test_a_mistake_leaves_no_run_folder_behind(said, tiny_run, tmp_path, mistake):
    said("train", *places(tiny_run, tmp_path / "run"), *mistake.split())
    assert not (tmp_path / "run").exists()


def test_a_finished_run_folder(said, tiny_run):
    assert said("train", *places(tiny_run, tiny_run.folder)) == (
        f"run_dir: {tiny_run.folder} holds a finished run; accepted: a folder that is new or empty"
    )


def test_an_interrupted_run_folder_is_hinted_at_resume(said, tiny_run, interrupted):
    assert "resume=auto" in said("train", *places(tiny_run, interrupted))


def test_a_changed_key_is_named_on_resuming(said, tiny_run, interrupted):
    line = said("train", *places(tiny_run, interrupted), "resume=auto", "optim.lr=0.5")
    assert "optim.lr: was 0.002, now 0.5" in line
    assert yaml.safe_load((interrupted / "config.yaml").read_text())["optim"]["lr"] == 0.002


def test_a_foreign_folder(said, tiny_run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "thesis.txt" in said("train", *places(tiny_run, tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_gpu_that_is_not_there(said, command, tiny_run):
    more = [f"ckpt={tiny_run.folder}"] if command == "eval" else []
    assert said(command, "device=cuda", *more).startswith("device: 'cuda', but torch finds no GPU; accepted")


def test_an_unknown_device(said):
    assert said("train", "device=gpu") == "device: 'gpu'; accepted: auto, cpu, cuda"


@pytest.mark.parametrize("command", ["train", "eval", "export"])
def test_a_checkpoint_that_is_not_there(said, command, tiny_run):
    more = {"train": places(tiny_run, "new"), "export": ["pt=model.pt"]}.get(command, [])
    line = said(command, "ckpt=no/such run", *more)
    assert "no/such run" in line and "accepted" in line


@pytest.mark.parametrize("command", ["eval", "export"])
def test_no_checkpoint_and_no_run_to_take_instead(said, command):
    more = ["pt=model.pt"] if command == "export" else []
    assert said(command, *more).startswith("ckpt: not given and no finished run under runs/")


def test_a_data_set_to_evaluate_that_is_not_there(said, tiny_run):
    line = said("eval", f"ckpt={tiny_run.folder}", "dataset=[folder]", "dataset.folder.root=none")
    assert "dataset.folder.root" in line


def test_of_several_data_sets_a_missing_one_is_skipped_with_a_line(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    toys = [f"dataset.toy.{name}=4" for name in ("instances", "views")]
    chosen = ["dataset=[toy,folder]", "dataset.folder.root=none", *toys, "floors=false", "out=out"]
    code, lines = console(
        monkeypatch, capsys, "eval", f"ckpt={tiny_run.folder}", f"data_root={tiny_run.data}", *chosen
    )
    assert code == 0
    assert any(line.startswith("skipped folder: dataset.folder.root") for line in lines)
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())["trained"]) == {"toy", "merged"}


def test_embeddings_that_are_none(said, tmp_path):
    assert said("eval", f"embeddings={tmp_path}").startswith(f"embeddings: {tmp_path} holds none; accepted")


@pytest.mark.parametrize(
    ("pt", "message"),
    [
        ("none/model.pt", "pt: the folder .*none does not exist"),
        ("/proc/model.pt", "pt: cannot write /proc/model.pt"),
        (".", "pt: . is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_checkpoint_is_read(said, pt, message):
    assert re.match(message, said("export", "ckpt=never-looked-at", f"pt={pt}"))


def test_an_existing_file_is_not_replaced_by_an_export(said, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"mine")
    assert "overwrite=true" in said("export", "ckpt=never-looked-at", "pt=model.pt")
    assert (tmp_path / "model.pt").read_bytes() == b"mine"


def test_an_unknown_export_format(said):
    assert said("export", "format=coreml", "pt=x").startswith("format: 'coreml' is not known; accepted:")


@pytest.mark.parametrize("value", ["epochs=0", "batch_size=0", "warmup=1.5", "schedule=cosin"])
def test_settings_that_cannot_be(said, tiny_run, value):
    key, given = value.split("=")
    line = said("train", *places(tiny_run, "new"), f"trainer.{value}")
    assert line.startswith(f"trainer.{key}: ") and given in line and "accepted" in line
