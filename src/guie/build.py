"""From `{_target_: dotted.path, **values}` to an object. The dotted path is the registry.

Config values are ordinary parameters; facts of data or model (`num_classes`, `in_dim`, ...) are
keyword-only parameters without a default: only code may give them. Signatures of guie's own targets are
read with `ast`, without importing, so that a config mistake answers before torch is loaded.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from guie.errors import UserError

REQUIRED = "???"

# What a config may name: the parts that have presets, and of other modules these alone. Not all of guie: it
# has functions that start processes or write files.
PARTS = (
    *("guie.data", "guie.datasets", "guie.heads", "guie.models", "guie.train", "guie.cleaning"),
    *("guie.local", "guie.recognise", "guie.postprocess", "guie.search", "guie.protocols", "guie.views"),
)
SINGLE_PARTS = ("guie.launch.Launch", "guie.assembly.trained_embedder", "guie.export.contract.Contract")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a target: its annotation as written, its default, and whether code supplies it."""

    name: str
    annotation: str
    default: Any = REQUIRED
    fact: bool = False


def build(node: Mapping[str, Any], *, where: str = "", **facts: Any) -> Any:
    """Return the object that `node` describes; nested nodes are built too, each with the facts it asks for.

    A parameter annotated `Callable[...]` gets its node as a function that builds it, as often as is wanted
    and with other facts in the place of these: `inner(embed_dim=64)`.

    Raises UserError for an untrusted or missing target, an unknown key, a missing value, or a fact in `node`.
    """
    target = str(node.get("_target_", ""))
    _check_trusted(target.rpartition(".")[0], target)
    values = {str(key): value for key, value in node.items() if key != "_target_"}
    check_keys(target, values, where=where)
    parameters = signature(target)
    later = {p.name for p in parameters if p.annotation.startswith("Callable")}
    built = {
        key: (_later if key in later else _build_value)(value, f"{where}.{key}".lstrip("."), facts)
        for key, value in values.items()
    }
    wanted = {p.name for p in parameters if p.fact}
    missing = sorted(p.name for p in parameters if not p.fact and built.get(p.name, p.default) == REQUIRED)
    if missing:
        raise UserError(f"{where or target}.{missing[0]}: a value is required")
    return resolve(target)(**built, **{name: value for name, value in facts.items() if name in wanted})


def _build_value(value: Any, where: str, facts: dict[str, Any]) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, where=where, **facts)
        return {key: _build_value(item, f"{where}.{key}", facts) for key, item in value.items()}
    return value


def _later(value: Any, where: str, facts: dict[str, Any]) -> Any:
    return partial(build, value, where=where, **facts) if isinstance(value, Mapping) else value


def check_keys(target: str, values: Iterable[str], *, where: str = "") -> None:
    """Refuse keys that the target's signature lacks, and facts that only code may give."""
    parameters = {p.name: p for p in signature(target)}
    accepted = [name for name, p in parameters.items() if not p.fact]
    for key in values:
        name = f"{where}.{key}".lstrip(".")
        if key not in parameters:
            raise UserError(unknown_key(name, accepted))
        if parameters[key].fact:
            raise UserError(f"{name}: a fact of the data or the model, found at run time; remove it")


def unknown_key(name: str, accepted: Iterable[str]) -> str:
    """Return the one-line message for a key that nobody reads."""
    accepted = sorted(accepted)
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], accepted, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"accepted: {', '.join(accepted)}"
    return f"{name}: unknown key; {hint}"


def resolve(target: str) -> Any:
    """Import and return the object named by `target`, judged by where it was really defined."""
    module_name, _, name = target.rpartition(".")
    _check_trusted(module_name, target)
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"_target_: '{target}' cannot be loaded ({error})") from error
    _check_trusted(getattr(found, "__module__", "") or "", target)
    return found


def _check_trusted(module_name: str, target: str) -> None:
    if _within(module_name, [*PARTS, *_plugins()]) or target in SINGLE_PARTS:
        return
    accepted = f"{', '.join(PARTS)} and packages named in GUIE_PLUGINS"
    raise UserError(f"_target_: '{target}' lives in '{module_name}'; accepted: {accepted}")


def refuse_foreign(node: Mapping[str, Any], package: str, where: str) -> None:
    """Refuse a node, for example a checkpoint's, that names anything outside of `package`; UserError."""
    target = node.get("_target_")
    if target is not None and not _within(str(target).rpartition(".")[0], [package, *_plugins()]):
        raise UserError(
            f"{where}: _target_ '{target}'; accepted: {package} and packages named in GUIE_PLUGINS"
        )
    for key, item in node.items():
        if isinstance(item, Mapping):
            refuse_foreign(item, package, f"{where}.{key}")


def _within(module_name: str, packages: Iterable[str]) -> bool:
    return any(f"{module_name}.".startswith(f"{package}.") for package in packages)


def _plugins() -> list[str]:
    return [name for name in os.environ.get("GUIE_PLUGINS", "").split(",") if name]


@cache
def signature(target: str) -> tuple[Parameter, ...]:
    """Return the parameters of a class or function; guie's own are read without importing their module."""
    module_name, _, name = target.rpartition(".")
    if module_name.split(".")[0] != "guie":
        return _inspected(resolve(target))
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"_target_: '{target}': there is no module '{module_name}'")
    module = ast.parse(Path(spec.origin).read_text())
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _spelled_out(_function_parameters(node, skip_self=False), module)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _spelled_out(_class_parameters(node), module)
    raise UserError(f"_target_: '{target}': '{module_name}' defines no class or function '{name}'")


def _spelled_out(parameters: tuple[Parameter, ...], module: ast.Module) -> tuple[Parameter, ...]:
    """Return the parameters, an annotation that is a name for Literal[...] replaced by what it stands for."""
    known = _literals(module)
    written = {p.annotation for p in parameters}
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and written & {alias.name for alias in node.names}:
            name = node.module or ""
            spec = importlib.util.find_spec(name) if name.startswith("guie.") else None
            known |= _literals(ast.parse(Path(spec.origin).read_text())) if spec and spec.origin else {}
    return tuple(replace(p, annotation=known.get(p.annotation, p.annotation)) for p in parameters)


def _literals(module: ast.Module) -> dict[str, str]:
    """Return {name: "Literal[...]"} of what a module names so."""
    named = [node for node in module.body if isinstance(node, ast.Assign)]
    texts = {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in named}
    return {name: text for name, text in texts.items() if text.startswith("Literal[")}


def _class_parameters(node: ast.ClassDef) -> tuple[Parameter, ...]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _function_parameters(item, skip_self=True)
    fields = [
        item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]
    fields = [item for item in fields if not ast.unparse(item.annotation).startswith("ClassVar")]
    return tuple(
        Parameter(item.target.id, ast.unparse(item.annotation), _literal(item.value))  # type: ignore[union-attr]
        for item in fields
    )


def _function_parameters(node: ast.FunctionDef, *, skip_self: bool) -> tuple[Parameter, ...]:
    arguments = node.args.args[1:] if skip_self else node.args.args
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(node.args.defaults))
    defaults += node.args.defaults
    pairs = [(argument, default, False) for argument, default in zip(arguments, defaults, strict=True)]
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        pairs.append((argument, default, default is None))
    return tuple(
        Parameter(a.arg, ast.unparse(a.annotation) if a.annotation else "Any", _literal(default), fact)
        for a, default, fact in pairs
    )


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return REQUIRED
    if isinstance(node, ast.Call):  # field(default_factory=dict)
        return {} if "dict" in ast.unparse(node) else []
    return ast.literal_eval(node)


def _inspected(found: Any) -> tuple[Parameter, ...]:
    parameters = inspect.signature(found).parameters.values()
    return tuple(
        Parameter(
            p.name,
            "Any",
            REQUIRED if p.default is p.empty else p.default,
            p.kind is p.KEYWORD_ONLY and p.default is p.empty,
        )
        for p in parameters
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    )
