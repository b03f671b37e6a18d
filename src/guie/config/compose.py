"""From the command line to one checked, plain dict; every mistake becomes one line and exit code 2."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from guie.build import REQUIRED, check_keys, signature, unknown_key
from guie.config import implied, stages, sweeps
from guie.config.folders import directory
from guie.config.schema import COMMANDS, GROUPS, PATH_KEYS, choices, register
from guie.errors import UserError

# What Hydra, OmegaConf and the YAML of a preset raise for what a person wrote.
MISTAKES = (HydraException, OmegaConfBaseException, yaml.YAMLError)

# (overrides of each job, folder named or None, slots) -> exit code
Sweep = Callable[[list[list[str]], str | None, list[list[int]]], int]


def enter(command: str, run: Callable[[dict[str, Any]], None], sweep: Sweep | None = None) -> None:
    """Run a command from the console: compose, check, call `run` with a plain dict; never a traceback.

    With --multirun and `launch.slots` it is `sweep` that gets all jobs, and returns the exit code.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    sweeps.remember(sys.argv[1:])
    arguments, of_stages = stages.split(sys.argv[1:])

    refused: list[UserError] = []

    def job(cfg: DictConfig) -> None:
        try:
            plain = _with_own_folder(checked(command, cfg))
            run(with_stages(command, plain, HydraConfig.get().overrides.task, of_stages))
        except UserError as error:
            refused.append(error)  # raised when Hydra is done: it would print two lines of its own

    try:
        folders = [directory(), *_own_folders(arguments)]
        arguments = implied.completed(command, arguments, folders)
        sys.argv[1:] = [rewrite(argument) for argument in arguments]
        register(command, folders)
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(help_text(command, [word for word in sys.argv[1:] if not word.startswith("-")]))
        elif sweep and (slots := _slots(command, sys.argv[1:])):
            sys.exit(sweep(_checked_jobs(command, sys.argv[1:]), sweeps.sweep_folder(sys.argv[1:]), slots))
        else:
            hydra.main(version_base=None, config_path=str(directory()), config_name=command)(job)()
        if refused:
            raise refused[0]
    except (UserError, *MISTAKES) as error:
        if os.environ.get("GUIE_DEBUG"):
            traceback.print_exc()
        print(f"guie-{command}: {explain(error)}", file=sys.stderr)
        sys.exit(2)


def _slots(command: str, arguments: list[str]) -> list[list[int]] | None:
    """Return `launch.slots` of a sweep, None where it goes by without."""
    jobs = sweeps.jobs(arguments)
    return _of_job(command, jobs[0], arguments)["launch"]["slots"] if jobs else None


def _checked_jobs(command: str, arguments: list[str]) -> list[list[str]]:
    """Return the command line of each job of a sweep, all of which compose."""
    jobs = sweeps.jobs(arguments)
    for job in jobs:
        if _of_job(command, job, arguments).get("run_dir"):
            raise UserError("run_dir: given with launch.slots; accepted: hydra.sweep.dir=FOLDER for all jobs")
    return [[*sweeps.folders(), *job] for job in jobs]


def _of_job(command: str, job: list[str], arguments: list[str]) -> dict[str, Any]:
    own = _own_folders(arguments)
    found = ",".join(f"'file://{folder.absolute()}'" for folder in own)
    return composed(command, [*job, *([f"hydra.searchpath=[{found}]"] if own else [])], own)


def _with_own_folder(plain: dict[str, Any]) -> dict[str, Any]:
    """Give a job of a sweep its own run folder."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and "run_dir" in plain and plain["run_dir"] is None:
        return {**plain, "run_dir": hydra_config.runtime.output_dir}
    return plain


def help_text(command: str, overrides: list[str]) -> str:
    """Return what `--help` prints: usage, the choices of each group, every key with its value.

    Hydra's own help lists the nodes that `register` made, too, and copies every config once per group (2 s).
    """
    template = yaml.safe_load((directory() / f"{command}.yaml").read_text())
    groups = {str(name).removeprefix("optional ").split("@")[0] for name in _group_defaults(template)}
    listed = [f"{group}: {', '.join(_names(group))}" for group in sorted(groups)]
    if command == "train":
        listed.append(f"+exp: {', '.join(_names('exp'))}")
    with hydra.initialize_config_dir(str(directory()), version_base=None):
        shown = OmegaConf.to_yaml(hydra.compose(command, overrides))
    return Template(template["hydra"]["help"]["template"]).substitute(
        APP_CONFIG_GROUPS="\n".join(listed), CONFIG=shown
    )


def _group_defaults(template: Mapping[str, Any]) -> list[str]:
    entries = [next(iter(entry)) for entry in template["defaults"] if isinstance(entry, Mapping)]
    return [entry for entry in entries if not entry.startswith("override")]


def composed(command: str, overrides: list[str], folders: list[Path] | None = None) -> dict[str, Any]:
    """Return the checked config of a command, as the console would see it; for tests and notebooks."""
    places = [directory(), *(folders or [])]
    register(command, places)
    whole, of_stages = stages.split(overrides)
    whole = [rewrite(override) for override in implied.completed(command, whole, places)]
    try:
        with hydra.initialize_config_dir(str(directory()), version_base=None):
            return with_stages(command, checked(command, hydra.compose(command, whole)), whole, of_stages)
    except MISTAKES as error:
        raise UserError(explain(error)) from error


def with_stages(
    command: str, plain: dict[str, Any], overrides: Sequence[str], of_stages: stages.OfStages
) -> dict[str, Any]:
    """Return `plain` with `staged`: by name the complete config of each stage, checked as the run's own.

    Raises UserError, which names the stage.
    """
    changes = stages.written(plain.get("stages"), of_stages)
    if not changes:
        return plain
    if plain["only"] not in (None, *changes):
        raise UserError(f"only: '{plain['only']}'; accepted: {', '.join(changes)}")
    staged = {}
    for name, changed in changes.items():
        further = [o for o in of_stages.get(name, ()) if not o.startswith("init=")]
        if changed.keys() <= {"init"}:
            staged[name] = {**plain, "stages": None, "only": None}
        else:
            staged[name] = _stage(command, name, [*stages.combined(changed, overrides), *further])
    stages.check_inits(changes, {name: cfg["trainer"]["epochs"] for name, cfg in staged.items()})
    return {**plain, "stages": changes, "staged": staged}


def _stage(command: str, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        cfg = hydra.compose(command, [*map(rewrite, overrides), "++stages=null", "++only=null"])
        return checked(command, cfg)
    except (UserError, *MISTAKES) as error:
        raise UserError(f"stages.{name}.{explain(error)}") from error


def rewrite(argument: str) -> str:
    """Return one command-line argument as Hydra must see it.

    `eval_on`, `bank` and `distractors` choose from the group dataset, `preview=guie5` an augmentation to
    look at; values of path keys are user-expanded and quoted, since `~`, `=`, `#`, blanks and brackets would
    die in Hydra's lexer. Raises UserError for a group without a choice, which Hydra answers with a traceback.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    if key in ("eval_on", "bank", "distractors"):
        return f"dataset@{key}={value}"
    if key in GROUPS and value == "null":
        raise UserError(f"{key}: null; accepted: {', '.join(_names(key))}, or leave it out")
    if key == "trainer.dry_run":
        return f"dry_run={value}"
    if key == "preview" and value.lower() not in ("true", "false", "null", ""):
        return f"augment={value}"
    if key.lstrip("+").rsplit(".", 1)[-1] not in PATH_KEYS or value in ("null", "") or value[0] in "'\"[{$":
        return argument
    escaped = os.path.expanduser(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def _own_folders(arguments: list[str]) -> list[Path]:
    found = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            found.append(Path(value if equals else arguments[position + 1]).expanduser())
    return found


def checked(command: str, cfg: DictConfig) -> dict[str, Any]:
    """Return `cfg` as a plain dict after refusing every key and choice that no signature knows."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    schema = [field.name for field in dataclasses.fields(COMMANDS[command])]
    for key, value in plain.items():
        if key not in schema:
            raise UserError(unknown_key(str(key), schema))
        _check_value(str(key), value, None)
        _check_node(str(key), value)
    return {str(key): value for key, value in plain.items()}


def _check_node(where: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        return
    if "_target_" in value:
        target = str(value["_target_"])
        given = {key: item for key, item in value.items() if key != "_target_"}
        check_keys(target, given, where=where)
        for parameter in signature(target):
            _check_value(
                f"{where}.{parameter.name}", given.get(parameter.name), choices(parameter.annotation)
            )
    for key, item in value.items():
        _check_node(f"{where}.{key}", item)


def _check_value(name: str, value: Any, accepted: list[Any] | None) -> None:
    if value == REQUIRED:
        raise UserError(f"{name}: a value is required")
    if accepted is not None and value is not None and value not in accepted:
        raise UserError(f"{name}: '{value}' is not known; accepted: {', '.join(map(str, accepted))}")


def explain(error: BaseException) -> str:
    """Return one line for an error of ours, Hydra's or OmegaConf's: key, value, what is accepted."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem or error.context}; accepted: YAML"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__  # Hydra does not say `from`
    if cause is not None and getattr(cause, "full_key", None):
        return _explain_key(cause)
    text = " ".join(str(error).split())
    missing = re.match(r"(?:In '.*?': )?Could not (?:find|load) '(.*?)/(.*?)'", text)
    if missing:
        group, name = missing.groups()
        return f"{group}: there is no '{name}'; accepted: {', '.join(_names(group))}"
    return re.sub(r"\s*Available options in .*", "", text)


def _explain_key(error: Any) -> str:
    key = str(error.full_key)
    if "not in" in str(error):
        parent = getattr(error, "parent_node", None)
        return unknown_key(
            key, [str(name) for name in parent if name != "_target_"] if parent is not None else []
        )
    if "???" in str(error) or "Missing mandatory value" in str(error):
        return f"{key}: a value is required"
    return f"{key}: {str(error).splitlines()[0]}"


def _names(group: str) -> list[str]:
    group = group.split("@")[0]
    return sorted(path.stem for path in (directory() / group).glob("*.yaml"))
