"""A run killed with -9 and taken up again ends in the same bits as one that was left alone."""

import os
import signal

import pytest
import torch
from ranks import fork, logs, run_ranks, start_ranks, wait
from tiny import sam_adamw, settings, task, train

from guie import checkpoint
from guie.train.distributed import World
from guie.train.hooks import Hook
from guie.train.optim import adamw


class Die(Hook):
    """Kill this process after `step` steps, as a power cut would."""

    def __init__(self, step):
        self.step = step

    def tick(self, step):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def options(**changes):
    return settings(**{"save_steps": 2, "ema_decay": 0.9, "clip_norm": 1.0, "warmup": 0.2, **changes})


def one_run(folder, *, die_at=None, seed=0, world=None, optim=adamw, **changes):
    """Train with everything on that has a state; continue where `folder` holds a checkpoint."""
    world = world or World()
    resume = checkpoint.read(folder, "last") if checkpoint.steps(folder) else None
    hooks = [Die(die_at)] if die_at else []
    train(
        task(seed, world, norm=True, dropout=0.3, optim=optim),
        options(**changes),
        folder=folder,
        world=world,
        hooks=hooks,
        resume=resume,
        seed=seed,
    )


def final_hashes(folder):
    state = checkpoint.read(folder, "last")
    assert state.step == 12
    named = {part: checkpoint.weights_digest(tensors) for part, tensors in state.parts.items()}
    tensors = {}
    checkpoint._pack(state.training["optimizer"], tensors, "")
    return named | {"optimizer": checkpoint.weights_digest(tensors)}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    one_run(folder)
    return final_hashes(folder)


@pytest.mark.parametrize("die_at", [3, 7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(tmp_path, straight, die_at):
    pid = fork(lambda: one_run(tmp_path / "c", die_at=die_at), tmp_path / "log")
    assert wait(pid) == -signal.SIGKILL
    one_run(tmp_path / "c")
    assert final_hashes(tmp_path / "c") == straight


RECIPES = {
    "SAM and the uniform average": {"optim": sam_adamw, "ema_decay": 0.0, "uniform_from": 4},
    "backbone later, head locked then": {"unfreeze_at": 0.4, "unfreeze_warmup": 0.3, "freeze_head": True},
    "one cycle": {"schedule": "one_cycle", "momentum_range": (0.85, 0.95)},
}


@pytest.mark.parametrize(
    ("recipe", "die_at"),
    [
        ("SAM and the uniform average", 7),
        pytest.param("SAM and the uniform average", 3, marks=pytest.mark.slow),
        pytest.param("backbone later, head locked then", 3, marks=pytest.mark.slow),
        ("backbone later, head locked then", 7),
        pytest.param("one cycle", 5, marks=pytest.mark.slow),
    ],
)
def test_a_killed_and_resumed_run_of_each_recipe_ends_in_the_same_bits(tmp_path, recipe, die_at):
    one_run(tmp_path / "straight", **RECIPES[recipe])
    pid = fork(lambda: one_run(tmp_path / "c", die_at=die_at, **RECIPES[recipe]), tmp_path / "log")
    assert wait(pid) == -signal.SIGKILL
    one_run(tmp_path / "c", **RECIPES[recipe])
    assert final_hashes(tmp_path / "c") == final_hashes(tmp_path / "straight")


def test_the_hash_comparison_can_fail(tmp_path, straight):
    pid = fork(lambda: one_run(tmp_path / "c", die_at=7), tmp_path / "log")
    assert wait(pid) == -signal.SIGKILL
    one_run(tmp_path / "c", seed=1)
    assert final_hashes(tmp_path / "c")["embedder"] != straight["embedder"]


@pytest.mark.parametrize("recipe", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES)])
def test_two_ranks_killed_and_resumed_end_in_the_same_bits_and_may_continue_as_one(tmp_path, recipe):
    changes = RECIPES[recipe] if recipe else {}

    def whole(world):
        one_run(tmp_path / "straight", world=world, **changes)

    def killed(world):
        one_run(tmp_path / "killed", world=world, die_at=7, **changes)

    def resumed(world):
        one_run(tmp_path / "killed", world=world, **changes)

    assert run_ranks(2, whole, tmp_path / "a") == [0, 0], logs(tmp_path / "a")
    pids = start_ranks(2, killed, tmp_path / "b")
    assert wait(pids[0]) == -signal.SIGKILL
    assert wait(pids[1]) != 0
    assert checkpoint.read(tmp_path / "killed", "last").step == 6
    copy_of(tmp_path / "killed", tmp_path / "alone")
    assert run_ranks(2, resumed, tmp_path / "c") == [0, 0], logs(tmp_path / "c")
    assert final_hashes(tmp_path / "killed") == final_hashes(tmp_path / "straight")
    one_run(tmp_path / "alone", **changes)  # another world size: the same global batches in the same order
    assert checkpoint.read(tmp_path / "alone", "last").step == 12


def copy_of(source, target):
    import shutil

    shutil.copytree(source, target)


def test_another_world_size_gives_the_same_weights_where_nothing_is_per_rank(tmp_path):
    """In float64, without dropout or batch statistics, what 1 rank began 2 ranks end as 1 would have."""

    def continued(world):
        state = checkpoint.read(tmp_path / "part", "last")
        train(
            task(0, world, dtype=torch.float64),
            settings(),
            folder=tmp_path / "two",
            world=world,
            resume=state,
        )

    train(task(dtype=torch.float64), settings(), folder=tmp_path / "one")
    part = task(dtype=torch.float64)
    train(part, settings(save_steps=5, keep=9), folder=tmp_path / "all")
    copy_of(tmp_path / "all" / "step_000005", tmp_path / "part" / "step_000005")
    assert run_ranks(2, continued, tmp_path / "ranks") == [0, 0], logs(tmp_path / "ranks")
    one = checkpoint.read(tmp_path / "one", "last").parts["embedder"]
    two = checkpoint.read(tmp_path / "two", "last").parts["embedder"]
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-9
