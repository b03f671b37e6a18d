"""Where presets are, without Hydra."""

from __future__ import annotations

from pathlib import Path

import guie


def directory() -> Path:
    """Return the folder of presets: beside the package in a wheel, else the checkout's `configs/`."""
    package = Path(guie.__file__).parent
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent.parent / "configs"
