"""One evaluation from its config to its report: what guie-eval does."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guie import embeddings, results, safety
from guie.errors import UserError
from guie.evaluate import evaluate
from guie.search.exact import Exact
from guie.types import Embeddings

if TYPE_CHECKING:  # pyarrow.compute costs saved embeddings more than their evaluation
    from guie.datasets.manifest import Manifest

log = logging.getLogger("guie")


def of_saved(cfg: Mapping[str, Any]) -> None:
    """Evaluate saved embeddings: a folder of them, or one with a folder for each data set."""
    place = Path(cfg["embeddings"]).expanduser()
    found = saved_sets(place)
    evaluation = evaluate(found, search=Exact(memory_mib=cfg["memory_mib"]))
    spaces = sorted({part.space_id for part in found.values()})
    facts = {"floors": {}, "space_id": spaces[0], "seed": cfg["seed"]}
    out = Path(cfg["out"] or place / "evaluation").expanduser()
    results.write_results(out, evaluation, facts)
    print(f"report      {out / 'report.html'}")


def saved_sets(place: Path) -> dict[str, Embeddings]:
    """Return the saved embeddings at `place` by name; UserError where there are none or several spaces."""
    folders = (
        [place] if (place / "meta.json").exists() else sorted(p.parent for p in place.glob("*/meta.json"))
    )
    if not folders:
        raise UserError(
            f"embeddings: {place} holds none; accepted: a folder that guie wrote, or a folder of them"
        )
    found = {folder.name: embeddings.load(folder) for folder in folders}
    first = next(iter(found.values())).space_id
    for name, part in found.items():
        if part.space_id != first:
            raise UserError(
                f"embeddings: {name} is of space {part.space_id}, not {first}; accepted: one space"
            )
    return found


def of_model(cfg: Mapping[str, Any], notice: Any) -> None:
    """Embed and evaluate a run, a checkpoint, or (ckpt=none) a backbone alone."""
    from guie import assembly
    from guie.embed.space import space_id
    from guie.train.distributed import pick_device

    device = pick_device(cfg["device"])
    if cfg["ckpt"] == "none":
        embedder, trained, folder = (
            backbone_alone(cfg),
            None,
            Path("runs") / f"eval-{time.strftime('%Y%m%d-%H%M%S')}",
        )
    else:
        folder = Path(cfg["ckpt"]).expanduser() if cfg["ckpt"] else newest_run(Path("runs"))
        embedder, meta = assembly.trained_embedder(folder)
        trained = meta["config"]
    nodes = cfg["dataset"] or (trained or {}).get("eval_on", {})
    sets = assembly.evaluation_rows(available(nodes, cfg))
    out = Path(cfg["out"]).expanduser() if cfg["out"] else folder / "eval" / "+".join(sets)
    out.mkdir(parents=True, exist_ok=True)
    bench = assembly.bench(cfg, sets, device, notice, listed_in=out)
    found = bench.embeddings(embedder.to(device), out)
    untrained = assembly.untrained_embedder(trained).to(device) if trained and cfg["floors"] else None
    floors = bench.floors(untrained) if cfg["floors"] else {}
    facts = {"floors": floors, "space_id": space_id(embedder), "seed": cfg["seed"], "ckpt": str(folder)}
    evaluation = bench.evaluation(found)
    results.write_results(out, evaluation, facts, found=found, sets=sets)
    if short := safety.shortfalls(evaluation.metrics, floors):
        log.warning("%s", safety.told(short))
    print(f"report      {out / 'report.html'}")


def backbone_alone(cfg: Mapping[str, Any]) -> Any:
    """Return `backbone` with `pool` (by default its own or average) and no neck."""
    from guie import assembly

    if not cfg["backbone"]:
        raise UserError("backbone: nothing chosen; ckpt=none evaluates a backbone alone: backbone=NAME")
    pool = cfg["pool"] or {"_target_": "guie.models.pooling.Average"}
    return assembly.untrained_embedder({**cfg, "pool": pool})


def newest_run(folder: Path) -> Path:
    """Return the newest finished run below `folder`, and say which."""
    from guie.runfolder import start_state

    runs = [path.parent for path in folder.glob("*/run.json") if start_state(path.parent) == "finished"]
    if not runs:
        raise UserError("ckpt: not given and no finished run under runs/; accepted: ckpt=PATH or ckpt=none")
    newest = max(runs, key=lambda run: (run / "run.json").stat().st_mtime)
    log.info("ckpt: %s (the newest finished run)", newest)
    return newest


def available(nodes: Mapping[str, Any], cfg: Mapping[str, Any]) -> dict[str, Manifest]:
    """Return the manifests that can be opened; of several a missing one is skipped with a line."""
    from guie import assembly

    found: dict[str, Manifest] = {}
    for name, node in nodes.items():
        try:
            found |= assembly.manifests({name: node}, cfg["data_root"])
        except UserError as error:
            if len(nodes) == 1:
                raise
            log.info("skipped %s: %s", name, error)
    if not found:
        raise UserError(
            f"dataset: {', '.join(nodes) or 'nothing chosen'}: none of it can be opened; accepted: a name"
        )
    return found
