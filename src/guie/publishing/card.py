"""The README.md of a Hugging Face folder: a header for the hub, then what a person has to know."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from guie.bundle import measured
from guie.bundle.card import cell, count
from guie.bundle.licences import Licence, table
from guie.bundle.lineage import Lineage
from guie.bundle.measured import Measured
from guie.errors import UserError

TAGS = ["guie", "image-embeddings", "image-retrieval"]
TASK = "image-feature-extraction"
# Parts of a run's config that say how it was trained, and their keys worth a line.
RECIPE: dict[str, Sequence[str]] = {
    "head": ("scale", "margin"),
    "optim": ("lr", "weight_decay"),
    "trainer": ("epochs", "batch_size"),
    "augment": (),
    "sampler": (),
}


@dataclass(frozen=True)
class Told:
    """What a card is made of; `meta` is what config.json says."""

    name: str
    meta: Mapping[str, Any]
    lineage: Lineage
    measured: Measured


def measured_in(folder: Path, space: str, *, asked: bool) -> Measured:
    """Return what the evaluation in `folder` found in this space, nothing where there is none of it.

    Raises UserError then, if it was `asked` for.
    """
    try:
        return measured.read(folder, {"space_id": space})
    except UserError:
        if asked:
            raise
        return measured.NOTHING


def card(told: Told) -> str:
    """Return the card: YAML between two lines of dashes, then Markdown."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": cell, "count": count}
    template = Path(__file__).with_name("README.md.jinja").read_text(encoding="utf-8")
    config = told.meta["config"]
    return environment.from_string(template).render(
        header=yaml.safe_dump(_header(told), sort_keys=False, allow_unicode=True),
        name=told.name,
        meta=told.meta,
        backbone=config["backbone"].get("name") or config["backbone"]["_target_"],
        recipe=[(part, _described(config[part], keys)) for part, keys in RECIPE.items() if config.get(part)],
        lineage=told.lineage,
        gone=told.lineage.gone,
        measured=told.measured,
        licences=table(told.lineage.licences),
    )


def _header(told: Told) -> dict[str, Any]:
    header: dict[str, Any] = {"library_name": "guie", "pipeline_tag": TASK, "tags": TAGS}
    if base := _base_models(told.lineage.weights):
        header["base_model"] = base
    if results := list(_results(told.measured)):
        header["model-index"] = [{"name": told.name, "results": results}]
    return header


def _base_models(weights: Sequence[Licence]) -> list[str]:
    """Return the repositories of the hub that the weights came from."""
    found = [re.search(r"huggingface\.co/([\w.-]+/[\w.-]+)", row.source) for row in weights]
    return list(dict.fromkeys(match.group(1) for match in found if match))


def _results(found: Measured) -> Iterator[dict[str, Any]]:
    """Yield for each data set its metrics, as the hub's model-index has them."""
    whole = [row for row in found.numbers if not row.domain]
    for name in dict.fromkeys(row.dataset for row in whole):
        metrics = [
            {"type": row.metric, "name": row.metric, "value": row.value}
            for row in whole
            if row.dataset == name
        ]
        yield {"task": {"type": TASK}, "dataset": {"type": name, "name": name}, "metrics": metrics}


def _described(node: Mapping[str, Any], keys: Sequence[str]) -> str:
    name = str(node["_target_"]).rpartition(".")[2]
    values = [f"{key} {node[key]}" for key in keys if node.get(key) is not None]
    return ", ".join([*([] if name == "Settings" else [f"`{name}`"]), *values])
