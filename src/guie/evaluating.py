"""One evaluation from its config to its report: what guie-eval does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guie import embeddings, results, safety
from guie.build import build
from guie.embeddings import DISTRACTORS, concatenate, of_splits, one_space, with_distractors
from guie.errors import UserError
from guie.evaluate import Evaluation, Picture, by_step, evaluate
from guie.protocols.chosen import chosen, over
from guie.protocols.part import Protocol, splits_of
from guie.search.chosen import chosen as chosen_search
from guie.types import Embeddings, Search, Side

if TYPE_CHECKING:  # pyarrow.compute costs saved embeddings more than their evaluation
    from guie.datasets.manifest import Manifest

log = logging.getLogger("guie")


def of_saved(cfg: Mapping[str, Any]) -> None:
    """Evaluate saved embeddings: a folder of them, or one with a folder for each data set."""
    place = Path(cfg["embeddings"]).expanduser()
    _check_against(cfg)
    found = saved_sets(place)
    present = {name: part.splits.tolist() for name, part in found.items() if cfg["split"]}
    protocols = over(chosen(cfg["protocol"], found), cfg["split"], present)
    for key in ("distractors", "bank", "eval_cap", "keep"):
        if cfg[key] not in (None, {}):
            raise UserError(f"{key}: given with saved embeddings; accepted: with ckpt=PATH, which embeds")
    bank = {name: of_splits(part, ("train",)) for name, part in found.items()}
    out = Path(cfg["out"] or place / "evaluation").expanduser()
    measured = Measured(cfg, protocols, chosen_search(cfg["search"], cfg["memory_mib"]), out)
    evaluation, facts = measured.on(found, {name: part for name, part in bank.items() if len(part.vectors)})
    facts = {"floors": {}, "seed": cfg["seed"], **facts}
    results.write_results(out, evaluation, facts, kept=found, against=cfg["against"])
    _keep_thresholds(facts, out)
    print(f"report      {out / 'report.html'}")


@dataclass(frozen=True)
class Measured:
    """How embeddings are evaluated: by `protocols`, through `search` and the steps of `postprocess`.

    What was fitted is kept in `out`/postprocess, by the process that `writes`. `picture` serves steps that
    look at pictures.
    """

    cfg: Mapping[str, Any]
    protocols: Mapping[str, Protocol]
    search: Search
    out: Path
    picture: Picture | None = None
    writes: bool = True

    def on(
        self,
        found: Mapping[str, Embeddings],
        bank: Mapping[str, Embeddings],
        distractors: Mapping[str, Embeddings] | None = None,
    ) -> tuple[Evaluation, dict[str, Any]]:
        """Return the evaluation and facts for metrics.json: space_id, search, steps.

        Steps that need training vectors are fitted on `bank`. With `distractors` each set is evaluated again,
        as `<set>+<distractors>`, with these in its gallery. Raises UserError where the spaces differ.
        """
        one_space({**found, **(distractors or {}), **bank})
        space = next(iter(found.values())).space_id
        pipeline = self._pipeline(bank, space)
        steps = pipeline.upto() if pipeline else [("", self.search)]
        evaluation, told = by_step(found, self.protocols, steps, picture=self.picture)
        if distractors:
            name = "+".join(distractors)
            parts = {f"{k}+{name}": self._joined(k, part, distractors) for k, part in found.items()}
            protocols = {f"{k}+{name}": one for k, one in self.protocols.items()}
            last = pipeline or self.search
            again = evaluate(parts, protocols, search=last, picture=self.picture, merged=False)
            evaluation = evaluation.with_further(again)
        facts: dict[str, Any] = {"space_id": pipeline.space_id(space) if pipeline else space}
        if pipeline:
            facts |= {"vectors_space_id": space, "postprocess": list(pipeline.steps), "steps": told}
        described: dict[str, Any] = getattr(self.search, "facts", dict)()
        facts |= {"search": described} if described else {}
        return evaluation, facts | self._sheets(found, bank)

    def _sheets(self, found: Mapping[str, Embeddings], bank: Mapping[str, Embeddings]) -> dict[str, Any]:
        """Return what is asked for of vectors as embedded; thresholds and open set from one process."""
        facts: dict[str, Any] = {}
        if self.cfg["thresholds"] and self.writes:
            from guie.calibrate.thresholds import calibrate

            rows, reports = calibrate(found, self.protocols, seed=self.cfg["seed"])
            facts |= {"thresholds": rows, "open_set": reports}
        if self.cfg["compression"]:
            from guie.compression import sheet

            facts["compression"] = sheet(found, self.protocols, bank, self.search)
        return facts

    def _joined(self, name: str, part: Embeddings, distractors: Mapping[str, Embeddings]) -> Embeddings:
        asks, answers = splits_of(self.protocols[name])
        only = [split for split in answers if split not in asks]
        if not only:
            raise UserError(f"distractors: {name} is searched by itself alone; accepted: a set with an index")
        return with_distractors(part, distractors, "index" if "index" in only else only[0])

    def _pipeline(self, bank: Mapping[str, Embeddings], space: str) -> Any:
        if not self.cfg["postprocess"]:
            return None
        from guie.postprocess import saved
        from guie.postprocess.pipeline import Pipeline

        nodes = self.cfg["postprocess"]
        steps = {name: build(node, where=f"postprocess.{name}") for name, node in nodes.items()}
        pipeline = Pipeline(steps, self.search)
        if self.cfg["fitted"]:
            saved.load(pipeline, Path(self.cfg["fitted"]).expanduser(), space_id=space)
        elif needing := [name for name, step in steps.items() if step.needs_bank and not step.state()]:
            if not bank:
                raise UserError(
                    f"postprocess.{needing[0]}: no training vectors; accepted: bank=NAME or fitted=FOLDER"
                )
            whole = concatenate(bank)
            pipeline.fit(Side(np.ascontiguousarray(whole.vectors), whole.files, whole.labels))
            if self.writes:
                saved.save(pipeline, self.out / "postprocess", space_id=space)
        return pipeline


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


def of_model(cfg: Mapping[str, Any], notice: Any, here: Any) -> None:
    """Embed and evaluate a run, a checkpoint, or (ckpt=none) a backbone alone; by all processes of `here`."""
    from guie import assembly
    from guie.embed.space import space_id

    _check_against(cfg)
    embedder, trained, folder = _model(cfg, here)
    nodes = cfg["dataset"] or (trained or {}).get("eval_on", {})
    if not cfg["dataset"]:  # evaluated as it was in training
        cfg = {**cfg, "protocol": cfg["protocol"] or (trained or {}).get("protocol") or {}}
    opened = here.on_main_first(partial(available, nodes, cfg))
    sets = assembly.evaluation_rows(opened, assembly.protocols(cfg, opened), cfg["eval_cap"])
    bank, distractors = (here.on_main_first(partial(_beside, cfg, key)) for key in ("bank", "distractors"))
    out = Path(cfg["out"]).expanduser() if cfg["out"] else folder / "eval" / _name(sets, cfg["keep"])
    here.on_main(lambda: out.mkdir(parents=True, exist_ok=True))
    bench = assembly.bench(cfg, sets, here.device, notice, out, here)
    every = {**sets, **_named(bank, "bank"), **_named(distractors, "distractors")}
    vectors = replace(bench, sets=every).embeddings(embedder.to(here.device), out)
    untrained = assembly.untrained_embedder(trained).to(here.device) if trained and cfg["floors"] else None
    alone = replace(bench, here=None)
    floors = here.on_main(lambda: alone.floors(untrained) if cfg["floors"] else {})
    picture = _pictures(sets, distractors)
    measured = Measured(cfg, bench.protocols, _of_all(bench.search, here), out, picture, here.is_main)
    found, fitting, more = (
        {name: vectors[key] for key, name in keys.items()}
        for keys in ({name: name for name in sets}, _keys(bank, "bank"), _keys(distractors, "distractors"))
    )
    evaluation, facts = measured.on(found, fitting, more)
    assert facts["space_id"] == space_id(embedder) or cfg["postprocess"]
    facts = {"floors": floors, "seed": cfg["seed"], "ckpt": str(folder), **facts}
    model = [folder] if trained and folder.is_dir() and cfg["keep"] is None else []
    written = partial(results.write_results, found=found, sets=sets, against=cfg["against"])
    here.on_main(lambda: _written(out, evaluation, facts, written, model))


def _name(sets: Mapping[str, Any], keep: int | None) -> str:
    return "+".join(sets) + ("" if keep is None else f"-keep{keep}")


def _check_against(cfg: Mapping[str, Any]) -> None:
    """Raise UserError where there is no evaluation to compare with, before anything is embedded."""
    if cfg["against"]:
        from guie.comparing.pairing import read

        read("against", cfg["against"])


def _keep_thresholds(facts: Mapping[str, Any], *folders: Path) -> None:
    """Write thresholds.json into the evaluation's folder, and the model's."""
    if facts.get("thresholds"):
        from guie.calibrate.thresholds import Thresholds

        space = facts.get("vectors_space_id", facts["space_id"])
        for folder in folders:
            print(f"thresholds  {Thresholds(space, facts['thresholds']).save(folder)}")


def _written(
    out: Path,
    evaluation: Evaluation,
    facts: Mapping[str, Any],
    write: Callable[[Path, Evaluation, Mapping[str, Any]], None],
    model: Sequence[Path],
) -> None:
    write(out, evaluation, facts)
    _keep_thresholds(facts, out, *model)
    if short := safety.shortfalls(evaluation.metrics, facts["floors"], evaluation.named):
        log.warning("%s", safety.told(short))
    print(f"report      {out / 'report.html'}")


def _model(cfg: Mapping[str, Any], here: Any) -> tuple[Any, Mapping[str, Any] | None, Path]:
    """Return the embedder, the config that it was trained by (None: a backbone alone), and its folder."""
    from guie import assembly

    if cfg["ckpt"] == "none":
        stamp = here.on_main(lambda: time.strftime("%Y%m%d-%H%M%S"))
        embedder, trained, folder = backbone_alone(cfg), None, Path("runs") / f"eval-{stamp}"
    else:
        newest = partial(newest_run, Path("runs"))
        folder = Path(cfg["ckpt"]).expanduser() if cfg["ckpt"] else here.on_main(newest)
        embedder, meta = assembly.trained_embedder(folder)
        trained = meta["config"]
    if cfg["keep"] is not None:
        embedder.cut_to(cfg["keep"])
    return embedder, trained, folder


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


def _keys(rows: Mapping[str, Manifest], kind: str) -> dict[str, str]:
    """Return {name among all that is embedded: name of the data set}."""
    return {f"{kind}-{name}": name for name in rows}


def _named(rows: Mapping[str, Manifest], kind: str) -> dict[str, Manifest]:
    return {key: rows[name] for key, name in _keys(rows, kind).items()}


def _pictures(sets: Mapping[str, Manifest], distractors: Mapping[str, Manifest]) -> Picture:
    """Return how to read the picture of a data set's row, or of a distractor in its gallery."""
    from guie.datasets.evaluated import reader

    mine, others = ({name: reader(rows) for name, rows in side.items()} for side in (sets, distractors))

    def read(name: str, file: str) -> bytes:
        kind, _, rest = file.partition("/")
        if kind == DISTRACTORS:
            source, _, file = rest.partition("/")
            return others[source](file)
        return mine[name.partition("+")[0]](file)

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
