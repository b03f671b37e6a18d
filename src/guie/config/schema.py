"""The typed keys of every command, and one typed node per YAML made from its target's signature.

A default lives in the constructor's signature: `configs/head/arcface.yaml` begins with
`defaults: [_arcface, _self_]`, and `_arcface` is made here from `ArcFace.__init__` without importing it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import MISSING, OmegaConf

import guie.build as building

GROUPS = (
    "dataset",
    "backbone",
    "pool",
    "neck",
    "head",
    "augment",
    "sampler",
    "optim",
    "trainer",
    "tracker",
    "hw",
    "launch",
    "warm_start",
    "cleaning",
    "views",
    "protocol",
    "search",
    "postprocess",
    "recognise",
)
# Groups whose choices stand side by side under their names.
NAMED = ("dataset", "postprocess")
PATH_KEYS = {"ckpt", "ckpt_cls", "pt", "raw", "out", "run_dir", "data_root", "root", "embeddings", "resume"}
PATH_KEYS |= {"path", "pattern", "wise", "start", "centres", "baseline", "candidate", "fitted", "nothing"}
PATH_KEYS |= {"source", "check", "sample", "evaluation", "huggingface", "bundle", "verify"}

_SIMPLE: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass
class Train:
    """Keys of guie-train beside its groups."""

    dataset: Any = field(default_factory=dict)
    eval_on: Any = field(default_factory=dict)
    protocol: Any = field(default_factory=dict)
    eval_cap: int | None = 20_000
    backbone: Any = MISSING
    pool: Any = MISSING
    neck: Any = MISSING
    head: Any = MISSING
    augment: Any = MISSING
    sampler: Any = MISSING
    optim: Any = MISSING
    trainer: Any = MISSING
    tracker: Any = MISSING
    hw: Any = MISSING
    launch: Any = MISSING
    dry_run: bool = False
    side_inputs: bool = False
    run_dir: str | None = None
    data_root: str = "data"
    seed: int = 0
    device: str = "auto"
    ckpt: str | None = None
    warm_start: Any = MISSING
    stages: Any = None
    only: str | None = None
    resume: str = "never"
    bad_images: str = "skip"
    max_bad_share: float = 0.01
    leakage: str = "warn"
    memory_mib: int = 64
    preset: str | None = None


@dataclass
class Eval:
    """Keys of guie-eval: what to evaluate (a run, a checkpoint, saved embeddings) and on what."""

    dataset: Any = field(default_factory=dict)
    protocol: Any = field(default_factory=dict)
    split: str | None = None
    eval_cap: int | None = None
    distractors: Any = field(default_factory=dict)
    search: Any = None
    postprocess: Any = field(default_factory=dict)
    bank: Any = field(default_factory=dict)
    fitted: str | None = None
    backbone: Any = None
    pool: Any = None
    views: Any = None
    ckpt_cls: str | None = None
    ckpt: Any = None
    weights: Any = None
    combine: str = "concat"
    keep: int | None = None
    embeddings: str | None = None
    out: str | None = None
    data_root: str = "data"
    device: str = "auto"
    seed: int = 0
    batch_size: int = 128
    threads: int | None = None
    bad_images: str = "skip"
    max_bad_share: float = 0.01
    memory_mib: int = 64
    floors: bool = True
    thresholds: bool = False
    compression: bool = False
    against: str | None = None


@dataclass
class Embed:
    """Keys of guie-embed: which pictures, seen by which models through which views, written how."""

    dataset: Any = field(default_factory=dict)
    split: Any = None
    backbone: Any = None
    pool: Any = None
    views: Any = None
    ckpt_cls: str | None = None
    ckpt: Any = None
    keep: int | None = None
    weights: Any = None
    combine: str = "concat"
    out: str | None = None
    formats: Any = "npy"
    ids: str = "stem"
    overwrite: bool = False
    data_root: str = "data"
    device: str = "auto"
    precision: str = "fp32"
    seed: int = 0
    batch_size: int = 128
    threads: int | None = None
    bad_images: str = "skip"
    max_bad_share: float = 0.01


@dataclass
class Export:
    """Keys of guie-export."""

    ckpt: Any = None
    weights: Any = None
    combine: str = "concat"
    keep: int | None = None
    views: Any = None
    ckpt_cls: str | None = None
    postprocess: Any = field(default_factory=dict)
    fitted: str | None = None
    evaluation: str | None = None
    pt: str | None = None
    bundle: str | None = None
    huggingface: str | None = None
    verify: str | None = None
    format: Any = "torchscript"
    precision: str = "fp32"
    batch: int | None = None
    size: Any = None
    pixels: str = "levels"
    contract: Any = None
    data_root: str | None = None
    overwrite: bool = False
    device: str = "cpu"
    seed: int = 0


@dataclass
class Prepare:
    """Keys of guie-prepare: what to prepare from where, and what counts as a finding."""

    dataset: Any = field(default_factory=dict)
    augment: Any = None
    raw: str | None = None
    out: str | None = None
    data_root: str = "data"
    workers: int | None = None
    max_bad_share: float = 0.01
    min_images: int = 2
    near_bits: int = 4
    preview: bool = True
    overwrite: bool = False
    seed: int = 0


@dataclass
class Clean:
    """Keys of guie-clean beside its groups."""

    dataset: Any = field(default_factory=dict)
    cleaning: Any = MISSING
    ckpt: str | None = None
    embeddings: str | None = None
    out: str | None = None
    data_root: str = "data"
    device: str = "auto"
    threads: int | None = None
    workers: int | None = None
    seed: int = 0


@dataclass
class Soup:
    """Keys of guie-soup: runs to average, or one to draw back to its start; what decides, and where to."""

    dataset: Any = field(default_factory=dict)
    ckpt: Any = None
    method: str = "greedy"
    wise: str | None = None
    start: str | None = None
    points: int = 11
    metric: str = "mP@5"
    out: str | None = None
    data_root: str = "data"
    device: str = "auto"
    seed: int = 0
    batch_size: int = 128
    threads: int | None = None
    bad_images: str = "skip"
    max_bad_share: float = 0.01
    memory_mib: int = 64


@dataclass
class Compare:
    """Keys of guie-compare: what `candidate` gains over `baseline`, both folders of an evaluation."""

    baseline: str | None = None
    candidate: str | None = None
    out: str | None = None
    metric: str | None = None
    common: bool = False
    show: int = 10
    samples: int = 10_000
    level: float = 0.95
    seed: int = 0


@dataclass
class Recognise:
    """Keys of guie-recognise: whose neighbours vote, how, and what judges the result."""

    recognise: Any = MISSING
    dataset: Any = field(default_factory=dict)
    embeddings: Any = None
    weights: Any = None
    nothing: Any = None
    fit: bool = False
    out: str | None = None
    data_root: str = "data"


@dataclass
class Submit:
    """Keys of guie-submit: which challenge's file, from what; or which file to check."""

    kind: str = MISSING
    source: str | None = None
    pt: str | None = None
    out: str | None = None
    check: str | None = None
    sample: str | None = None
    set: str | None = None
    search: Any = None
    postprocess: Any = field(default_factory=dict)
    fitted: str | None = None
    max_pairs: int = 500_000
    max_mib: float = 4096.0
    memory_mib: int = 64
    overwrite: bool = False


COMMANDS = {
    "train": Train,
    "eval": Eval,
    "embed": Embed,
    "export": Export,
    "prepare": Prepare,
    "clean": Clean,
    "soup": Soup,
    "compare": Compare,
    "recognise": Recognise,
    "submit": Submit,
}

# The parameter of a data set that names its raw files, and so takes guie-prepare's `raw`: the first it has.
PLACES = ("path", "pattern", "root")


class _Nodes(dict):
    """A group of Hydra's store by name; what is a function there becomes its node when Hydra reads it.

    A command reads a dozen of some two hundred: making all would be a third of a second at every start.
    """

    def __getitem__(self, name: str) -> Any:
        made = super().__getitem__(name)
        if callable(made):
            made = self[name] = made()
        return made


def register(command: str, folders: list[Path]) -> None:
    """Store a command's schema, and a typed node for every YAML with a `_target_` of its groups."""
    store = ConfigStore.instance()
    store.store(name=f"_{command}", node=COMMANDS[command])
    groups = [entry.name for entry in fields(COMMANDS[command]) if entry.name in GROUPS]
    store.repo |= {group: _Nodes() for group in groups}
    for folder in folders:
        for group, name, target in targets([folder], groups):
            path = folder / group / f"{name}.yaml"
            made = partial(_stored, path, target, may_lack_place=command == "prepare")
            store.repo[group][f"_{name}.yaml"] = made


def _stored(path: Path, target: str, *, may_lack_place: bool) -> ConfigNode:
    group, name = path.parent.name, path.stem
    written = yaml.safe_load(path.read_text())
    if group in NAMED:
        written = written[name]
    node = _typed(written, may_lack=place_of(target) if may_lack_place else None)
    node = {name: node} if group in NAMED else node
    return ConfigNode(f"_{name}.yaml", OmegaConf.create(node), group, package=None, provider=None)


def _typed(written: Mapping[str, Any], *, may_lack: str | None = None) -> Any:
    """Return the typed node of a part, with those of the parts that its YAML names within it.

    So their keys are known, too: `head.margin_by.size.power=0.3`. What is not guie's stays in its place as
    written: the order of a dict may count. The values of a part come later, when Hydra merges the YAML.
    """
    inner = {
        key: _typed(item) for key, item in written.items() if isinstance(item, Mapping) and _holds_part(item)
    }
    if not _is_part(written):
        return {**written, **inner}
    made = OmegaConf.structured(node_of(str(written["_target_"]), may_lack=may_lack))
    for key in inner.keys() & made.keys():
        made[key] = inner[key]
    return made


def _holds_part(value: Mapping[str, Any]) -> bool:
    return _is_part(value) or any(_holds_part(item) for item in value.values() if isinstance(item, Mapping))


def _is_part(value: Mapping[str, Any]) -> bool:
    return str(value.get("_target_")).startswith("guie.")


def targets(folders: list[Path], groups: Sequence[str] = GROUPS) -> Iterator[tuple[str, str, str]]:
    """Yield (group, name, target) of every YAML of `groups` that names a target."""
    for folder in folders:
        for group in groups:
            for path in sorted((folder / group).glob("*.yaml")):
                match = re.search(r"^\s*_target_:\s*([\w.]+)\s*$", path.read_text(), flags=re.MULTILINE)
                if match:
                    yield group, path.stem, match.group(1)


def place_of(target: str) -> str | None:
    """Return which parameter of a data set names its raw files, None where it needs none."""
    names = {parameter.name for parameter in building.signature(target) if not parameter.fact}
    return next((name for name in PLACES if name in names), None)


def node_of(target: str, *, may_lack: str | None = None) -> type:
    """Return a dataclass of the config values of `target`, with their types and defaults.

    The parameter `may_lack` has the default None instead of none: another key gives it.
    """
    members: list[tuple[str, Any, Any]] = [("_target_", str, field(default=target))]
    for parameter in building.signature(target):
        if parameter.name == may_lack and parameter.default == building.REQUIRED:
            members.append((parameter.name, str | None, field(default=None)))
        elif not parameter.fact:
            members.append((parameter.name, annotation(parameter.annotation), _default(parameter.default)))
    return make_dataclass(target.rpartition(".")[2], members)


def annotation(text: str) -> Any:
    """Return the type OmegaConf enforces for an annotation as written; what it cannot express is Any."""
    parts = [part.strip() for part in text.split("|")]
    optional = "None" in parts
    names = [part for part in parts if part != "None"]
    kind = _SIMPLE.get(names[0]) if len(names) == 1 else None
    if kind is None:
        return Any
    return kind | None if optional else kind


def choices(text: str) -> list[Any] | None:
    """Return the values a `Literal[...]` annotation accepts, or None."""
    match = re.search(r"Literal\[(.*?)\]", text)
    return yaml.safe_load(f"[{match.group(1)}]") if match else None


def _default(value: Any) -> Any:
    if value == building.REQUIRED:
        return MISSING
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, list | dict):
        return field(default_factory=lambda: value)
    return value
