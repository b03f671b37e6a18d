"""One run on several processes of this machine: what torchrun would start, with the exit code of the run.

torchrun itself serves several nodes (docs/cluster.md). On one machine it is not used: it ends with 1 whatever
the run said, tells each failure once per rank, and by default kills ranks that take half a minute to save.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from guie.errors import UserError

TOLD = 2  # the exit code of a run that named its mistake in one line
GRACE_S = 60.0


class Placement(NamedTuple):
    """Which of `size` processes this is, and of its machine; where they meet (None: MASTER_ADDR says so)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    meeting: str | None = None


def placement(environment: Mapping[str, str] = os.environ) -> Placement:
    """Return this process's place by torchrun's variables (WORLD_SIZE, RANK, ...), else by those of srun.

    A SLURM batch script outside of srun is alone, though it sees the number of tasks, too. SLURM's tasks meet
    at MASTER_ADDR and MASTER_PORT where given, else on the first node, at a port made of the job's number.
    Raises UserError for a place that cannot be.
    """
    if "WORLD_SIZE" in environment:
        size = _number(environment, "WORLD_SIZE")
        if size == 1:
            return Placement()
        return _checked(Placement(_number(environment, "RANK"), size, _number(environment, "LOCAL_RANK")))
    slurm = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    in_batch_script = "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
    if in_batch_script or not all(name in environment for name in slurm):
        return Placement()
    rank, size, local_rank = (_number(environment, name) for name in slurm)
    size = int(environment.get("SLURM_STEP_NUM_TASKS", size))  # a step may be smaller than the job
    return _checked(Placement(rank, size, local_rank, _slurm_meeting(environment)))


@dataclass(frozen=True)
class Launch:
    """How many processes of this machine share a run, or which run side by side. Config group `launch`.

    `gpus`: one process for each of so many GPUs. `processes`: so many on the CPU. `slots`, with --multirun:
    lists of GPUs (of cores where there is no GPU), each of which has one job of the sweep at a time.
    """

    gpus: int | None = None
    processes: int | None = None
    slots: list[list[int]] | None = None

    def num_ranks(self, device: str, num_gpus: int) -> int:
        """Return how many processes to start, 1 for this one alone; `num_gpus` are visible here.

        Raises UserError for more GPUs than there are, and for processes that would share one.
        """
        for name in ("gpus", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"launch.{name}: {value}; accepted: 1 or more, or null")
        if self.gpus and self.processes:
            raise UserError("launch.processes: given beside launch.gpus; accepted: one of the two")
        if self.gpus and device == "cpu":
            raise UserError(f"launch.gpus: {self.gpus} with device=cpu; accepted: launch.processes=N")
        if self.gpus and self.gpus > num_gpus:
            accepted = f"1 to {num_gpus}" if num_gpus else "launch.processes=N device=cpu"
            raise UserError(f"launch.gpus: {self.gpus}, but {num_gpus} visible here; accepted: {accepted}")
        if (self.processes or 1) > 1 and device != "cpu" and num_gpus:
            accepted = "launch.gpus=N, or device=cpu"
            raise UserError(f"launch.processes: {self.processes} beside a GPU; accepted: {accepted}")
        return self.gpus or self.processes or 1


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None or not value.isdecimal():
        started = "processes that torchrun, srun or launch.gpus=N started; alone: no WORLD_SIZE"
        raise UserError(f"{name}: {value!r}; accepted: a number, as in {started}")
    return int(value)


def _checked(found: Placement) -> Placement:
    if not found.rank < found.size:
        raise UserError(f"RANK: {found.rank} of {found.size} processes; accepted: 0 to {found.size - 1}")
    return found


def _slurm_meeting(environment: Mapping[str, str]) -> str | None:
    """Return host:port, None where MASTER_ADDR is given."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    if "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        return None
    host = environment.get("MASTER_ADDR", first_host(nodes))
    port = environment.get("MASTER_PORT", str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000))
    return f"{host}:{port}"


def first_host(nodes: str) -> str:
    """Return the first of SLURM's short list of hosts: gpu007 for 'gpu[007-009,012],big1'."""
    found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    if found is None:
        raise UserError(f"SLURM_JOB_NODELIST: {nodes!r}; accepted: hosts, as in gpu[007-009,012],big1")
    return "".join(part or "" for part in found.groups())


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command line of guie-train with `arguments`, in this Python."""
    return [sys.executable, "-m", "guie.cli.train", *arguments]


def run_ranks(words: Sequence[str], num_ranks: int, stderr: TextIO | None = None) -> int:
    """Run the command `words` as `num_ranks` ranks of this machine and return the exit code of the run.

    Rank 0 speaks here; of the others the last lines are shown where one failed first, on `stderr`. SIGINT and
    SIGTERM are passed to all. When one has failed, the others have a minute before they are killed.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_ranks)}
    threads = max(1, len(cores()) // num_ranks)
    shared = {"OMP_NUM_THREADS": str(threads), **os.environ, **meeting, "LOCAL_WORLD_SIZE": str(num_ranks)}
    with tempfile.TemporaryDirectory() as folder, forwarded() as children:
        logs = [Path(folder) / f"rank{rank}" for rank in range(num_ranks)]
        for rank, log in enumerate(logs):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(started(words, own, log if rank else None))
        if children.asked:  # while some were not there yet
            children(children.asked)
        first = _first_failure(children)
        if first is None:
            return 0
        if first and children[0].returncode != TOLD:
            lines = logs[first].read_text(errors="replace").splitlines()[-5:]
            _tell(first, children[first].returncode, lines, stderr or sys.stderr)
        return exit_code(children[first].returncode)


def started(words: Sequence[str], environment: Mapping[str, str], log: Path | None) -> subprocess.Popen:
    """Return the started process, in a session of its own: a Ctrl-C reaches it once, through us."""
    if log is None:
        return subprocess.Popen(words, env=environment, start_new_session=True)
    with log.open("ab") as file:
        return subprocess.Popen(words, env=environment, start_new_session=True, stdout=file, stderr=file)


class Children(list[subprocess.Popen]):
    """Processes that get the signals of this one; `asked` is the last, 0 before any."""

    asked = 0

    def __call__(self, number: int, frame: Any = None) -> None:
        """Handle a signal: pass it to those that run."""
        self.asked = number
        for child in self:
            if child.poll() is None:
                child.send_signal(number)


@contextmanager
def forwarded() -> Iterator[Children]:
    """Lend a list of children and pass SIGINT and SIGTERM to them; none of them outlives the block."""
    children = Children()
    former = {number: signal.signal(number, children) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield children
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for number, handler in former.items():
            signal.signal(number, handler)


def _first_failure(children: Sequence[subprocess.Popen]) -> int | None:
    """Wait for all ranks; return which failed first (of several the lowest), None where all are well."""
    first, since = None, 0.0
    while any(child.poll() is None for child in children):
        failed = [rank for rank, child in enumerate(children) if child.poll()]
        if failed and first is None:
            first, since = failed[0], time.monotonic()
        if first is not None and time.monotonic() - since > GRACE_S:
            for child in children:
                child.kill()
        time.sleep(0.05)
    failed = [rank for rank, child in enumerate(children) if child.returncode]
    return first if first is not None else next(iter(failed), None)


def _tell(rank: int, code: int, lines: Sequence[str], stderr: TextIO) -> None:
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    print(f"rank {rank} ended first, with {ended}", *lines, sep="\n", file=stderr)


def exit_code(returncode: int) -> int:
    """Return what a shell would say: 128 + n for a process that signal n ended."""
    return 128 - returncode if returncode < 0 else returncode


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ranks_here(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many ranks of the run are on this machine, by torchrun's variable or srun's."""
    if "LOCAL_WORLD_SIZE" in environment:
        return max(1, _number(environment, "LOCAL_WORLD_SIZE"))
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))  # 4(x2),3: 4, 4 and 3
    return int(tasks.group()) if tasks and placement(environment).size > 1 else 1


def cores() -> Sequence[int]:
    """Return the cores that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)
