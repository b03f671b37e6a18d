"""One tiny run, trained once, that several files look at."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))  # ranks.py

from commands import TINY, run


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """Return the data root where the tiny toy set is drawn and cached."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, drawn) -> SimpleNamespace:
    """Train once on the tiny toy set; `folder`, `data` and `code`, the exit code."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    code = run("train", *TINY, f"data_root={drawn}", f"run_dir={folder}")
    return SimpleNamespace(folder=folder, data=drawn, code=code)
