"""The jobs of a sweep side by side: one process per slot, finished ones skipped, results in one table.

    <sweep>/jobs.json     {the job's overrides: its number}: a job keeps its folder when others join
    <sweep>/<number>/     its run folder; <number>.log what it said
    <sweep>/results.csv   a row for each end of a job: overrides, status, seconds, metrics

(The tuning command of the 2019 landmark system did this with a process per free set of GPUs.)
"""

from __future__ import annotations

import csv
import io
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guie import launch, runfolder
from guie.durable import replace_file
from guie.errors import UserError

log = logging.getLogger("guie")

METRICS = ("mP@5", "R@1", "mAP@100", "MAP@R")
Command = Callable[[Sequence[str]], list[str]]


@dataclass
class Job:
    """One run of a sweep; `slot` and `process` while it runs."""

    overrides: Sequence[str]
    folder: Path
    slot: Sequence[int] = ()
    process: subprocess.Popen | None = None
    began: float = 0.0

    @property
    def said(self) -> str:
        """Return the job as its owner wrote it."""
        return f"{self.folder.name} ({' '.join(_own(self.overrides))})"

    @property
    def log(self) -> Path:
        """Return where its output goes."""
        return self.folder.with_name(f"{self.folder.name}.log")


def run_jobs(
    jobs: Sequence[Sequence[str]],
    folder: Path,
    slots: Sequence[Sequence[int]],
    num_gpus: int,
    command: Command = launch.command,
) -> int:
    """Run each job (its overrides) in the next free slot; return the exit code: 0, 1 where one failed.

    A slot names GPUs as this process counts them; with `num_gpus` 0, cores. Asked to stop by a signal, jobs
    that run are asked, too, and no other begins: 130 or 143. Raises UserError for slots that cannot be, and
    where another sweep uses `folder`.
    """
    check_slots(slots, num_gpus)
    folder.mkdir(parents=True, exist_ok=True)
    runfolder.take_lock(folder)
    try:
        known = numbered(jobs, folder)
        waiting = [job for job in known if not _is_finished(job)]
        log.info("sweep: %s, %d jobs, %d finished before", folder, len(jobs), len(jobs) - len(waiting))
        _make_up_rows([job for job in known if _is_finished(job)], folder / "results.csv")
        with launch.forwarded() as children:
            failed = _work_off(waiting, slots, num_gpus, command, children)
        for job in failed:
            log.info("failed: %s: %s", job.said, _last_line(job.log))
        log.info("results: %s", folder / "results.csv")
        return 128 + children.asked if children.asked else int(bool(failed))
    finally:
        runfolder.RunFolder(folder).release()


def check_slots(slots: Sequence[Sequence[int]], num_gpus: int) -> None:
    """Raise UserError for a slot that is empty or names what is not there."""
    there = range(num_gpus) if num_gpus else launch.cores()
    for slot in slots:
        if not isinstance(slot, list | tuple) or not slot or not all(n in there for n in slot):
            kind = "GPUs" if num_gpus else "cores"
            accepted = f"lists of {kind} among {', '.join(map(str, there))}, as in [[0],[1]]"
            raise UserError(f"launch.slots: {slot!r}; accepted: {accepted}")


def numbered(jobs: Sequence[Sequence[str]], folder: Path) -> list[Job]:
    """Return the jobs with their folders: those known from an earlier start keep theirs."""
    path = folder / "jobs.json"
    known: dict[str, int] = runfolder.read_json(path) if path.exists() else {}
    for overrides in jobs:
        known.setdefault(_name(overrides), len(known))
    runfolder.write_json(path, known)
    return [Job(overrides, folder / str(known[_name(overrides)])) for overrides in jobs]


def same_sweep(jobs: Sequence[Sequence[str]], below: Path) -> Path | None:
    """Return the newest sweep folder in `below` that holds exactly these jobs."""
    wanted = {_name(overrides) for overrides in jobs}
    found = [path for path in below.glob("*/jobs.json") if set(runfolder.read_json(path)) == wanted]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def _own(overrides: Sequence[str]) -> list[str]:
    """Return what makes a job the one it is: not how it is launched."""
    return [word for word in overrides if not word.startswith(("launch.", "hydra.", "-"))]


def _name(overrides: Sequence[str]) -> str:
    return " ".join(_own(overrides))


def _is_finished(job: Job) -> bool:
    return runfolder.start_state(job.folder) == "finished"


def _work_off(
    waiting: list[Job],
    slots: Sequence[Sequence[int]],
    num_gpus: int,
    command: Command,
    children: launch.Children,
) -> list[Job]:
    """Keep every slot busy until no job is left; return those that failed."""
    free = list(slots)
    running: list[Job] = []
    failed: list[Job] = []
    while running or (waiting and not children.asked):
        while free and waiting and not children.asked:
            job = waiting.pop(0)
            job.slot = free.pop(0)
            _start(job, num_gpus, command, children)
            running.append(job)
        for job in [job for job in running if job.process and job.process.poll() is not None]:
            running.remove(job)
            free.append(job.slot)
            if _ended(job) != "finished" and not children.asked:
                failed.append(job)
        time.sleep(0.05)
    return failed


def _start(job: Job, num_gpus: int, command: Command, children: launch.Children) -> None:
    words = [word for word in job.overrides if not word.startswith(("launch.", "hydra.sweep", "resume="))]
    words += [f"run_dir={job.folder}", "resume=auto"]
    if num_gpus and len(job.slot) > 1:
        words.append(f"launch.gpus={len(job.slot)}")
    job.began = time.monotonic()
    with _on_cores(() if num_gpus else job.slot):
        environment = {**os.environ, **_confined(job.slot, num_gpus)}
        job.process = launch.started(command(words), environment, job.log)
    children.append(job.process)
    where = "GPU" if num_gpus else "core"
    log.info("started: %s on %s %s", job.said, where, ", ".join(map(str, job.slot)))


def _confined(slot: Sequence[int], num_gpus: int) -> dict[str, str]:
    """Return the variables that keep a job to its slot; GPUs are counted among those visible here."""
    if not num_gpus:
        return {"OMP_NUM_THREADS": str(len(slot))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible[n] for n in slot)}


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Start what is started here on these cores only (none: on any); other systems than Linux leave it."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    former = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, former)


def _ended(job: Job) -> str:
    """Write the job's row and say how it ended: finished, interrupted (asked to stop) or failed."""
    assert job.process is not None
    code = launch.exit_code(job.process.returncode)
    stopped = code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    status = "finished" if code == 0 else "interrupted" if stopped else "failed"
    seconds = time.monotonic() - job.began
    found = _metrics(job.folder) if status == "finished" else {}
    end = {"status": status, "exit_code": str(code), "seconds": f"{seconds:.1f}"}
    append_row(job.folder.parent / "results.csv", _row(job, end, found))
    shown = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
    log.info("%s: %s after %.0f s  %s", status, job.said, seconds, shown)
    return status


def _row(job: Job, end: Mapping[str, str], found: Mapping[str, float]) -> dict[str, str]:
    overrides = dict(word.partition("=")[::2] for word in _own(job.overrides))
    numbers = {name: f"{value:.6g}" for name, value in found.items()}
    return {"job": job.folder.name, **overrides, **end, **numbers}


def _make_up_rows(finished: Sequence[Job], path: Path) -> None:
    """Write the rows of jobs that finished after their sweep was killed."""
    there = {row["job"] for row in _rows(path) if row["status"] == "finished"}
    for job in finished:
        if job.folder.name not in there:
            end = {"status": "finished", "exit_code": "0", "seconds": ""}
            append_row(path, _row(job, end, _metrics(job.folder)))


def _metrics(folder: Path) -> dict[str, float]:
    """Return the numbers of a finished run on the merged index, and one-shot errors where there are any."""
    try:
        trained = runfolder.read_json(folder / "metrics.json")["trained"]
    except (OSError, ValueError, KeyError):
        return {}
    merged = trained.get("merged", {})
    found = {name: merged[name] for name in METRICS if name in merged}
    errors = {name: part["one_shot_error"] for name, part in trained.items() if "one_shot_error" in part}
    return found | {f"{name} one_shot_error": v for name, v in errors.items() if name != "merged"}


def append_row(path: Path, row: Mapping[str, str]) -> None:
    """Append a row to a csv file; columns that it lacks are added to the rows that are there."""
    rows = _rows(path)
    columns = list(dict.fromkeys(name for each in (*rows, row) for name in each))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, row])
    replace_file(path, text.getvalue().encode())


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.exists() else []


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return lines[-1] if lines else f"it said nothing ({path})"
