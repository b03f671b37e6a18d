"""Several gloo ranks forked from one parent that has imported torch: importing it again costs seconds."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from guie.train.distributed import World


def fork(work: Callable[[], None], log: Path) -> int:
    """Run `work` in a forked child and return its process id; what it prints goes to `log`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks beside threads
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        torch.set_num_threads(1)
        work()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Return the exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start_ranks(size: int, work: Callable[[World], None], folder: Path) -> list[int]:
    """Fork `size` ranks, each joined to the others, and return their process ids."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)

    def one(rank: int) -> Callable[[], None]:
        def joined() -> None:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
            work(World(rank, size))
            dist.destroy_process_group()

        return joined

    return [fork(one(rank), folder / f"rank{rank}.log") for rank in range(size)]


def run_ranks(size: int, work: Callable[[World], None], folder: Path) -> list[int]:
    """Run `size` ranks to their end and return their exit codes; their output is in folder/rank*.log."""
    return [wait(pid) for pid in start_ranks(size, work, folder)]


def logs(folder: Path) -> str:
    """Return what the ranks printed."""
    return "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("rank*.log")))
