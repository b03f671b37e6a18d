"""guie-train in several processes: what is started with which words, and (slow) that it is the same run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import TINY, console, metrics

from guie import checkpoint
from guie.runfolder import read_config, start_state

ONE_CORE = sorted(os.sched_getaffinity(0))[0] if hasattr(os, "sched_getaffinity") else 0


@pytest.fixture
def started(monkeypatch, capsys, tmp_path):
    """Return a call that enters guie-train where nothing is started; it gives what would have been."""
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(
        "guie.cli.processes.run_ranks", lambda words, ranks: asked.append((words, ranks)) or 7
    )
    monkeypatch.setattr("guie.slots.run_jobs", lambda *given: asked.append(given) or 1)

    def enter(*arguments):
        asked.clear()
        code, lines = console(monkeypatch, capsys, "train", *arguments)
        return code, lines, asked[0] if asked else None

    return enter


def test_ranks_get_the_same_words_but_for_the_launch_and_their_code_comes_back(started):
    words = ["optim.lr=0.3", "run_dir=a (1)", "device=cpu", "eval_on=[toy]"]
    code, _, (command, ranks) = started("launch.processes=2", *words)
    assert (code, ranks) == (7, 2)
    assert command[1:3] == ["-m", "guie.cli.train"]
    protocol = "+protocol@protocol.toy=retrieval"
    assert command[3:] == [protocol, "optim.lr=0.3", "device=cpu", "dataset@eval_on=[toy]", "run_dir=a (1)"]


def test_each_job_of_a_plain_sweep_is_launched_in_its_own_folder(started):
    sweep = ["--multirun", "seed=3,4", "launch.processes=2", "device=cpu", "hydra.sweep.dir=here"]
    code, _, (command, _) = started(*sweep)
    assert code == 7  # and the sweep ends there, as it does in one process
    assert command[3:] == ["seed=3", "device=cpu", f"run_dir={Path('here').absolute() / '0'}"]


def test_the_folder_of_presets_goes_along(started, tmp_path):
    (tmp_path / "mine" / "optim").mkdir(parents=True)
    preset = "defaults: [_own, _self_]\n_target_: guie.train.optim.sgd\nlr: 0.123\n"
    (tmp_path / "mine" / "optim" / "own.yaml").write_text(preset)
    words = ["--config-dir", str(tmp_path / "mine"), "optim=own"]
    _, _, (command, _) = started(*words, "launch.processes=2", "device=cpu")
    assert command[3:5] == [f"--config-dir={tmp_path / 'mine'}", "optim=own"]
    code, lines, given = started("-m", *words, "seed=1,2", f"launch.slots=[[{ONE_CORE}]]", "device=cpu")
    assert code == 1, lines
    assert given[0][1][:2] == [f"--config-dir={tmp_path / 'mine'}", "optim=own"]


def test_inside_of_torchrun_the_launch_is_ignored_with_a_line(started, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("guie.train.distributed.dist.init_process_group", lambda *_, **__: sys.exit(5))
    code, lines, asked = started("launch.processes=2", "device=cpu")
    assert (code, asked) == (5, None)
    assert lines == ["launch: ignored, 2 processes were started from outside"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_more_gpus_than_are_visible_are_refused(started):
    code, lines, asked = started("launch.gpus=4")
    assert (code, asked) == (2, None)
    assert lines == [
        "guie-train: launch.gpus: 4, but 0 visible here; accepted: launch.processes=N device=cpu"
    ]


def test_slots_without_a_sweep_are_refused(started):
    code, lines, _ = started("launch.slots=[[0],[1]]")
    assert code == 2
    assert lines == ["guie-train: launch.slots: [[0], [1]] without --multirun; accepted: with it, or null"]


def test_a_sweep_over_slots_gets_every_job_checked_and_the_folder(started):
    slots = f"launch.slots=[[{ONE_CORE}]]"
    code, _, given = started("-m", "seed=1,2", "optim.lr=0.1,0.2", slots, "device=cpu", "hydra.sweep.dir=s")
    jobs, folder, among, num_gpus = given
    assert (code, folder, among, num_gpus) == (1, Path("s"), [[ONE_CORE]], 0)
    assert [job[:2] for job in jobs] == [
        [f"seed={seed}", f"optim.lr={lr}"] for seed in (1, 2) for lr in (0.1, 0.2)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=0.1,abc"], "optim.lr: Value 'abc'"),
        (["seed=1,2", "run_dir=x"], "run_dir: given with launch.slots; accepted: hydra.sweep.dir=FOLDER"),
        (["seed=interval(1,2)"], "seed=interval(1,2): an interval; accepted with launch.slots: a=1,2"),
    ],
)
def test_a_mistake_in_any_job_of_a_sweep_is_told_before_the_first_begins(started, words, message):
    code, lines, asked = started("-m", *words, f"launch.slots=[[{ONE_CORE}]]")
    assert (code, asked, len(lines)) == (2, None, 1)
    assert lines[0].startswith(f"guie-train: {message}")


def guie_train(*words):
    return [sys.executable, "-m", "guie.cli.train", *words]


@pytest.mark.slow
def test_two_launched_processes_end_where_one_does(tmp_path, drawn):
    words = [*TINY, f"data_root={drawn}", "device=cpu", "augment=none", "hw.precision=fp32"]
    for name, launched in (("one", []), ("two", ["launch.processes=2"])):
        command = guie_train(*words, *launched, f"run_dir={tmp_path / name}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        said = done.stderr.splitlines()
        assert len([line for line in said if line.startswith("run folder")]) == 1
        assert done.stdout.count("checkpoint  ") == 1
    one, two = (checkpoint.read(tmp_path / name, "last") for name in ("one", "two"))
    assert one.step == two.step
    assert read_config(tmp_path / "two") == {
        **read_config(tmp_path / "one"),
        "run_dir": str(tmp_path / "two"),
    }


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_and_ends_with_143(tmp_path, drawn):
    endless = ["trainer.epochs=5000", "trainer.eval_every=0", "trainer.save_every=0", "trainer.log_every=1"]
    places = [f"data_root={drawn}", f"run_dir={tmp_path / 'run'}", "device=cpu", "launch.processes=2"]
    process = subprocess.Popen(guie_train(*TINY, *endless, *places), stderr=subprocess.DEVNULL)
    measured = tmp_path / "run" / "metrics.jsonl"
    try:
        begun = time.monotonic()
        while not (measured.exists() and measured.read_text()) and time.monotonic() - begun < 250:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert start_state(tmp_path / "run") == "interrupted"
    assert checkpoint.read(tmp_path / "run", "last").step > 0


@pytest.mark.slow
def test_a_sweep_in_slots_trains_skips_and_counts(tmp_path, drawn):
    words = [*TINY, f"data_root={drawn}", "device=cpu", "trainer.max_steps=2", "trainer.log_every=1"]
    sweep = ["-m", f"hydra.sweep.dir={tmp_path / 's'}", f"launch.slots=[[{ONE_CORE}],[{ONE_CORE}]]"]
    for expected in ("3 jobs, 0 finished before", "3 jobs, 2 finished before"):
        command = guie_train(*sweep, "optim.lr=1e-3,1e-2,-1", *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 1 and expected in done.stderr, done.stderr
    assert [start_state(tmp_path / "s" / job) for job in "01"] == ["finished"] * 2
    lines = (tmp_path / "s" / "results.csv").read_text().splitlines()
    assert (
        len(lines) == 5
        and str(round(metrics(tmp_path / "s" / "0")["trained"]["merged"]["mP@5"], 6)) in lines[1]
    )
