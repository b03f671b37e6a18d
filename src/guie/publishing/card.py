"""The README.md of a Hugging Face folder: a header for the hub, then what a person has to know."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from guie.bundle.licences import Licence, table
from guie.bundle.lineage import Lineage
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
    """What a card is made of; `meta` is what config.json says, `results` are metrics by data set."""

    name: str
    meta: Mapping[str, Any]
    lineage: Lineage
    results: Mapping[str, Mapping[str, Any]]


def results_of(folder: Path, space: str, *, asked: bool) -> dict[str, dict[str, Any]]:
    """Return the metrics that an evaluation left in `folder`, by data set; {} where there are none.

    Raises UserError for those of another space, and for none, where they were `asked` for.
    """
    try:
        found = json.loads((folder / "metrics.json").read_bytes())
        own, measured = found.get("vectors_space_id", found["space_id"]), found["trained"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not asked:
            return {}
        raise UserError(
            f"evaluation: {folder} has no metrics.json; accepted: a folder of guie-eval"
        ) from error
    if asked and own != space:
        raise UserError(f"evaluation: {folder} is of space {own}; accepted: {space}, which is exported")
    if own != space:
        return {}
    alone = len(measured) == 2  # one data set, and all of them in one gallery
    return {name: numbers for name, numbers in measured.items() if name != "merged" or not alone}


def card(told: Told) -> str:
    """Return the card: YAML between two lines of dashes, then Markdown."""
    template = Path(__file__).with_name("README.md.jinja").read_text(encoding="utf-8")
    # Markdown, not HTML, and of the run's own words: nothing is escaped but the cells' borders.
    made = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(template)
    return made.render(
        rows=rows,
        header=yaml.safe_dump(_header(told), sort_keys=False, allow_unicode=True),
        name=told.name,
        meta=told.meta,
        input=_input(told.meta),
        recipe=_recipe(told.meta["config"]),
        data=_data(told.lineage),
        gone=[Path(place).name for place in told.lineage.gone],
        results=_results(told.results),
        licences=[list(row.values()) for row in table(told.lineage.licences)],
    )


def rows(lines: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown; the first line is its head."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in ruled
    )


def _header(told: Told) -> dict[str, Any]:
    header: dict[str, Any] = {"library_name": "guie", "pipeline_tag": TASK, "tags": TAGS}
    if base := _base_models(told.lineage.weights):
        header["base_model"] = base
    measured = [_result(name, numbers) for name, numbers in told.results.items() if any(_metrics(numbers))]
    return header | ({"model-index": [{"name": told.name, "results": measured}]} if measured else {})


def _base_models(weights: Sequence[Licence]) -> list[str]:
    """Return the repositories of the hub that the weights came from."""
    found = [re.search(r"huggingface\.co/([\w.-]+/[\w.-]+)", row.source) for row in weights]
    return list(dict.fromkeys(match.group(1) for match in found if match))


def _result(name: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    metrics = [{"type": metric, "name": metric, "value": value} for metric, value, _ in _metrics(numbers)]
    return {"task": {"type": TASK}, "dataset": {"type": name, "name": name}, "metrics": metrics}


def _metrics(numbers: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Yield name, value and interval (as text) of every metric."""
    for metric, value in numbers.items():
        if isinstance(value, float):
            between = numbers.get(f"{metric}_interval")
            yield metric, value, f"{between[0]:.4f} to {between[1]:.4f}" if between else ""


def _results(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [name, metric, f"{value:.4f}", interval]
        for name, numbers in results.items()
        for metric, value, interval in _metrics(numbers)
    ]


def _input(meta: Mapping[str, Any]) -> list[list[str]]:
    spec, backbone = meta["preprocess"], meta["config"]["backbone"]
    return [
        ["backbone", f"`{backbone.get('name') or backbone['_target_']}`"],
        ["height x width", " x ".join(map(str, spec["size_px"]))],
        ["cut", f"{spec['crop']}, crop fraction {spec['crop_fraction']}"],
        ["filter", f"{spec['interpolation']}, antialiased, on 8-bit RGB"],
        ["mean", f"{list(spec['mean'])} of values in 0..1"],
        ["std", f"{list(spec['std'])}"],
        ["transparent", f"composed over {list(spec['background'])}"],
    ]


def _recipe(config: Mapping[str, Any]) -> list[list[str]]:
    return [[part, _described(config[part], keys)] for part, keys in RECIPE.items() if config.get(part)]


def _described(node: Mapping[str, Any], keys: Sequence[str]) -> str:
    name = str(node["_target_"]).rpartition(".")[2]
    values = [f"{key} {node[key]}" for key in keys if node.get(key) is not None]
    return ", ".join([*([] if name == "Settings" else [f"`{name}`"]), *values])


def _data(lineage: Lineage) -> list[list[str]]:
    return [
        [line.run, line.dataset, _count(line.images), _count(line.classes), line.licence.licence]
        for line in lineage.data
    ]


def _count(number: int | None) -> str:
    return "not recorded" if number is None else f"{number:,}"
