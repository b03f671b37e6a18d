"""Fixtures that more than one test file uses."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real pictures and reference outputs; skip where it is absent."""
    folder = Path(os.environ.get("GUIE_SHARED", PROJECT.parent / "shared"))
    if not (folder / "data" / "protocol.csv").exists():
        pytest.skip(f"no shared data at {folder} (set GUIE_SHARED)")
    return folder
