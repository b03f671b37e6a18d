"""guie-prepare as a shell sees it, and a training run on what it made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import CLI, SMALL, console, metrics, run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "prepare"))

from miniature import picture, write_sop

from guie.cli import prepare

CLI.setdefault("prepare", prepare)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Return Stanford Online Products of four classes to train on and three to test on."""
    train = [(str(1 + i // 4), picture(i)) for i in range(16)]
    test = [(str(11319 + i // 4), picture(100 + i)) for i in range(12)]
    return write_sop(tmp_path_factory.mktemp("raw"), train, test)


def test_prepare_then_train_then_evaluate(raw, tmp_path, monkeypatch, capsys):
    out = tmp_path / "prepared"
    code, lines = console(
        monkeypatch, capsys, "prepare", "dataset=sop", f"raw={raw}", f"out={out}", "workers=1"
    )
    assert code == 0, lines
    chosen = ["dataset=[sop]", "eval_on=[sop]", f"dataset.sop.root={out}", f"eval_on.sop.root={out}"]
    places = [f"data_root={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    assert run("train", *chosen, *SMALL, "trainer.batch_size=8", *places) == 0
    assert metrics(tmp_path / "run")["trained"]["sop"]["queries"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=[sopp]"], "dataset: there is no 'sopp'; accepted: "),
        (["dataset=sop", "outt=x"], "outt: unknown key; did you mean 'out'?"),
        (["dataset=sop", "workers=many"], "workers: "),
        (["dataset=sop", "dataset.sop.rot=x"], "dataset.sop.rot: unknown key; did you mean 'root'?"),
        (["dataset=sop", "out=x", "raw=none"], "dataset.sop.root: no folder "),
    ],
)
def test_a_mistake_is_the_last_line_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, lines = console(monkeypatch, capsys, "prepare", *arguments)
    assert code == 2 and lines[-1].startswith(f"guie-prepare: {message}")
    assert not any("Traceback" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'torchvision', 'timm', 'open_clip', 'albumentations', 'faiss'}:
            raise SystemExit(f'{name} was imported')
sys.meta_path.insert(0, Block())
from guie.cli import prepare
sys.argv[0] = 'guie-prepare'
prepare.main()
"""


def without_torch(*arguments, code=BLOCKED):
    environment = {name: value for name, value in os.environ.items() if name != "GUIE_DEBUG"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_preparing_needs_no_torch(raw, tmp_path):
    done = without_torch("dataset=sop", f"raw={raw}", f"out={tmp_path / 'out'}", "workers=1")
    assert done.returncode == 0, done.stderr
    assert "28 images, 7 classes" in done.stdout


def test_help_answers_without_torch_and_names_every_key():
    done = without_torch("--help")
    assert done.returncode == 0, done.stderr
    for word in ("guie-prepare dataset=NAME raw=PATH out=PATH", "near_bits: 4", "min_images: 2", "sop"):
        assert word in done.stdout


def test_a_mistake_answers_without_torch(tmp_path):
    done = without_torch("dataset=sop", "raw=x", "out=y", "wokers=1")
    assert done.returncode == 2
    assert done.stderr == "guie-prepare: wokers: unknown key; did you mean 'workers'?\n"


def test_the_block_of_torch_can_fail():
    done = without_torch("--help", code=BLOCKED.replace("prepare.main()", "import torch"))
    assert "torch was imported" in done.stderr
