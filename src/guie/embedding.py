"""Pictures to vectors in files: what guie-embed does.

Each data set gets a folder below OUT, which appears whole; meanwhile `OUT/.work` holds shards. What is done
is passed over, what is there from another job is refused.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from guie import assembly, checkpoint, embeddings, evaluating, runfolder
from guie.data.bad_images import BadImages
from guie.datasets.evaluated import cropped
from guie.datasets.manifest import SPLITS, Manifest
from guie.durable import replace_folder
from guie.embed import ensemble, formats
from guie.embed.ensemble import Ensemble
from guie.embed.reading import Job, Reader, looks
from guie.embed.several import check_shared
from guie.embed.space import space_id
from guie.embed.vectors import vectors_file
from guie.errors import UserError
from guie.protocols import chosen as protocols
from guie.train.distributed import World, precision

log = logging.getLogger("guie")

PRECISIONS = ("auto", "native", "fp32", "bf16", "fp16")
LIST = "bad_images.csv"


@dataclass
class Task:
    """One data set: its rows, what is to be done with them, where; `files` and `spaces` by model."""

    rows: Manifest
    job: dict[str, Any]
    ids: np.ndarray
    folder: Path
    work: Path
    files: dict[str, Path] = field(default_factory=dict)
    spaces: dict[str, str] = field(default_factory=dict)

    def parts(self) -> dict[str, np.ndarray]:
        """Return each model's vectors (N,D), NaN where a picture is bad."""
        return {model: np.load(path, mmap_mode="r") for model, path in self.files.items()}


def embed_configured(cfg: Mapping[str, Any], here: World, notice: Any) -> None:
    """Embed `dataset` by `ckpt` through `views`, write `formats`; say where."""
    check_values(cfg)
    models = here.on_main(partial(evaluating.chosen_models, cfg))
    joined = ensemble.chosen(cfg["weights"], cfg["combine"], list(models))
    views = assembly.views(cfg)
    dtype = precision(cfg["precision"], here.device)
    reader = Reader(cfg["batch_size"], cfg["threads"], here.device, dtype, views)
    sets = here.on_main_first(partial(chosen_rows, cfg))
    out = Path(cfg["out"]).expanduser()
    told = models_told(cfg, models) | {"views": views.key if views else None}
    found = {name: planned(cfg, told, name, rows, out) for name, rows in sets.items()}
    tasks = {name: found[name] for name in here.on_main(partial(not_done, found, cfg["overwrite"]))}
    with held(out, here):
        if tasks:
            num_rows = sum(len(task.rows) for task in tasks.values())
            by = f" by {here.size} processes" if here.size > 1 else ""
            log.info("embedding %d pictures of %s%s", num_rows, ", ".join(tasks), by)
            compute(cfg, models, tasks, reader, here, notice, joined)
        here.on_main(partial(write_all, cfg, tasks, joined))
        here.on_main(partial(shutil.rmtree, out / ".work"))
    if here.is_main:
        print(f"embeddings  {out}")


def check_values(cfg: Mapping[str, Any]) -> None:
    """Raise UserError naming a value that cannot be."""
    if not cfg["out"]:
        raise UserError("out: not given; accepted: a folder that is new, or holds the same job unfinished")
    if cfg["precision"] not in PRECISIONS:
        raise UserError(f"precision: '{cfg['precision']}'; accepted: {', '.join(PRECISIONS)}")
    for key in ("batch_size", "threads"):
        if cfg[key] is not None and cfg[key] < 1:
            raise UserError(f"{key}: {cfg[key]}; accepted: 1 or more")


def chosen_rows(cfg: Mapping[str, Any]) -> dict[str, Manifest]:
    """Return the rows of each data set, those of `split` where that is given, cropped by its protocol."""
    found = assembly.manifests(cfg["dataset"], cfg["data_root"])
    splits = [cfg["split"]] if isinstance(cfg["split"], str) else list(cfg["split"] or [])
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"split: '{split}'; accepted: {', '.join(SPLITS)}")
    rows = {name: manifest.split(*splits) if splits else manifest for name, manifest in found.items()}
    for name, manifest in rows.items():
        if not len(manifest):
            raise UserError(f"split: {', '.join(splits)}: no rows in {name}; accepted: a split that it has")
    official = protocols.chosen({}, rows)
    return {name: cropped(manifest, official[name].crops) for name, manifest in rows.items()}


@contextmanager
def held(out: Path, here: World) -> Iterator[None]:
    """Hold `out` for this run, whose log goes to log.txt there."""
    lock = FileLock(out / ".work" / "lock", timeout=0)

    def take() -> None:
        if out.exists() and not out.is_dir():
            raise UserError(f"out: {out} is a file; accepted: a folder")
        try:
            (out / ".work").mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise UserError(f"out: {out} is in use by another process; accepted: another folder") from None
        except OSError as error:
            raise UserError(f"out: {out}: {error.strerror}; accepted: a folder to write in") from None

    here.on_main(take)
    try:
        with runfolder.log_file(out) if here.is_main else nullcontext():
            yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"out: {error.strerror} while writing {out}; what was computed is kept; accepted: the same "
            "command again where there is room"
        ) from None
    finally:
        lock.release()


def planned(cfg: Mapping[str, Any], told: Mapping[str, Any], name: str, rows: Manifest, out: Path) -> Task:
    """Return what is to be done for a data set; UserError where its ids do not fit the formats.

    `told` says what the models and views are.
    """
    kinds = formats.check_names(cfg["formats"], cfg["ids"])
    ids = formats.picture_ids(map(rows.place, range(len(rows))), cfg["ids"])
    formats.check(kinds, ids, rows.splits)
    written = {key: cfg[key] for key in ("keep", "weights", "split", "ids", "precision")}
    written |= {} if cfg["combine"] == "concat" else {"combine": cfg["combine"]}  # as folders of before say
    job = {**told, **written, "formats": list(kinds), "rows": rows.fingerprint()}
    return Task(rows, job, ids, out / name, out / ".work" / name)


def models_told(cfg: Mapping[str, Any], models: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what tells the models from others, without loading them."""
    if None in models.values():
        return {"model": {key: cfg[key] for key in ("backbone", "pool", "seed")}}
    metas = {name: checkpoint.read(Path(str(path)), "last", parts=()).meta for name, path in models.items()}
    return {"model": {name: meta["space_id"] for name, meta in metas.items()}}


def not_done(tasks: Mapping[str, Task], overwrite: bool) -> list[str]:
    """Return the data sets that are not there yet; UserError for a folder that holds something else."""
    wanted = []
    for name, task in tasks.items():
        if not task.folder.exists() or not any(task.folder.iterdir()):
            wanted.append(name)
            continue
        if not embeddings.is_saved(task.folder):
            raise UserError(
                f"out: {task.folder} does not hold embeddings; accepted: a folder that is new or empty"
            )
        if overwrite:
            wanted.append(name)
        else:
            refuse_other(task)
            log.info("%s: done before", task.folder)
    return wanted


def refuse_other(task: Task) -> None:
    """Raise UserError where a data set's folder holds what another job made, naming what differs."""
    old = embeddings.read_meta(task.folder).get("job", {})
    changed = runfolder.changed_keys(old, task.job)
    if changed:
        was, now = (runfolder.flat(job).get(changed[0]) for job in (old, task.job))
        raise UserError(
            f"out: {task.folder} holds embeddings of another job ({changed[0]}: was {was!r}, now {now!r}); "
            "accepted: a new folder, or overwrite=true"
        )


def compute(
    cfg: Mapping[str, Any],
    models: Mapping[str, str | None],
    tasks: Mapping[str, Task],
    reader: Reader,
    here: World,
    notice: Any,
    joined: Ensemble,
) -> None:
    """Embed every data set by every model, one model in memory at a time; the tasks get files and spaces.

    Raises UserError where models are averaged that share no space.
    """
    if joined.averages:
        rows = {name: task.rows for name, task in tasks.items()}
        made = ((model, loaded(cfg, path).to(here.device)) for model, path in models.items())
        here.on_main(lambda: check_shared(joined, made, rows, reader))
    widths: dict[str, int] = {}
    for model, path in models.items():
        embedder = None  # one leaves before the next one comes
        embedder = here.on_main_first(partial(loaded, cfg, path)).to(here.device)
        widths[model] = embedder.embed_dim
        formats.check_width(formats.check_names(cfg["formats"], cfg["ids"]), joined.width(widths))
        space = space_id(embedder, views=reader.views)
        for name, task in tasks.items():
            said = f"embedding {name}" + (f" by {model}" if model else "")
            task.files[model] = embedded(cfg, embedder, task, reader, here, space, partial(notice, said))
            task.spaces[model] = space


def loaded(cfg: Mapping[str, Any], path: str | None) -> Any:
    """Return the embedder of a run or checkpoint, or the backbone alone; the first `keep` of its numbers."""
    embedder = evaluating.backbone_alone(cfg) if path is None else assembly.trained_embedder(path)[0]
    if cfg["keep"] is not None:
        embedder.cut_to(cfg["keep"])
    return embedder


def embedded(
    cfg: Mapping[str, Any],
    embedder: Any,
    task: Task,
    reader: Reader,
    here: World,
    space: str,
    progress: Any,
) -> Path:
    """Return the file of one model's vectors of one data set."""
    task.work.mkdir(parents=True, exist_ok=True)
    bad = BadImages(task.rows, task.work / LIST, cfg["bad_images"], cfg["max_bad_share"])
    job = Job(task.rows, looks(task.rows, embedder, reader.views), reader, bad, progress)
    return vectors_file(embedder, job, task.work, here, space)


def write_all(cfg: Mapping[str, Any], tasks: Mapping[str, Task], joined: Ensemble) -> None:
    """Write the folder of each data set."""
    for task in tasks.values():
        write(task, formats.check_names(cfg["formats"], cfg["ids"]), joined)
        log.info("%s", described(task))


def write(task: Task, kinds: tuple[str, ...], joined: Ensemble) -> None:
    """Write a data set's folder: what `embeddings.load` reads, the formats, the list of bad pictures."""
    parts = task.parts()
    rows = ensemble.good_rows(parts)
    if not len(rows):
        raise UserError(f"dataset: {task.folder.name}: none of {len(task.rows)} pictures can be read")
    vectors = next(iter(parts.values()))
    if len(parts) > 1 or len(rows) < len(vectors):
        joined.write(task.work / "vectors.npy", parts, rows)
        vectors = np.load(task.work / "vectors.npy", mmap_mode="r")
    made = embeddings.from_manifest(vectors, task.rows, rows=rows, space_id=joined.space_id(task.spaces))
    staged = embeddings.save(made, task.work / "made", job=task.job)
    formats.write(kinds, staged, vectors, task.ids[rows], made.splits)
    if (task.work / LIST).exists():
        shutil.copy(task.work / LIST, staged / LIST)
    former = task.work / "replaced"
    shutil.rmtree(former, ignore_errors=True)  # of a job that was killed
    replace_folder(staged, task.folder, former)


def described(task: Task) -> str:
    """Return one line on what a data set's folder holds."""
    meta = embeddings.read_meta(task.folder)
    return f"{task.folder}: {meta['rows']:,} vectors of {meta['dim']} numbers, space {meta['space_id']}"
