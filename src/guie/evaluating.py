"""One evaluation from its config to its report: what guie-eval does."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from guie import embeddings, huggingface, results, safety
from guie.embeddings import DISTRACTORS, of_splits
from guie.errors import UserError
from guie.evaluate import Evaluation, Picture
from guie.measuring import Measured, keep_thresholds
from guie.protocols.chosen import chosen, over
from guie.search.chosen import chosen as chosen_search
from guie.types import Embeddings, Search

if TYPE_CHECKING:  # pyarrow.compute and torch cost saved embeddings more than their evaluation
    from guie.bench import Bench
    from guie.datasets.manifest import Manifest
    from guie.embed.several import Models
    from guie.views import Views

log = logging.getLogger("guie")

LONGEST = 120  # characters of the data sets' names together in that of a folder
# Keys that say how pictures are embedded, and which.
EMBEDS = ("ckpt", "weights", "combine", "keep", "ckpt_cls", "views", "backbone", "pool")
NAME = re.compile(r"\w[\w.-]*")  # of one of several models: files are called by it
PICTURES = ("dataset", "distractors", "bank", "eval_cap")


def of_saved(cfg: Mapping[str, Any]) -> None:
    """Evaluate saved embeddings: a folder of them, or one with a folder for each data set."""
    place = Path(cfg["embeddings"]).expanduser()
    for key in (*EMBEDS, *PICTURES):
        if cfg[key] not in (None, {}, "concat"):
            raise UserError(f"{key}: given with saved embeddings; accepted: one of the two")
    _check_against(cfg)
    found = saved_sets(place)
    present = {name: part.splits.tolist() for name, part in found.items() if cfg["split"]}
    protocols = over(chosen(cfg["protocol"], found), cfg["split"], present)
    bank = {name: of_splits(part, ("train",)) for name, part in found.items()}
    out = Path(cfg["out"] or place / "evaluation").expanduser()
    measured = Measured(cfg, protocols, chosen_search(cfg["search"], cfg["memory_mib"]), out)
    evaluation, facts = measured.on(found, {name: part for name, part in bank.items() if len(part.vectors)})
    facts = {"floors": {}, "seed": cfg["seed"], **facts}
    results.write_results(out, evaluation, facts, kept=found, against=cfg["against"])
    keep_thresholds(facts, out)
    print(f"report      {out / 'report.html'}")


def saved_sets(place: Path) -> dict[str, Embeddings]:
    """Return the saved embeddings at `place` by name; UserError where there are none."""
    folders = [place] if embeddings.is_saved(place) else sorted(filter(embeddings.is_saved, place.glob("*")))
    if not folders:
        raise UserError(
            f"embeddings: {place} holds none; accepted: a folder that guie wrote, or a folder of them"
        )
    return {folder.name: embeddings.load(folder) for folder in folders}


class Rows(NamedTuple):
    """By name what is evaluated, what steps are fitted on, what joins galleries: manifests or embeddings."""

    sets: Mapping[str, Any]
    bank: Mapping[str, Any]
    distractors: Mapping[str, Any]

    def together(self) -> dict[str, Any]:
        """Return all of them, under names that differ."""
        return {f"{kind}{name}": one for kind, rows in self._kinds() for name, one in rows.items()}

    def apart(self, found: Mapping[str, Any]) -> Rows:
        """Return what was made of `together`, as it was before."""
        return Rows(*({name: found[f"{kind}{name}"] for name in rows} for kind, rows in self._kinds()))

    def _kinds(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return zip(("", "bank-", "distractors-"), self, strict=True)


def of_model(cfg: Mapping[str, Any], notice: Any, here: Any) -> None:
    """Embed and evaluate a run, a checkpoint, or (ckpt=none) a backbone alone; by all processes of `here`."""
    from guie import assembly

    _check_against(cfg)
    models = trained_models(cfg, here)
    trained, folder = models.trained, models.folder
    if not cfg["dataset"]:  # evaluated as it was in training
        seen = assembly.evaluated_in_training(trained or {})
        cfg = {**cfg, "dataset": seen["eval_on"], "protocol": cfg["protocol"] or seen["protocol"]}
    rows = _rows(cfg, here)
    views = assembly.views(cfg)
    home = _home(folder)
    name = ("" if home == folder else f"{folder.name}-") + _name(rows.sets, cfg, views)
    out = Path(cfg["out"]).expanduser() if cfg["out"] else home / "eval" / name
    bench = assembly.bench(cfg, rows.sets, here.device, notice, out, here, views)
    measured = Measured(
        cfg,
        bench.protocols,
        _of_all(bench.search, here),
        out,
        _pictures(rows.sets, rows.distractors),
        here.is_main,
    )
    measured.check(models.space_id(views), rows.bank, rows.distractors)
    here.on_main(lambda: out.mkdir(parents=True, exist_ok=True))
    found = rows.apart(models.embeddings(replace(bench, sets=rows.together()), out))
    floors = here.on_main(lambda: _floors(cfg, bench, trained, here.device))
    evaluation, facts = measured.on(*found)
    gate = {"ckpt_cls": cfg["ckpt_cls"]} if cfg["ckpt_cls"] else {}
    facts = {"floors": floors, "seed": cfg["seed"], **models.facts, **gate, **facts}
    embedded = facts.get("thresholds_space_id") == facts.get("vectors_space_id", facts["space_id"])
    as_trained = trained and home == folder and cfg["keep"] is None and views is None and embedded
    written = partial(results.write_results, found=found.sets, sets=rows.sets, against=cfg["against"])
    here.on_main(lambda: _written(out, evaluation, facts, written, [folder] if as_trained else []))


def _rows(cfg: Mapping[str, Any], here: Any) -> Rows:
    """Return the manifests of what is evaluated, of `bank` and of `distractors`."""
    from guie import assembly

    opened = here.on_main_first(partial(available, cfg["dataset"], cfg))
    sets = assembly.evaluation_rows(opened, assembly.protocols(cfg, opened), cfg["eval_cap"])
    return Rows(sets, *(here.on_main_first(partial(_beside, cfg, key)) for key in ("bank", "distractors")))


def _floors(cfg: Mapping[str, Any], bench: Bench, trained: Mapping[str, Any] | None, device: Any) -> dict:
    """Return the floors, each picture seen once, by this process alone; {} where they are not wanted."""
    from guie import assembly

    if not cfg["floors"]:
        return {}
    untrained = assembly.untrained_embedder(trained).to(device) if trained else None
    return replace(bench, here=None, reader=bench.reader._replace(views=None)).floors(untrained)


def _home(folder: Path) -> Path:
    """Return the folder whose eval/ takes the results: a checkpoint's run, for it stays as it was saved.

    So does a Hugging Face folder, whose results go below runs/.
    """
    place = huggingface.local(folder)
    if huggingface.is_published(place):
        return Path("runs") / f"eval-{huggingface.title(place)}"
    saved = (folder / "manifest.json").is_file() and folder.parent.name == "checkpoints"
    return folder.parent.parent if saved else folder


def _name(sets: Mapping[str, Any], cfg: Mapping[str, Any], views: Views | None) -> str:
    """Return the name of the folder of results: another one for each space; not longer than names may be."""
    from guie.embed.space import digest

    name = "+".join(sets)
    if len(name) > LONGEST:
        name = f"{next(iter(sets))}+{len(sets) - 1}-{digest(name)[:8]}"
    keep = "" if cfg["keep"] is None else f"-keep{cfg['keep']}"
    return name + keep + ("" if views is None else f"-views-{digest(views.key)[:8]}")


def _check_against(cfg: Mapping[str, Any]) -> None:
    """Raise UserError where there is no evaluation to compare with, before anything is embedded."""
    if cfg["against"]:
        from guie.comparing.pairing import read

        read("against", cfg["against"])


def _written(
    out: Path,
    evaluation: Evaluation,
    facts: Mapping[str, Any],
    write: Callable[[Path, Evaluation, Mapping[str, Any]], None],
    model: Sequence[Path],
) -> None:
    write(out, evaluation, facts)
    keep_thresholds(facts, out, *model)
    if short := safety.shortfalls(evaluation.metrics, facts["floors"], evaluation.named):
        log.warning("%s", safety.told(short))
    print(f"report      {out / 'report.html'}")


def trained_models(cfg: Mapping[str, Any], here: Any) -> Models:
    """Return what `ckpt` names, cut to `keep`, joined as `weights` and `combine` say."""
    from guie import assembly
    from guie.embed import ensemble
    from guie.embed.several import Models

    places = here.on_main(partial(chosen_models, cfg))
    joined = ensemble.chosen(cfg["weights"], cfg["combine"], list(places))
    stamp = here.on_main(lambda: time.strftime("%Y%m%d-%H%M%S"))
    folder, trained = Path("runs") / f"eval-{stamp}", None
    if places == {"": None}:
        return Models({"": _kept(cfg, backbone_alone(cfg))}, joined, folder, {"ckpt": str(folder)})
    loaded = {name: assembly.trained_embedder(str(path)) for name, path in places.items()}
    if "" in loaded:
        folder, trained = Path(str(places[""])), loaded[""][1]["config"]
    embedders = {name: _kept(cfg, embedder) for name, (embedder, _) in loaded.items()}
    told = {"ckpt": str(folder)} if "" in loaded else {"ckpt": places, **joined.told()}
    return Models(embedders, joined, folder, told, trained)


def _kept(cfg: Mapping[str, Any], embedder: Any) -> Any:
    """Return the embedder, the first `keep` of its numbers where that is given."""
    if cfg["keep"] is not None:
        embedder.cut_to(cfg["keep"])
    return embedder


def chosen_models(cfg: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the run or checkpoint of each model by name, '' where there is one alone; None: no training."""
    ckpt = cfg["ckpt"]
    if ckpt == "none":
        return {"": None}
    if ckpt is None or isinstance(ckpt, str):
        return {"": str(Path(ckpt).expanduser() if ckpt else newest_run(Path("runs")))}
    if not ckpt or not isinstance(ckpt, Mapping):
        raise UserError(f"ckpt: {ckpt}; accepted: a run, or several by name as in ckpt={{a:runs/a,b:runs/b}}")
    for name, path in ckpt.items():
        if not NAME.fullmatch(str(name)):
            raise UserError(f"ckpt: '{name}' as a model's name; accepted: letters, digits, '_' and '-'")
        if not isinstance(path, str):
            raise UserError(f"ckpt.{name}: {path!r}; accepted: a run or checkpoint")
    return {str(name): str(Path(path).expanduser()) for name, path in ckpt.items()}


def _of_all(search: Search, here: Any) -> Search:
    """Return the search with the gallery cut over the processes."""
    if here.size == 1:
        return search
    from guie.search.sharded import Sharded

    return Sharded(search, here.rank, here.size, here.gather)


def _beside(cfg: Mapping[str, Any], key: str) -> dict[str, Manifest]:
    """Return the rows of `bank` (split train) or `distractors` (all) by data set, none where not chosen."""
    from guie import assembly

    if not cfg[key]:
        return {}
    found = assembly.manifests(cfg[key], cfg["data_root"], key=key)
    if key == "distractors":
        return found
    rows = {name: manifest.split("train") for name, manifest in found.items()}
    for name, manifest in rows.items():
        if not len(manifest):
            raise UserError(f"bank: {name} has no rows of split train; accepted: training pictures")
    return rows


def _pictures(sets: Mapping[str, Manifest], distractors: Mapping[str, Manifest]) -> Picture:
    """Return how to read the picture of a data set's row, or of a distractor in its gallery."""
    from guie.datasets.evaluated import reader

    mine, others = ({name: reader(rows) for name, rows in side.items()} for side in (sets, distractors))

    def read(name: str, file: str) -> bytes:
        own, joined, _ = name.partition("+")
        kind, _, rest = file.partition("/")
        source, _, rest = rest.partition("/")
        if joined and kind == DISTRACTORS and source in others:
            return others[source](rest)
        return mine[own](file)

    return read


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
