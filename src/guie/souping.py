"""Averages of trained weights, chosen by evaluation: what guie-soup does.

Model soups (Wortsman et al., ICML 2022) average runs that began from the same weights; WiSE-FT (Wortsman et
al., CVPR 2022) draws one run back towards where it began. The result is a checkpoint like any other.

What is averaged are weights as training left them. A refitted neck is the solution for the features of one
run: its axes are not those of another run's, nor of the neck it began as, so it is left behind, as it is when
training goes on from a run; `guie-train ckpt=` refits anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guie import assembly, checkpoint, evaluating, runfolder
from guie.checkpoint import State
from guie.embed.space import space_id
from guie.errors import UserError
from guie.train.loop import load_weights

log = logging.getLogger("guie")

Weights = Mapping[str, Tensor]

ARCHITECTURE = ("backbone", "pool", "neck", "side_inputs")
# What shapes training alone may differ between runs of one architecture.
OF_TRAINING = {"pretrained", "dropout", "drop_path", "drop_rate", "drop_path_rate", "checkpointing"}


def soup(cfg: Mapping[str, Any], notice: Any) -> None:
    """Average the runs `ckpt`, or draw the run `wise` back, as `cfg` says; write table and checkpoint."""
    if bool(cfg["ckpt"]) == bool(cfg["wise"]):
        raise UserError("ckpt: accepted: ckpt='[runs/a,runs/b]' for a soup, or else wise=runs/a for a curve")
    if cfg["method"] not in ("greedy", "uniform"):
        raise UserError(f"method: '{cfg['method']}'; accepted: greedy, uniform")
    out = Path(cfg["out"] or Path("runs") / f"soup-{time.strftime('%Y%m%d-%H%M%S')}").expanduser()
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out: {out} is not empty; accepted: a folder that is new or empty")
    names = [cfg["wise"]] if cfg["wise"] else _names(cfg["ckpt"])
    first = _read(names[0])
    kitchen = Kitchen(cfg, names[0], first.meta["config"], notice)
    found = _curve(cfg, kitchen, first) if cfg["wise"] else _soup(cfg["method"], kitchen, names, first)
    written = _write(out, kitchen, first, found)
    if refitted := [name for name in names if _is_refitted(name)]:
        log.warning(
            "%s: the refitted neck was left out; to refit the result: guie-train as before with ckpt=%s "
            "trainer.max_steps=1 optim.lr=0 trainer.freeze_bn=true",
            ", ".join(refitted),
            out,
        )
    print(f"{kitchen.table()}\ncheckpoint  {written}\ntable       {out / 'soup.json'}")


@dataclass
class Found:
    """The weights that were chosen, and what is told of them."""

    weights: Weights
    facts: dict[str, Any]


@dataclass
class Kitchen:
    """One embedder that tries weights on what is evaluated; `rows` is what was found, in that order."""

    cfg: Mapping[str, Any]
    name: str
    trained: Mapping[str, Any]
    notice: Any
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from guie.train.distributed import pick_device

        cfg, device = self.cfg, pick_device(self.cfg["device"])
        nodes = cfg["dataset"] or self.trained.get("eval_on", {})
        sets = assembly.evaluation_rows(evaluating.available(nodes, cfg))
        self.bench = assembly.bench(cfg, sets, device, self.notice)
        self.embedder = assembly.trained_embedder(Path(self.name).expanduser())[0].to(device)

    def score(self, tried: Weights, **named: Any) -> float:
        """Return the metric of these weights and add a row of them, called as `named`."""
        load_weights(self.embedder, tried, "embedder")
        numbers = self.bench.evaluation(self.bench.embeddings(self.embedder)).metrics
        metric, merged = self.cfg["metric"], numbers["merged"]
        if not isinstance(merged.get(metric), float):
            accepted = ", ".join(sorted(name for name, value in merged.items() if isinstance(value, float)))
            raise UserError(f"metric: '{metric}'; accepted: {accepted}")
        sets = self.bench.sets if len(self.bench.sets) > 1 else ()
        of_sets = {f"{metric}/{name}": numbers[name][metric] for name in sets}
        row = {**named, metric: merged[metric], **of_sets}
        self.rows.append(row)
        log.info("%s", "  ".join(f"{key} {value}" for key, value in row.items()))
        return merged[metric]

    def table(self) -> str:
        """Return the rows as lines of aligned columns."""
        heads = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [heads, *([_shown(row.get(key)) for key in heads] for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def blended(one: Weights, other: Weights, share: float) -> dict[str, Tensor]:
    """Return (1 - share) * one + share * other, formed in float64; whole numbers (counts) are of `one`."""
    return {
        name: torch.lerp(value.double(), other[name].double(), share).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in one.items()
    }


def _soup(method: str, kitchen: Kitchen, names: Sequence[str], first: State) -> Found:
    for name in names[1:]:
        refuse_differing(names[0], first, name, _read(name))
    scores = {name: kitchen.score(_read(name).trained, weights=name) for name in names}
    return (_greedy if method == "greedy" else _uniform)(kitchen, scores)


def _uniform(kitchen: Kitchen, scores: Mapping[str, float]) -> Found:
    """Return the mean of all runs."""
    weights: Weights = {}
    for count, name in enumerate(scores, 1):
        weights = blended(weights, _read(name).trained, 1 / count) if weights else _read(name).trained
    score = kitchen.score(weights, weights=f"mean of {len(scores)}")
    return Found(weights, {"method": "uniform", "chosen": list(scores), "score": score})


def _greedy(kitchen: Kitchen, scores: Mapping[str, float]) -> Found:
    """Return the mean of the runs that do not lower the metric, tried best first (their recipe 1)."""
    ranked = sorted(scores, key=lambda name: -scores[name])
    chosen, weights, best = [ranked[0]], _read(ranked[0]).trained, scores[ranked[0]]
    for name in ranked[1:]:
        tried = blended(weights, _read(name).trained, 1 / (len(chosen) + 1))
        score = kitchen.score(tried, weights=" + ".join([*chosen, name]))
        if score >= best:
            chosen, weights, best = [*chosen, name], tried, score
    return Found(weights, {"method": "greedy", "chosen": chosen, "score": best})


def _curve(cfg: Mapping[str, Any], kitchen: Kitchen, tuned: State) -> Found:
    """Return the best of the weights on the line from the start (alpha 0) to the tuned ones (1)."""
    if not cfg["points"] >= 2:
        raise UserError(f"points: {cfg['points']}; accepted: 2 or more, alpha 0 and 1 among them")
    start = _start(cfg, tuned)
    scores = {}
    for i in range(cfg["points"]):
        alpha = i / (cfg["points"] - 1)
        scores[alpha] = kitchen.score(blended(start, tuned.trained, alpha), alpha=alpha)
    best = max(scores, key=lambda alpha: (scores[alpha], alpha))
    facts = {"method": "wise", "tuned": cfg["wise"], "alpha": best, "score": scores[best]}
    return Found(blended(start, tuned.trained, best), facts)


def _start(cfg: Mapping[str, Any], tuned: State) -> Weights:
    """Return what the run began with: its `ckpt`, else its pretrained backbone under the neck it learnt."""
    config = tuned.meta["config"]
    place = cfg["start"] or config.get("ckpt")
    if place:
        began = _read(str(place))
        refuse_differing(cfg["wise"], tuned, str(place), began)
        return began.trained
    if not _is_pretrained(config["backbone"]):
        raise UserError(f"wise: {cfg['wise']} began with random weights; accepted: start=PATH")
    backbone = assembly.embedder(config).state_dict()
    of_backbone = {name: value for name, value in backbone.items() if name.startswith("backbone.")}
    return {**tuned.trained, **of_backbone}


def refuse_differing(name: str, one: State, other_name: str, other: State) -> None:
    """Raise UserError naming what of architecture, preprocessing or weights differs between two runs."""
    keys = runfolder.changed_keys(_described(one), _described(other))
    keys = [key for key in keys if key.rpartition(".")[2] not in OF_TRAINING]
    if keys:
        here, there = runfolder.flat(_described(one)), runfolder.flat(_described(other))
        shown = "; ".join(f"{key}: {here.get(key)!r} and {there.get(key)!r}" for key in keys[:5])
        raise UserError(f"ckpt: {name} and {other_name} differ in {shown}; accepted: one architecture")
    weights = (one.trained, other.trained)
    for weight in sorted(weights[0].keys() | weights[1].keys()):
        shapes = [tuple(of[weight].shape) if weight in of else "none" for of in weights]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"ckpt: {name} and {other_name} differ in {weight}: {shapes[0]} and {shapes[1]}; "
                "accepted: one architecture"
            )


def _described(state: State) -> dict[str, Any]:
    config = state.meta["config"]
    parts = {key: config[key] for key in ARCHITECTURE if key in config}
    return {**parts, "preprocess": state.meta["preprocess"]}


def _is_pretrained(node: Mapping[str, Any]) -> bool:
    inner = [item for item in node.values() if isinstance(item, Mapping)]
    return bool(node.get("pretrained")) or any(map(_is_pretrained, inner))


def _names(ckpt: Any) -> list[str]:
    names = [ckpt] if isinstance(ckpt, str) else [str(name) for name in ckpt]
    if len(names) < 2:
        raise UserError(f"ckpt: {', '.join(names)}; accepted: two runs or more, in brackets")
    return names


def _read(name: str) -> State:
    return checkpoint.read(Path(name).expanduser(), "last")


def _is_refitted(name: str) -> bool:
    return (checkpoint.locate(Path(name).expanduser(), "last") / "refit.safetensors").is_file()


def _write(out: Path, kitchen: Kitchen, first: State, found: Found) -> Path:
    facts = {"soup": {**found.facts, "metric": kitchen.cfg["metric"], "on": list(kitchen.bench.sets)}}
    meta = {**first.meta, **facts, "space_id": space_id(kitchen.embedder, found.weights)}
    state = State(first.step, {"embedder": dict(found.weights)}, {}, meta)
    written = checkpoint.Store(out / "checkpoints").save(state)
    runfolder.write_json(out / "soup.json", {**facts["soup"], "rows": kitchen.rows})
    return written


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
