"""Stages of a run: each is the command line of the whole run with a few values changed, composed and checked.

A stage holds overrides as the command line has them: `head: cosface` chooses from a group,
`head.margin: 0.2` or `head: {margin: 0.2}` sets a value. In order of strength: the preset, its stage, the
command line, and there a stage of `stages={...}`, then `stages.<name>.<key>=<value>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from guie.config.schema import GROUPS
from guie.errors import UserError

NAME = re.compile(r"\w[\w-]*")
OVERRIDE = re.compile(r"\+{0,2}stages\.([^.=]+)\.(.+)")
OF_THE_RUN = ("stages", "only", "run_dir", "resume", "ckpt", "device", "preset")

OfStages = Mapping[str, Sequence[str]]


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return what is said of the whole run, and by stage what `stages.<name>.<key>=<value>` says."""
    whole: list[str] = []
    of_stages: dict[str, list[str]] = {}
    for argument in arguments:
        match = OVERRIDE.fullmatch(argument)
        if match:
            of_stages.setdefault(match.group(1), []).append(match.group(2))
        else:
            whole.append(argument)
    return whole, of_stages


def written(stages: Any, of_stages: OfStages) -> dict[str, dict[str, Any]]:
    """Return each stage's changes by dotted key, those of the command line last, all names checked.

    Raises UserError for a name that is no folder's, or that only the command line knows.
    """
    if not isinstance(stages, Mapping | None):
        raise UserError(f"stages: {stages!r}; accepted: a dict of stages by name, or null")
    found = {str(name): dict(changes or {}) for name, changes in (stages or {}).items()}
    for name in [*found, *of_stages]:
        if not NAME.fullmatch(name):
            raise UserError(f"stages: '{name}'; accepted: a name of letters, digits, '_' and '-'")
        if name not in found:
            raise UserError(f"stages.{name}: there is no such stage; accepted: {', '.join(found) or 'none'}")
        found[name] |= dict(map(_parsed, of_stages.get(name, ())))
    for name, changes in found.items():
        for key in changes:
            if str(key).split(".")[0] in OF_THE_RUN:
                raise UserError(f"stages.{name}.{key}: belongs to the whole run; accepted: {key}=...")
    return found


def _parsed(argument: str) -> tuple[str, Any]:
    key, _, value = argument.partition("=")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value


def combined(changes: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return a stage's changes and the command line of the run, the stronger of them last."""
    on_command_line = any(override.lstrip("+").startswith("stages=") for override in overrides)
    own = [o for o in overrides if not o.lstrip("+~").startswith(("stages=", "only="))]
    return [*own, *as_overrides(changes)] if on_command_line else [*as_overrides(changes), *own]


def as_overrides(changes: Mapping[str, Any]) -> list[str]:
    """Return a stage's changes, but for `init`, as arguments of a command line."""
    found = []
    for key, value in changes.items():
        if isinstance(value, Mapping) and key in (*GROUPS, "eval_on"):
            found += [f"{key}.{inner}={_literal(item)}" for inner, item in value.items()]
        elif key != "init":
            found.append(f"{key}={_literal(value)}")
    return found


def _literal(value: Any) -> str:
    """Return a value as Hydra's grammar has it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def check_inits(stages: Mapping[str, Mapping[str, Any]], epochs: Mapping[str, int]) -> None:
    """Refuse an `init` that no checkpoint of the stage before can be; `epochs` says how long each trains."""
    names = list(stages)
    for place, name in enumerate(names):
        if "init" not in stages[name]:
            continue
        init = stages[name]["init"]
        if place == 0:
            raise UserError(f"stages.{name}.init: {init!r}; nothing was before it; accepted: ckpt=PATH")
        before = names[place - 1]
        is_number = isinstance(init, int | float) and not isinstance(init, bool)
        known = is_number or init in ("last", "best") or re.fullmatch(r"step_\d{6,}", str(init))
        if not known or (is_number and not 0 < init <= epochs[before]):
            raise UserError(
                f"stages.{name}.init: {init!r}; accepted: last, best, step_<number>, "
                f"or how many epochs of stage {before} (up to {epochs[before]})"
            )
