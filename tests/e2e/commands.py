"""The commands as a shell sees them, run in this process: importing torch and timm again costs seconds."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from guie.cli import eval as evaluation
from guie.cli import export as exporting
from guie.cli import train as training
from guie.config.compose import composed
from guie.export.torchscript import torchscript_allowed

CLI = {"train": training, "eval": evaluation, "export": exporting}
TOY = [f"{key}.toy.{name}=4" for key in ("dataset", "eval_on") for name in ("instances", "views")]
SMALL = [
    "backbone.image_px=32",
    "trainer.epochs=2",
    "trainer.eval_every=1",
    "trainer.save_every=1",
    "trainer.batch_size=16",
    "trainer.refit_shrinkage=1.0",
    "tracker=none",
    "hw.threads=1",
    "hw.workers=0",
]
TINY = [*TOY, *SMALL]


def run(command: str, *overrides: str) -> int:
    """Run a command on its checked config and return its exit code; UserError comes through."""
    with quiet_afterwards():
        try:
            CLI[command].run(composed(command, list(overrides)))
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def console(monkeypatch, capsys, command: str, *arguments: str) -> tuple[int, list[str]]:
    """Run a command as its console script does; return the exit code and what it said on standard error."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("GUIE_DEBUG", raising=False)
    monkeypatch.setattr(sys, "argv", [f"guie-{command}", *arguments])
    capsys.readouterr()
    code = 0
    with quiet_afterwards():
        try:
            CLI[command].main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, capsys.readouterr().err.splitlines()


@contextmanager
def quiet_afterwards() -> Iterator[None]:
    """Leave the project's logger as it was: commands make it speak to standard error."""
    log = logging.getLogger("guie")
    before = (list(log.handlers), log.level, log.propagate)
    log.handlers = []
    try:
        yield
    finally:
        log.handlers, log.level, log.propagate = before


def loaded(path: Path) -> torch.jit.ScriptModule:
    """Return an exported file as a program without guie would load it."""
    with torchscript_allowed():
        return torch.jit.load(path)


def metrics(folder: Path) -> dict:
    """Return metrics.json."""
    return json.loads((folder / "metrics.json").read_text())


def sha256(path: Path) -> str:
    """Return the file's hash by other code than the checkpoint's."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
