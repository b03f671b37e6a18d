"""The folder of one run: who may write there, what it holds, how it is taken up again.

config.yaml labels.parquet checkpoints/ metrics.jsonl metrics.json log.txt report.html
run.json    {"state": "running" | "interrupted" | "finished"}: what tells a run folder from any other
run.lock    {"host", "pid", "born"} of the process that writes here now
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from guie import checkpoint, huggingface
from guie.durable import replace_file
from guie.errors import UserError

# What may differ between a run and its continuation: how long and where it runs and who is told of it, not
# what it computes.
LIMITS = ("trainer.max_steps", "trainer.epochs")
MAY_DIFFER = {*LIMITS, "run_dir", "resume", "data_root", "hw.workers", "hw.threads", "hw.shard"}
TEACHER = "teacher.path"  # where it lies, below any head; that it is the same one is known by its space id

RunState = Literal["running", "interrupted", "finished"]


@dataclass(frozen=True)
class RunFolder:
    """A folder that this process holds the lock of; `start` is the checkpoint to continue from."""

    path: Path
    start: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """Return where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Return the file of measurements, one JSON line each."""
        return self.path / "metrics.jsonl"

    def mark(self, state: RunState) -> None:
        """Say how the run stands."""
        write_json(self.path / "run.json", {"format": 1, "state": state})

    def release(self) -> None:
        """Give up the lock."""
        lock = self.path / "run.lock"
        if _owner(lock) == _myself():
            lock.unlink(missing_ok=True)


@contextmanager
def opened(path: Path, config: Mapping[str, Any], resume: str = "never") -> Iterator[RunFolder]:
    """Hold `path` for one run: create it or take it up again as `resume` says, locked meanwhile.

    `resume` is `never` (the folder must be new), `auto` (continue where it was interrupted, else begin) or
    the path of a checkpoint to continue from. `config` is plain; it is compared with the one in the folder,
    or in the checkpoint named, and written to config.yaml. Leaving by an exception marks the run interrupted;
    the caller marks it finished.

    Raises UserError for a folder that is finished, foreign or in use, for an interrupted one under `never`,
    and for changed keys, which it names.
    """
    with held(path):
        folder = RunFolder(path, _decide(path, config, resume))
        _prepare(folder, config)
        yield folder


def check(path: Path, config: Mapping[str, Any], resume: str = "never") -> None:
    """Raise UserError for what `opened` would refuse, but for a folder in use; nothing is made."""
    _refuse_foreign(path)
    _decide(path, config, resume)


@contextmanager
def held(path: Path) -> Iterator[RunFolder]:
    """Hold the lock of `path`, made where it is missing; a run that was left running becomes interrupted.

    Raises UserError for a folder that is foreign or in use.
    """
    _refuse_foreign(path)
    path.mkdir(parents=True, exist_ok=True)
    take_lock(path)
    folder = RunFolder(path)
    try:
        yield folder
    finally:
        if start_state(path) == "running":
            folder.mark("interrupted")
        folder.release()


def refuse_begun(path: Path, resume: str) -> None:
    """Raise UserError for a run that has begun and is not to be taken up."""
    state = start_state(path)
    if state is not None and resume == "never":
        raise UserError(_refusal(path, state))


def _decide(path: Path, config: Mapping[str, Any], resume: str) -> Path | None:
    """Return the checkpoint to start from, or None to begin."""
    refuse_begun(path, resume)
    state = start_state(path)
    if resume not in ("never", "auto"):
        start = checkpoint.locate(Path(resume), "last")
        if huggingface.is_published(start):
            raise UserError(
                f"resume: {resume} holds weights alone; accepted: ckpt={resume} to start from them"
            )
        refuse_changes(checkpoint.read(start, parts=()).meta.get("config", {}), config, f"resume={resume}")
        return start
    if state is None:
        return None
    changed = refuse_changes(read_config(path), config, f"run_dir={path}")
    if state == "finished" and not set(changed) & set(LIMITS):
        raise UserError(f"run_dir: {path} is finished; accepted: a new folder, or a higher trainer.epochs")
    folder = path / "checkpoints"
    return checkpoint.locate(path, "last") if checkpoint.steps(folder) else None


def _refusal(path: Path, state: RunState) -> str:
    if state == "finished":
        return f"run_dir: {path} holds a finished run; accepted: a folder that is new or empty"
    return f"run_dir: {path} holds an interrupted run; continue it with resume=auto, or name a new folder"


def _prepare(folder: RunFolder, config: Mapping[str, Any]) -> None:
    truncate(folder.metrics, checkpoint.step_of(folder.start) if folder.start else 0)
    write_config(folder.path, config)
    folder.mark("running")


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"run_dir: {path} is a file; accepted: a folder that is new or empty")
    if not path.exists() or (path / "run.json").exists() or (path / "run.lock").exists():
        return
    others = sorted(child.name for child in path.iterdir())
    if others:
        shown = ", ".join(others[:3])
        raise UserError(
            f"run_dir: {path} is not a run folder (it holds {shown}); accepted: a new or empty folder"
        )


def start_state(path: Path) -> RunState | None:
    """Return how the run in `path` stands by its own word, None where there is none."""
    try:
        state = json.loads((path / "run.json").read_bytes())["state"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "interrupted"
    return state if state in ("running", "interrupted", "finished") else "interrupted"


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write `config` to config.yaml of the run in `path`."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    replace_file(path / "config.yaml", text.encode())


def read_config(path: Path) -> dict[str, Any]:
    """Return the plain config of the run in `path`; raises UserError where it cannot be read."""
    try:
        found = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}/config.yaml: cannot be read ({str(error).splitlines()[0]})") from error
    return found if isinstance(found, dict) else {}


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> list[str]:
    """Return the keys that differ; raises UserError naming those that may not."""
    changed = changed_keys(old, new)
    refused = [key for key in changed if not _may_differ(key)]
    if refused:
        before, after = flat(old), flat(new)
        shown = "; ".join(f"{k}: was {before.get(k)!r}, now {after.get(k)!r}" for k in refused[:5])
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise UserError(f"{where}: {shown}{more}; accepted: the same config but for {', '.join(LIMITS)}")
    return changed


def _may_differ(key: str) -> bool:
    return key in MAY_DIFFER or key.endswith(f".{TEACHER}") or key.partition(".")[0] == "tracker"


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys whose values differ, sorted."""
    before, after = flat(old), flat(new)
    absent = object()
    return sorted(k for k in before.keys() | after.keys() if before.get(k, absent) != after.get(k, absent))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one of dotted keys; tuples count as lists, as YAML writes them."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def take_lock(path: Path) -> None:
    """Make this process the one that writes in `path`; a dead process's lock on this host is taken over.

    Raises UserError naming host and pid where another process holds it. Not released by a crash: the next
    taker finds the process gone.
    """
    with (path / "run.lock").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # held for a moment only: two takers of a stale lock come one by one
        owner = _owner(path / "run.lock")
        if owner and owner != _myself() and _may_live(owner):
            raise UserError(
                f"run_dir: {path} is in use by process {owner.get('pid')} on {owner.get('host')}; "
                f"accepted: another folder (if that process is gone, delete {path / 'run.lock'})"
            )
        file.truncate(0)
        file.write(json.dumps(_myself()).encode())


def _owner(lock: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(lock.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _myself() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}


def _may_live(owner: Mapping[str, Any]) -> bool:
    if owner.get("host") != socket.gethostname():
        return True
    pid = int(owner.get("pid", 0))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _born(pid) == owner.get("born")


def _born(pid: int) -> str:
    """Return when a process began, in the kernel's ticks: a number used again by another one differs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if fields[0] in "ZX" else fields[19]


def truncate(path: Path, step: int) -> None:
    """Drop what `metrics.jsonl` says of later steps than `step`, and a last line that a crash cut short.

    The resumed run will write those steps again.
    """
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def write_labels(path: Path, names: Sequence[str], **columns: Sequence[Any]) -> None:
    """Write `labels.parquet` into `path`: `id` 0 .. C-1, `label`, and any further columns of length C."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": pa.array(range(len(names)), pa.int64()), "label": list(names), **columns})
    temporary = path / ".labels.parquet.new"
    pq.write_table(table, temporary)
    temporary.replace(path / "labels.parquet")


def read_labels(path: Path) -> list[dict[str, Any]] | None:
    """Return the rows of `labels.parquet` in order of id, None where there is none."""
    import pyarrow.parquet as pq

    file = path / "labels.parquet"
    return pq.read_table(file).sort_by("id").to_pylist() if file.exists() else None


@contextmanager
def log_file(path: Path, name: str = "guie") -> Iterator[logging.Logger]:
    """Send what the logger `name` says to `path`/log.txt, too, for as long as the block lasts."""
    logger = logging.getLogger(name)
    handler = logging.FileHandler(path / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    former = logger.level
    logger.setLevel(min(former, logging.INFO) if former else logging.INFO)
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former)
        handler.close()


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` in one step."""
    replace_file(path, json.dumps(value, indent=1).encode())


def read_json(path: Path) -> Any:
    """Return what `write_json` wrote."""
    return json.loads(path.read_bytes())
