"""Two ranks killed in mid-epoch and resumed, beside two that never stopped."""

import signal
from pathlib import Path

from ranks import logs, run_ranks, start_ranks, wait
from test_resume import Die

from guie import checkpoint


def killed_and_straight(folder, trained) -> tuple[Path, Path]:
    """Return the checkpoints of both; `trained(folder, world, **options)` trains 20 steps, saving by two."""
    killed, straight = folder / "killed", folder / "straight"

    def die(world):
        trained(killed, world, hooks=[Die(11)], save_steps=2)

    def resume(world):
        trained(killed, world, resume=checkpoint.read(killed, "last"), save_steps=2)

    def go_through(world):
        trained(straight, world, save_steps=2)

    pids = start_ranks(2, die, folder / "a")
    assert wait(pids[0]) == -signal.SIGKILL
    assert wait(pids[1]) != 0
    assert checkpoint.read(killed, "last").step == 10
    assert run_ranks(2, resume, folder / "b") == [0, 0], logs(folder / "b")
    assert run_ranks(2, go_through, folder / "c") == [0, 0], logs(folder / "c")
    return killed, straight
