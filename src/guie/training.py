"""One training run from its config to its report: what guie-train does, in the order it happens."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from guie import assembly, checkpoint, results, runfolder, safety, starting
from guie.bench import Bench
from guie.build import build, resolve
from guie.data.sampling import rank_slots
from guie.datasets.manifest import SPLITS, Manifest
from guie.embed.batches import CachedBatches
from guie.embed.features import augmented_views, cache_features
from guie.embed.reading import Reader
from guie.embed.space import space_id
from guie.errors import UserError
from guie.models.weights import checked_file, is_file_name
from guie.train import fsdp, trackers
from guie.train.distributed import Hardware, World
from guie.train.hooks import JsonLines, LogLines
from guie.train.loop import Run, Settings, Summary, Task, fit
from guie.train.progress import progress

log = logging.getLogger("guie")

CAPPED_FLOORS = "floors_capped.json"  # of what is evaluated during training, where that is not everything

Init = str | float
"""Which checkpoint of a stage the next one starts from: last, best, step_<number>, or that of an epoch."""


class Data(NamedTuple):
    """What is trained on, and by name what is evaluated on; `counts`: images and classes of training sets."""

    rows: Manifest
    asked: Mapping[str, Manifest]
    leaks: Sequence[str]
    counts: Mapping[str, Mapping[str, int]]


class Model(NamedTuple):
    """What is trained, with the weights that it begins with."""

    embedder: Any
    head: Any


@dataclass
class Job:
    """A run that is ready to fit."""

    cfg: Mapping[str, Any]
    folder: Path
    here: World
    task: Task
    settings: Settings
    hardware: Hardware
    run: Run
    bench: Bench
    leaks: Sequence[str] = ()


def train(
    cfg: Mapping[str, Any], here: World, notice: Any, data: Data | None = None, keep: Init | None = None
) -> int:
    """Train as `cfg` says, evaluate and report; return the exit code, 143 or 130 where it was asked to stop.

    `data`: what is trained and evaluated on, where it is open already. `keep`: the checkpoint that another
    stage will start from.
    """
    with ExitStack() as stack:
        data = data or open_data(cfg, here)
        folder = Path(here.on_main(lambda: str(choose_folder(cfg))))
        here.on_main(lambda: runfolder.check(folder, cfg, cfg["resume"]))
        model = here.on_main_first(partial(new_model, cfg, data.rows))
        start = here.on_main(lambda: open_folder(stack, folder, cfg))
        job = keeping(prepare(cfg, data, model, folder, start, here, notice), keep)
        summary = fit_job(job)
        if summary.exit_code == 0:
            here.on_main(lambda: conclude(job))
    return summary.exit_code


def choose_folder(cfg: Mapping[str, Any]) -> Path:
    """Return `run_dir`, or a new name under runs/."""
    if cfg["run_dir"]:
        return Path(cfg["run_dir"]).expanduser()
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        raise UserError("run_dir: not given, and torchrun has restarted; accepted: run_dir=... resume=auto")
    return Path("runs") / f"{cfg['preset'] or 'train'}-{time.strftime('%Y%m%d-%H%M%S')}"


def open_folder(stack: ExitStack, path: Path, cfg: Mapping[str, Any]) -> str | None:
    """Lock the run folder for as long as `stack` lasts; return the checkpoint to continue from."""
    folder = stack.enter_context(runfolder.opened(path, cfg, cfg["resume"]))
    stack.enter_context(runfolder.log_file(path))
    log.info("run folder: %s", path)
    if folder.start:
        log.info("continuing from %s", folder.start)
    return str(folder.start) if folder.start else None


def open_data(cfg: Mapping[str, Any], here: World, opened: Data | None = None) -> Data:
    """Return the rows to train and to evaluate on.

    Comes before the run folder is made, so that a mistake leaves none behind; settings are checked, too.
    `opened`: the same data, where another stage has opened it.
    """
    build(cfg["trainer"], where="trainer").check()
    fsdp.check(build(cfg["hw"], where="hw"))
    trackers.check(resolve(cfg["tracker"]["_target_"]))
    _check_weights(cfg["backbone"])
    if cfg["ckpt"]:
        checkpoint.locate(Path(cfg["ckpt"]).expanduser(), "last")
    found = opened or _opened(cfg, here)
    _check_batches(cfg, found.rows, here.size)
    return found


def _opened(cfg: Mapping[str, Any], here: World) -> Data:
    # The main process makes what is cached (drawn pictures, Arrow copies); then all read it.
    data = here.on_main(partial(assembly.manifests, cfg["dataset"], cfg["data_root"]))
    eval_sets = here.on_main(partial(assembly.manifests, cfg["eval_on"], cfg["data_root"], key="eval_on"))
    rows = assembly.training_rows(data)
    asked = assembly.evaluation_rows(eval_sets, assembly.protocols(cfg, eval_sets))
    trained = {name: manifest.split("train") for name, manifest in data.items()}
    unseen = {name: manifest.split(*(s for s in SPLITS if s != "train")) for name, manifest in asked.items()}
    leaks = here.on_main(partial(safety.checked_leaks, trained, unseen, cfg["leakage"]))
    counts = {name: {"images": len(part), "classes": part.num_classes} for name, part in trained.items()}
    return Data(rows, asked, leaks, counts)


def _check_batches(cfg: Mapping[str, Any], rows: Manifest, ranks: int) -> None:
    """Raise UserError where no batch can be made of these rows, or it does not divide among the ranks."""
    settings = build(cfg["trainer"], where="trainer")
    rank_slots(settings.batch_size, 0, ranks, settings.accumulate)
    assembly.sampler(cfg, rows)


def _check_weights(node: Mapping[str, Any]) -> None:
    """Raise UserError where a backbone's file of weights is not there; a hub is asked when it is built."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            _check_weights(value)
        elif key == "pretrained" and isinstance(value, str) and is_file_name(value):
            checked_file(value)


def new_model(cfg: Mapping[str, Any], rows: Manifest) -> Model:
    """Return embedder and head.

    Comes before the run folder is made, so that weights which cannot be had leave none behind.
    """
    embedder = assembly.embedder(cfg)
    num_classes = rows.num_classes * cfg["augment"].get("orientations", 1)
    return Model(embedder, assembly.head(cfg, embedder, rows, num_classes))


def prepare(
    cfg: Mapping[str, Any],
    data: Data,
    model: Model,
    folder: Path,
    start: str | None,
    here: World,
    notice: Any,
) -> Job:
    """Return the job: floors measured (once), weights loaded."""
    rows, asked, leaks, counts = data
    embedder, head = model
    for leak in leaks:
        log.warning("%s", leak)
    settings, hardware = build(cfg["trainer"], where="trainer"), build(cfg["hw"], where="hw")
    bench = assembly.bench(cfg, asked, here.device, notice, listed_in=folder)
    trial = bench.capped(cfg["eval_cap"])
    here.on_main(lambda: _measure_floors(cfg, folder, bench, trial, here))
    former = starting.take_embedder(embedder, cfg["ckpt"]) if cfg["ckpt"] else None
    listed = folder / "bad_images_train.csv"
    loader = here.on_main_first(partial(_loader, cfg, rows, embedder, listed, notice))
    labels = starting.labels(cfg, rows, loader.num_classes)
    here.on_main(lambda: runfolder.write_labels(folder, **labels))
    if former and not start:
        means = partial(starting.class_means, cfg, embedder, rows, labels["names"], here, notice)
        log.info("%s", starting.take_head(cfg, former, head, labels, means))
    log.info("%s", _described(rows, asked, embedder, head))
    optimizer = build(cfg["optim"], where="optim", embedder=embedder, head=head)
    batches = _batches(cfg, rows, embedder, loader, here, settings, notice)
    task = Task(
        embedder,
        head,
        optimizer,
        batches,
        loader.steps_per_epoch,
        evaluate=lambda model, step: here.on_main(lambda: _evaluated(trial, model, folder, step)),
        features=settings.cache_features,
        refit=partial(_refit, cfg, loader, folder, here, notice) if settings.refit_shrinkage else None,
    )
    run = _run(cfg, folder, embedder, start, here)
    run = replace(run, meta={**run.meta, "data": dict(counts)})
    return Job(cfg, folder, here, task, settings, hardware, run, bench, leaks)


def _loader(cfg: Mapping[str, Any], rows: Manifest, embedder: Any, listed: Path, notice: Any) -> Any:
    from guie.data.bad_images import BadImages

    bad = BadImages(rows, listed, cfg["bad_images"], cfg["max_bad_share"])
    progress = partial(notice, "decoding pictures")
    return assembly.loader(cfg, rows, embedder.preprocess, bad_images=bad, progress=progress)


def _batches(
    cfg: Mapping[str, Any],
    rows: Manifest,
    embedder: Any,
    loader: Any,
    here: World,
    settings: Settings,
    notice: Any,
) -> Any:
    if not settings.cache_features:
        return lambda first, last: loader.batches(first, last, here.rank, here.size)
    views = None
    if getattr(loader.augment, "growth", None):
        raise UserError("augment.growth: set with trainer.cache_features; accepted: one of the two")
    if settings.cache_views > 1:
        key = f"{cfg['augment']}"
        views = augmented_views(loader.augment, rows, settings.cache_views, cfg["seed"], key, loader.pixels)
    embedder.to(here.device)
    cache = here.on_main_first(
        partial(
            cache_features,
            embedder,
            rows,
            assembly.cache_folder(cfg),
            Reader(device=here.device, threads=cfg["hw"]["threads"]),
            views=views,
            bad_images=loader.bad_images,
            progress=partial(notice, "frozen features"),
        )
    )
    steps = settings.num_steps(loader.steps_per_epoch)
    mixup = assembly.mixup(settings, steps, cfg["seed"])
    columns = (rows.labels, rows.domains, cfg["seed"], mixup, loader.side)
    cached = CachedBatches(cache, loader.sampler, *columns)
    return lambda first, last: cached.batches(first, last, here.rank, here.size)


def _refit(
    cfg: Mapping[str, Any], loader: Any, folder: Path, here: World, notice: Any, embedder: Any
) -> None:
    """Refit the neck to the features of the training pictures as evaluation sees them."""
    from guie.models.refit import refit

    rows = loader.bad_images.manifest
    with TemporaryDirectory(dir=folder, prefix=".refit-") as own:
        cache = cache_features(
            embedder,
            rows,
            assembly.cache_folder(cfg) if cfg["trainer"]["cache_features"] else Path(own),
            Reader(device=here.device, threads=cfg["hw"]["threads"]),
            bad_images=loader.bad_images,
            progress=partial(notice, "features for the neck"),
        )
        features = cache.features[0]
        if loader.side is not None:
            features = np.hstack([features, loader.side])
        refit(embedder.neck, features, rows.labels, cfg["trainer"]["refit_shrinkage"])


def _measure_floors(cfg: Mapping[str, Any], folder: Path, bench: Bench, trial: Bench, here: World) -> None:
    """Measure what needs no training, once: on everything, and on what is evaluated during training."""
    path = folder / "floors.json"
    if not path.exists():
        untrained = assembly.untrained_embedder(cfg).to(here.device)
        if trial is not bench:
            runfolder.write_json(folder / CAPPED_FLOORS, {safety.FROZEN: trial.frozen(untrained)})
        floors = bench.floors(untrained)
        runfolder.write_json(path, floors)
        merged = {name: found.get("merged", {}).get("mP@5") for name, found in floors.items()}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in merged.items() if value is not None)
        log.info("floors (mP@5, merged index): %s", shown or "no data set that goes by label")


def _evaluated(bench: Bench, model: Any, folder: Path, step: int) -> dict[str, float]:
    evaluation = bench.evaluation(bench.embeddings(model))
    numbers, named = evaluation.metrics, evaluation.named
    capped = folder / CAPPED_FLOORS
    floors = runfolder.read_json(capped if capped.exists() else folder / "floors.json")
    if short := safety.shortfalls(numbers, floors, named):
        log.warning("step %d: %s", step, safety.told(short))
    merged, sets = numbers.get("merged", {}), list(bench.sets)
    found = {name: merged[name] for name in ("mP@5", "R@1") if name in merged}
    if "mP@5" in (frozen := floors.get(safety.FROZEN, {}).get("merged", {})):
        found["frozen_mP@5"] = frozen["mP@5"]
    if len(sets) == 1:
        return {named[sets[0]]: numbers[sets[0]][named[sets[0]]]} | found
    return found | {f"{named[name]}/{name}": numbers[name][named[name]] for name in sets}


def keeping(job: Job, keep: Init | None) -> Job:
    """Return the job with a lasting checkpoint at the step that `keep` means; last and best stay anyway."""
    steps_per_epoch = job.task.steps_per_epoch
    run = replace(job.run, meta={**job.run.meta, "steps_per_epoch": steps_per_epoch})
    if keep in (None, "last", "best"):
        return replace(job, run=run)
    step = int(keep[5:]) if isinstance(keep, str) else round(keep * steps_per_epoch)
    steps = job.settings.num_steps(steps_per_epoch)
    if not 0 < step <= steps:
        raise UserError(f"stages: the next one's init {keep} is step {step}; accepted: 1 to {steps} steps")
    kept = frozenset([step])
    run = replace(run, save_at=kept, store=run.store and replace(run.store, keep_steps=kept))
    return replace(job, run=run)


def _described(rows: Manifest, asked: Mapping[str, Manifest], embedder: Any, head: Any) -> str:
    def millions(module: Any) -> str:
        return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"

    tested = ", ".join(f"{name} {len(manifest):,}" for name, manifest in asked.items())
    size = f"{len(rows):,} pictures of {rows.num_classes:,} classes in {len(rows.domain_names)} domains"
    parameters = f"embedder {millions(embedder)}, head {millions(head)}"
    return f"training on {size}; evaluating on {tested} pictures; parameters: {parameters}"


def _run(cfg: Mapping[str, Any], folder: Path, embedder: Any, start: str | None, here: World) -> Run:
    hooks = []
    if here.is_main:
        tracker = build(cfg["tracker"], where="tracker", folder=str(folder), config=dict(cfg))
        steps = LogLines(logging.getLogger("guie.steps"))
        hooks = [JsonLines(folder / "metrics.jsonl"), progress(), steps, tracker]
    return Run(
        store=checkpoint.Store(folder / "checkpoints", cfg["trainer"]["keep"]),
        hooks=hooks,
        seed=cfg["seed"],
        meta={"config": dict(cfg), "preprocess": asdict(embedder.preprocess)},
        describe=lambda weights: {"space_id": space_id(embedder, weights)},
        resume=checkpoint.read(Path(start)) if start else None,
    )


def fit_job(job: Job) -> Summary:
    """Train; an interrupted run keeps a checkpoint of its last step."""
    wall, cpu = time.monotonic(), time.process_time()
    summary = fit(job.task, job.settings, job.hardware, job.here, job.run)
    if job.here.is_main:
        log.info("trained for %.0f s, %.0f CPU s", time.monotonic() - wall, time.process_time() - cpu)
    if summary.signal and job.here.is_main:
        log.info("stopped at step %d of %d; continue with resume=auto", summary.step, summary.steps)
    return summary


def conclude(job: Job) -> None:
    """Evaluate the weights that were saved last, write metrics.json and report.html, print the table."""
    embedder, meta = assembly.trained_embedder(job.folder)
    embedder.to(job.here.device)
    found = job.bench.embeddings(embedder, job.folder)
    floors = runfolder.read_json(job.folder / "floors.json")
    facts = {"floors": floors, "space_id": meta["space_id"], "seed": job.cfg["seed"], "step": meta["step"]}
    facts["leakage"] = list(job.leaks)
    evaluation = job.bench.evaluation(found)
    results.write_results(job.folder, evaluation, facts, found=found, sets=job.bench.sets)
    runfolder.RunFolder(job.folder).mark("finished")
    print(f"checkpoint  {checkpoint.locate(job.folder, 'last')}\nreport      {job.folder / 'report.html'}")
