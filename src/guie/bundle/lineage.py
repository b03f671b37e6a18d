"""What a model was made of: data and weights of its run, and of every run that it began or learnt from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guie import checkpoint
from guie.bundle.licences import Licence, of_data, of_weights
from guie.errors import UserError

TRAINED_EMBEDDER = "guie.assembly.trained_embedder"


@dataclass(frozen=True)
class Trained:
    """A data set that a run was trained on; counts are None where the checkpoint does not say."""

    run: str
    dataset: str
    images: int | None
    classes: int | None
    licence: Licence


@dataclass
class Lineage:
    """`data`: a line for each data set of each run; `weights` that training began from; `gone`: the names of
    runs that it came from and that cannot be read, of which nothing else is known."""

    data: list[Trained] = field(default_factory=list)
    weights: list[Licence] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    @property
    def licences(self) -> list[Licence]:
        """Return the licences of weights and data."""
        return [*dict.fromkeys([*self.weights, *(line.licence for line in self.data)])]


def lineage(places: Sequence[str | Path]) -> Lineage:
    """Return what the runs or checkpoints at `places` were made of, earlier runs and teachers included."""
    found, seen = Lineage(), set()
    waiting = [Path(place).expanduser() for place in places]
    while waiting:
        place = waiting.pop(0)
        meta = _meta(place)
        if meta is None:
            found.gone.append(str(place))
        elif (key := meta.get("space_id") or str(place)) not in seen:
            seen.add(key)
            _add(found, place, meta)
            if "library_name" in meta:  # of a Hugging Face folder: its paths are those of another machine
                found.gone += map(str, before(meta))
            else:
                waiting += before(meta)
    found.gone = list(dict.fromkeys(Path(place).name for place in found.gone))
    return found


def _meta(place: Path) -> Mapping[str, Any] | None:
    try:
        return checkpoint.read(place, "last", parts=()).meta
    except (UserError, OSError):
        return None


def _add(found: Lineage, place: Path, meta: Mapping[str, Any]) -> None:
    cfg, counts = meta["config"], meta.get("data", {})
    for name, node in (cfg.get("dataset") or {}).items():
        counted = counts.get(name, {})
        line = Trained(_run(place), name, counted.get("images"), counted.get("classes"), of_data(name, node))
        found.data += [] if line in found.data else [line]
    rows = [of_weights(node) for part in ("backbone", "head") for node in _backbones(cfg.get(part))]
    found.weights += [row for row in dict.fromkeys(rows) if row and row not in found.weights]


def before(meta: Mapping[str, Any]) -> list[Path]:
    """Return the runs that a checkpoint's run began from, was averaged of, or was taught by."""
    cfg, soup = meta["config"], meta.get("soup") or {}
    named = [cfg.get("ckpt"), soup.get("tuned"), *soup.get("chosen", [])]
    taught = (
        node.get("path") for node in _nodes(cfg.get("head")) if node.get("_target_") == TRAINED_EMBEDDER
    )
    return [Path(str(name)).expanduser() for name in (*named, *taught) if name]


def _backbones(node: Any) -> Iterator[Mapping[str, Any]]:
    return (inner for inner in _nodes(node) if "pretrained" in inner and "name" in inner)


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a config node and every node inside it."""
    if isinstance(node, Mapping):
        yield node
        for inner in node.values():
            yield from _nodes(inner)


def _run(place: Path) -> str:
    """Return the name of the run that a folder, or a checkpoint in it, belongs to."""
    return place.parent.parent.name if place.parent.name == "checkpoints" else place.name
