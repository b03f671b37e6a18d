"""Which protocol a data set is evaluated by: the one of its name in `configs/protocol`, or the one chosen.

Hydra composes what the command line names, so that it shows in `--cfg job` and can be overridden; for a data
set that only a run or saved embeddings name, its file is read here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from guie.config.folders import directory
from guie.errors import UserError

GROUP, DEFAULT, ALL = "protocol", "retrieval", "all"
_ASKED_BY = {"eval": "dataset", "train": "eval_on"}  # which key names what is evaluated


def placed(command: str, arguments: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return a command line that names the protocol of each data set that it evaluates.

    `dataset=[a,b]` adds `+protocol@protocol.a=..` and so for b; `protocol=NAME` chooses one for all of them,
    and `protocol.key=value` is set in all, `protocol.a.key=value` in one. UserError where there is none.
    """
    if command not in _ASKED_BY or any(argument.startswith(f"+{GROUP}@") for argument in arguments):
        return list(arguments)
    chosen = _named(_ASKED_BY[command], arguments)
    own = next((a.partition("=")[2] for a in arguments if a.startswith(f"{GROUP}=")), None)
    values = [a for a in arguments if a.startswith(f"{GROUP}.")]
    if not chosen and values and not own:
        raise UserError(
            f"{values[0].partition('=')[0]}: of no protocol; accepted with {_ASKED_BY[command]}=NAME or "
            f"{GROUP}=NAME"
        )
    names = chosen or ([ALL] if own else [])
    rest = [a for a in arguments if not a.startswith((f"{GROUP}.", f"{GROUP}="))]
    choices = [f"+{GROUP}@{GROUP}.{name}={own or official(name, folders)}" for name in names]
    return [*choices, *(value for each in values for value in _of_each(each, names)), *rest]


def official(name: str, folders: Sequence[Path]) -> str:
    """Return the protocol of a data set: the one of its name, else `retrieval`."""
    return name if any((folder / GROUP / f"{name}.yaml").exists() for folder in folders) else DEFAULT


def node(name: str) -> dict[str, Any]:
    """Return the protocol `name` as its file and those that it builds on say."""
    path = directory() / GROUP / f"{name}.yaml"
    if not path.exists():
        accepted = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise UserError(f"{GROUP}: there is no '{name}'; accepted: {accepted}")
    written = yaml.safe_load(path.read_text())
    made: dict[str, Any] = {}
    for base in written.pop("defaults", []):
        made |= {} if base.startswith("_") else node(base)
    return made | written


def _named(key: str, arguments: Sequence[str]) -> list[str]:
    """Return the names that `key=name` or `key=[a,b]` chooses; none where it is not there or is a sweep."""
    values = [a.partition("=")[2] for a in arguments if a.startswith(f"{key}=")]
    if not values or not re.fullmatch(r"\w+|\[[\w, ]*\]", values[-1]):
        return []
    return re.findall(r"\w+", values[-1])


def _of_each(argument: str, names: Sequence[str]) -> list[str]:
    """Return `protocol.key=value` for each data set; one that names a data set stays as it is."""
    rest = argument.removeprefix(f"{GROUP}.")
    if re.split(r"[.=]", rest)[0] in names:
        return [argument]
    return [f"{GROUP}.{name}.{rest}" for name in names]
