"""Runs that are killed, or asked to stop, by way of the command: what resume=auto makes of them.

Children are forked from this process, which has torch imported, and call the command's own function.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import timm  # noqa: F401  (the children find it imported)
from commands import TINY, metrics, run
from ranks import fork, logs, wait

from guie import checkpoint
from guie.train.engine import Engine

STEPS = 8
EVERYTHING_ON = [
    *TINY,
    "augment=warp_rotate",
    "neck=bn_linear",
    "neck.dropout=0.2",
    "trainer.ema_decay=0.9",
    "trainer.clip_norm=1.0",
    "trainer.save_steps=2",
    "trainer.eval_every=0",
    "resume=auto",
]


def signal_at(step, number):
    """Make this process send itself a signal in the middle of training, after `step` steps."""
    advance = Engine.advance

    def watched(self, batch):
        advance(self, batch)
        if self.step == step:
            os.kill(os.getpid(), number)

    Engine.advance = watched


def child(folder, data, *, rank=0, ranks=1, port=0, stop=None):
    """Return what a forked child does: one rank of guie-train, as torchrun would start it."""

    def work():
        if ranks > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if stop:
            signal_at(*stop)
        raise SystemExit(run("train", *EVERYTHING_ON, f"data_root={data}", f"run_dir={folder}"))

    return work


def train_alone(folder, data, log, **options):
    """Return the exit code of one process, negative for a signal."""
    return wait(fork(child(folder, data, **options), log))


def train_on_two_ranks(folder, data, logs_in, **options):
    """Return the exit codes of two gloo ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs_in.mkdir()
    pids = [
        fork(child(folder, data, rank=rank, ranks=2, port=port, **options), logs_in / f"rank{rank}.log")
        for rank in range(2)
    ]
    return [wait(pid) for pid in pids]


def final_state(folder):
    """Return the hash of every weight and optimiser number after the last step."""
    state = checkpoint.read(checkpoint.locate(folder, "last"))
    assert state.step == STEPS
    tensors = {}
    checkpoint._pack(state.training["optimizer"], tensors, "")
    named = {part: checkpoint.weights_digest(weights) for part, weights in state.parts.items()}
    return named | {"optimizer": checkpoint.weights_digest(tensors)}


def steps_logged(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_killed_in_training_and_resumed_end_in_the_same_bits(tmp_path, drawn):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train_on_two_ranks(straight, drawn, tmp_path / "a") == [0, 0], logs(tmp_path / "a")
    codes = train_on_two_ranks(killed, drawn, tmp_path / "b", stop=(5, signal.SIGKILL))
    assert codes == [-signal.SIGKILL] * 2
    assert checkpoint.read(checkpoint.locate(killed, "last")).step == 4
    assert not (killed / "metrics.json").exists()
    assert train_on_two_ranks(killed, drawn, tmp_path / "c") == [0, 0], logs(tmp_path / "c")
    assert final_state(killed) == final_state(straight)
    assert metrics(killed)["trained"] == metrics(straight)["trained"]
    assert steps_logged(killed) == steps_logged(straight)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, drawn):
    """Return the final state of one process that was left alone."""
    folder = tmp_path_factory.mktemp("straight")
    assert train_alone(folder, drawn, folder.with_suffix(".log")) == 0
    return final_state(folder)


def test_sigterm_saves_and_ends_with_143_and_the_resumed_run_ends_in_the_same_bits(tmp_path, drawn, straight):
    stopped = tmp_path / "stopped"
    assert train_alone(stopped, drawn, tmp_path / "log", stop=(3, signal.SIGTERM)) == 143
    assert checkpoint.read(checkpoint.locate(stopped, "last")).step == 3
    assert json.loads((stopped / "run.json").read_text())["state"] == "interrupted"
    assert train_alone(stopped, drawn, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert final_state(stopped) == straight


def test_the_comparison_of_final_states_can_fail(tmp_path, drawn, straight):
    run("train", *EVERYTHING_ON, "optim.lr=1.0001e-3", f"data_root={drawn}", f"run_dir={tmp_path}")
    other = final_state(tmp_path)
    assert all(other[part] != straight[part] for part in straight)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 7])
def test_one_process_killed_and_resumed_ends_in_the_same_bits(tmp_path, drawn, straight, step):
    killed = tmp_path / "killed"
    assert train_alone(killed, drawn, tmp_path / "log", stop=(step, signal.SIGKILL)) == -signal.SIGKILL
    assert train_alone(killed, drawn, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert final_state(killed) == straight


@pytest.mark.slow
def test_what_two_ranks_began_one_process_may_end(tmp_path, drawn):
    folder = tmp_path / "run"
    train_on_two_ranks(folder, drawn, tmp_path / "a", stop=(5, signal.SIGKILL))
    assert train_alone(folder, drawn, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert checkpoint.read(checkpoint.locate(folder, "last")).step == STEPS


@pytest.mark.slow
def test_sigterm_to_the_console_command_ends_with_143_and_auto_finishes(tmp_path, drawn):
    folder = tmp_path / "run"
    places = [f"data_root={drawn}", f"run_dir={folder}"]
    endless = ["trainer.epochs=5000", "trainer.eval_every=0", "trainer.save_every=0", "trainer.log_every=1"]
    command = [sys.executable, "-m", "guie.cli.train", *TINY, *endless, *places]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        begun = time.monotonic()
        while not (folder / "metrics.jsonl").exists() and time.monotonic() - begun < 200:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    step = checkpoint.read(checkpoint.locate(folder, "last")).step
    limits = [f"trainer.max_steps={step + 2}"]
    assert run("train", *TINY, *endless, *limits, *places, "resume=auto") == 0
    assert checkpoint.read(checkpoint.locate(folder, "last")).step == step + 2
