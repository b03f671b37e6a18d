"""The jobs behind a command line, and the command line of the job that runs: to start other processes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from guie.errors import UserError

# Options of Hydra whose value is the next word.
_WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")

_entered: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Keep the words of the command line as they were entered."""
    _entered[:] = arguments


def jobs(arguments: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job that --multirun asks for, in Hydra's order; none without --multirun.

    Raises UserError for a sweep over an interval, which has no list of jobs.
    """
    if not {"--multirun", "-m"} & set(arguments):
        return []
    parsed = OverridesParser.create().parse_overrides(_overrides(arguments))
    return [[*job, *_beside()] for job in itertools.product(*map(_values, parsed))]


def _overrides(arguments: Sequence[str]) -> list[str]:
    values = {i + 1 for i, word in enumerate(arguments) if word in _WITH_VALUE}
    return [word for i, word in enumerate(arguments) if not word.startswith("-") and i not in values]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise UserError(
            f"{override.input_line}: an interval; accepted with launch.slots: a=1,2 or range(1,4)"
        )
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def again(run_dir: str | None) -> list[str]:
    """Return the words that start the job that runs now in another process, without `launch.*`."""
    own = [word for word in HydraConfig.get().overrides.task if not word.startswith(("launch.", "run_dir="))]
    return [*folders(), *own, *_beside(), *([f"run_dir={run_dir}"] if run_dir else [])]


def folders() -> list[str]:
    """Return the options that name folders of presets, each as one word."""
    joined = []
    for i, word in enumerate(_entered):
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            joined.append(f"--config-dir={value if equals else _entered[i + 1]}")
    return joined


def _beside() -> list[str]:
    """Return what is said of single stages, which Hydra does not see."""
    return [word for word in _entered if word.lstrip("+").startswith("stages.")]


def sweep_folder(arguments: Sequence[str]) -> str | None:
    """Return the folder that hydra.sweep.dir names, None where it names none."""
    key = "hydra.sweep.dir="
    found = [word.removeprefix(key) for word in arguments if word.startswith(key)]
    return found[-1].strip("'\"") if found else None
