"""From a checked config to the objects of a run: data, embedder, head, batches, measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from guie import huggingface
from guie.build import build, refuse_foreign
from guie.datasets.evaluated import capped, cropped
from guie.datasets.known import refuse_other
from guie.datasets.manifest import Manifest, concatenate
from guie.errors import UserError
from guie.launch import cores, ranks_here
from guie.protocols.chosen import chosen, over
from guie.protocols.part import Protocol, splits_of
from guie.search.chosen import chosen as chosen_search
from guie.side import SIDE_DIM, side_inputs


def manifests(nodes: Mapping[str, Any], data_root: str, *, key: str = "dataset") -> dict[str, Manifest]:
    """Return the manifest of every node by name; one that is missing is an error."""
    if not nodes:
        raise UserError(f"{key}: nothing chosen; accepted: a name, or a list in brackets")
    for name, node in nodes.items():
        refuse_other(name, node, data_root)
    return {
        name: build(node, where=f"{key}.{name}", data_root=str(Path(data_root).expanduser()))
        for name, node in nodes.items()
    }


def training_rows(found: Mapping[str, Manifest]) -> Manifest:
    """Return all rows of split train as one manifest; labels of several datasets get their names."""
    rows = concatenate([manifest.split("train") for manifest in found.values()])
    if not len(rows):
        raise UserError(f"dataset: {', '.join(found)} hold no rows of split train")
    return rows


def protocols(cfg: Mapping[str, Any], found: Mapping[str, Manifest]) -> dict[str, Protocol]:
    """Return the protocol of each data set, with `split` asking where one is given."""
    by_name = chosen(cfg.get("protocol") or {}, found)
    split = cfg.get("split")
    return over(by_name, split, {name: rows.splits.tolist() for name, rows in found.items() if split})


def evaluation_rows(
    found: Mapping[str, Manifest], protocols: Mapping[str, Protocol] | None = None, cap: int | None = None
) -> dict[str, Manifest]:
    """Return, by dataset, the rows that ask or answer in its protocol, cropped as it says.

    By default that is the official protocol. Of `cap`: at most so many that ask, and that answer.
    """
    protocols = protocols or chosen({}, found)
    return {name: _evaluated(name, manifest, protocols[name], cap) for name, manifest in found.items()}


def _evaluated(name: str, manifest: Manifest, protocol: Protocol, cap: int | None) -> Manifest:
    asks, answers = splits_of(protocol)
    rows = manifest.split(*asks, *answers)
    if not len(rows):
        wanted = ", ".join(sorted({*asks, *answers}))
        accepted = "a data set that has some; guie-eval: split=val or train"
        raise UserError(f"dataset {name}: no rows of split {wanted}; accepted: {accepted}")
    return cropped(rows if cap is None else capped(rows, asks, answers, cap), protocol.crops)


def embedder(cfg: Mapping[str, Any]) -> Any:
    """Return the untrained (or pre-trained) embedder; equal for equal `seed`."""
    import torch

    from guie.models.embedder import Embedder

    torch.manual_seed(cfg["seed"])
    backbone = build(cfg["backbone"], where="backbone")
    pool = build(cfg["pool"], where="pool")
    side = bool(cfg.get("side_inputs"))
    neck = build(cfg["neck"], where="neck", in_dim=backbone.out_dim + SIDE_DIM * side)
    return Embedder(backbone, pool, neck, side=side)


def head(cfg: Mapping[str, Any], embedder: Any, rows: Manifest, num_classes: int) -> Any:
    """Return the head with its class weights; equal for equal `seed`.

    Its facts: `embed_dim` (the neck's: all of it, also where less is kept), `feature_dim` (of the pooled
    feature), and what the rows say of the classes, see `class_facts`.
    """
    import torch

    torch.manual_seed(cfg["seed"] + 1)
    facts = class_facts(rows, num_classes)
    widths = {"embed_dim": embedder.neck.embed_dim, "feature_dim": embedder.backbone.out_dim}
    return build(cfg["head"], where="head", **widths, **facts)


def class_facts(rows: Manifest, num_classes: int) -> dict[str, Any]:
    """Return num_classes C, class_counts (C,) int64, class_domains (C,) int64 and domain_names.

    Orientations that count as classes of their own have the count and domain of their picture's class.
    """
    import numpy as np

    orientations = num_classes // max(1, rows.num_classes)
    counts = np.bincount(rows.labels, minlength=rows.num_classes)
    domains = np.zeros(rows.num_classes, np.int64)
    domains[rows.labels] = rows.domains
    return {
        "num_classes": num_classes,
        "class_counts": np.repeat(counts, orientations),
        "class_domains": np.repeat(domains, orientations),
        "domain_names": list(rows.domain_names),
    }


def sampler(cfg: Mapping[str, Any], rows: Manifest) -> Any:
    """Return which rows make the batch of a step; with orientations of its pictures, which of those."""
    from guie.data.loader import sampler_facts

    facts = sampler_facts(rows, orientations=cfg["augment"].get("orientations", 1))
    batch_size = build(cfg["trainer"], where="trainer").batch_size
    return build(cfg["sampler"], where="sampler", batch_size=batch_size, seed=cfg["seed"], **facts)


def loader(
    cfg: Mapping[str, Any],
    rows: Manifest,
    preprocess: Any,
    *,
    bad_images: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Return the loader of training batches: sampler, augmentation, decoded-pixel cache where it is used."""
    from guie.data.loader import train_loader
    from guie.data.sizes import original_sizes

    orientations = cfg["augment"].get("orientations", 1)
    chosen = sampler(cfg, rows)
    num_steps = build(cfg["trainer"], where="trainer").num_steps(chosen.steps_per_epoch)
    augment = build(
        cfg["augment"], where="augment", preprocess=preprocess, num_steps=num_steps, pictures=rows
    )
    return train_loader(
        rows,
        chosen,
        augment,
        preprocess=preprocess,
        seed=cfg["seed"],
        cache_dir=cache_folder(cfg),
        bad_images=bad_images,
        progress=progress,
        orientations=orientations,
        side=side_inputs(original_sizes(rows)) if cfg["side_inputs"] else None,
        workers=workers(cfg, augment),
    )


def mixup(settings: Any, num_steps: int, seed: int) -> Any:
    """Return what blends cached features as `trainer.mixup_*` say, None where it is off."""
    from guie.data.mixup import Mixup

    if not settings.mixup_alpha:
        return None
    stop = round(settings.mixup_until * num_steps)
    return Mixup(settings.mixup_alpha, settings.mixup_p, stop, seed)


def workers(cfg: Mapping[str, Any], augment: Any) -> int:
    """Return how many processes decode: as configured, else none for cached pictures and all but one core.

    Ranks of one machine share its cores.
    """
    wanted = cfg["hw"]["workers"]
    if wanted is not None:
        return int(wanted)
    return 0 if augment.stage == "batch" else max(0, len(cores()) // ranks_here() - 1)


def cache_folder(cfg: Mapping[str, Any]) -> Path:
    """Return where decoded pixels and features are kept between runs."""
    return Path(cfg["data_root"]).expanduser() / ".guie"


def class_names(rows: Manifest, num_classes: int) -> list[str]:
    """Return the names of the head's classes; orientations that count as classes are numbered."""
    orientations = num_classes // max(1, rows.num_classes)
    if orientations == 1:
        return list(rows.label_names)
    return [f"{name}@{orientation}" for name in rows.label_names for orientation in range(orientations)]


def trained_embedder(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """Return the embedder of a run folder (its last checkpoint) or checkpoint, and what was saved with it.

    `ckpt` among that is the checkpoint's folder; the space id of a Hugging Face folder is computed anew.
    Raises UserError where it is damaged, names foreign code, or its config does not describe its weights.
    """
    from guie import checkpoint
    from guie.embed.space import space_id
    from guie.train.loop import load_weights
    from guie.types import Preprocess

    folder = checkpoint.locate(Path(path).expanduser(), "last")
    state = checkpoint.read(folder)
    cfg = dict(state.meta["config"])
    for part in ("backbone", "pool", "neck"):
        refuse_foreign(cfg[part], "guie.models", f"{folder}: {part}")
    cfg["backbone"] = without_weights(cfg["backbone"])  # they come from the checkpoint
    made = embedder(cfg)
    stated: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in state.meta["preprocess"].items()
    }
    try:
        made.use_preprocess(Preprocess(**stated))
    except TypeError as error:
        raise UserError(f"{folder}: preprocess: {error}; accepted: that of this version of guie") from error
    load_weights(made, state.weights, "embedder")
    own = {"space_id": space_id(made)} if huggingface.is_published(folder) else {}
    return made.eval(), {**state.meta, **own, "ckpt": str(folder)}


def evaluated_in_training(trained: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the nodes `eval_on` and `protocol` of a run's config; UserError where one names foreign code."""
    found = {key: trained.get(key) or {} for key in ("eval_on", "protocol")}
    for key, package in (("eval_on", "guie.datasets"), ("protocol", "guie.protocols")):
        refuse_foreign(found[key], package, key)
    return found


def without_weights(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node whose pretrained weights, and those of an ensemble's members, stay away."""
    inner = {key: without_weights(item) for key, item in node.items() if isinstance(item, Mapping)}
    return {**node, **inner, **({"pretrained": False} if "pretrained" in node else {})}


def untrained_embedder(cfg: Mapping[str, Any]) -> Any:
    """Return the backbone before training, its pooled features as embeddings: the floor of every run."""
    return embedder({**cfg, "neck": {"_target_": "guie.models.necks.Identity"}, "side_inputs": False})


def views(cfg: Mapping[str, Any]) -> Any:
    """Return through what each picture is looked at several times; None: it is seen once.

    Gated views are chosen by the classifier of the run `ckpt_cls`; UserError where one is without the other.
    """
    node, path = cfg.get("views"), cfg.get("ckpt_cls")
    if path and not (node and node.get("gate")):
        raise UserError("ckpt_cls: given, but nothing is chosen by it; accepted: with views=classifier_tta")
    if not node:
        return None
    return build(node, where="views", classifier=trained_classifier(path) if path else None)


def trained_classifier(path: str | Path) -> Any:
    """Return the classifier of a run of head=classifier_tta, its classes by name; UserError for another."""
    from guie import checkpoint, runfolder
    from guie.embed.space import feature_space
    from guie.views import Classifier

    try:
        made, meta = trained_embedder(path)
        weights = checkpoint.read(Path(meta["ckpt"]), parts=("head",)).parts["head"]
    except UserError as error:
        raise UserError(f"ckpt_cls: {str(error).removeprefix('ckpt: ')}") from error
    head = meta["config"]["head"]["_target_"]
    if head != "guie.heads.gate.Gate":
        raise UserError(f"ckpt_cls: {path} has the head {head}; accepted: a run of head=classifier_tta")
    names = [row["label"] for row in runfolder.read_labels(Path(meta["ckpt"]).parent.parent) or []]
    if len(names) != len(weights["weight"]):
        told = f"{len(names)} of its {len(weights['weight'])} classes"
        raise UserError(f"ckpt_cls: labels.parquet of {path} names {told}; accepted: a whole run folder")
    key = checkpoint.weights_digest(weights)
    return Classifier(names, weights["weight"], weights["bias"], key, feature_space(made))


def bench(
    cfg: Mapping[str, Any],
    sets: Mapping[str, Manifest],
    device: Any,
    notice: Any = None,
    listed_in: Path | None = None,
    here: Any = None,
    views: Any = None,
) -> Any:
    """Return how to measure on `sets`, seen through `views`; bad pictures are listed in `listed_in`."""
    from guie.bench import Bench
    from guie.embed.reading import Reader

    threads = cfg["hw"]["threads"] if "hw" in cfg else cfg["threads"]
    reader = Reader(batch_size=cfg.get("batch_size", 128), threads=threads, device=device, views=views)
    search = chosen_search(cfg.get("search"), cfg["memory_mib"])
    policy = cfg["bad_images"], cfg["max_bad_share"]
    return Bench(sets, reader, protocols(cfg, sets), search, *policy, notice, listed_in, here)
