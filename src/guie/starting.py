"""A run that starts from the checkpoint of a former one: what it takes over, in the order it happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guie import assembly, checkpoint, huggingface, runfolder
from guie.build import build
from guie.data.bad_images import BadImages
from guie.datasets.manifest import Manifest
from guie.embed.reading import Reader
from guie.embed.vectors import embed
from guie.train import warm_start
from guie.train.distributed import World

Labels = Mapping[str, list[str]]
"""The columns of labels.parquet: `names`, and `full` with the name of the data set before each."""


class Former(NamedTuple):
    """The folder that has the former run's labels, its checkpoint, what of the embedder does not fit it."""

    folder: Path
    state: checkpoint.State
    anew: list[str]


def take_embedder(embedder: Any, path: str) -> Former:
    """Give the embedder the weights at `path`, averaged where an average was kept, and their normalisation.

    A refitted neck stays behind: it is not the one that the head was trained with.
    """
    found = checkpoint.locate(Path(path).expanduser(), "last")
    state = checkpoint.read(found)
    anew = warm_start.take_embedder(embedder, state.trained)
    pixels = {key: tuple(state.meta["preprocess"][key]) for key in ("mean", "std")}
    embedder.use_preprocess(replace(embedder.preprocess, **pixels))
    return Former(found if huggingface.is_published(found) else found.parent.parent, state, anew)


def take_head(
    cfg: Mapping[str, Any], former: Former, head: Any, labels: Labels, means: warm_start.Means
) -> str:
    """Give the head what fits of the former one; return in words what was taken and what was not."""
    how = build(cfg["warm_start"], where="warm_start")
    known = runfolder.read_labels(former.folder)
    said = f"started from step {former.state.step} of {former.folder}"
    said += "".join(f"; {part}: begins anew, its weights are others" for part in former.anew)
    if how.head == "drop":
        return f"{said}; head: begins anew (warm_start.head=drop)"
    if "neck" in former.anew:
        return f"{said}; head: begins anew, its rows belong to another neck"
    if known is None or "head" not in former.state.parts:
        return f"{said}; head: begins anew, no head with a labels.parquet in {former.folder}"
    classes = warm_start.matched(known, labels["names"], labels["full"])
    anew = warm_start.take_head(head, former.state.parts["head"], classes, how, means)
    return f"{said}; head: {classes}; not taken: {', '.join([*anew, 'optimiser'])}"


def class_means(
    cfg: Mapping[str, Any],
    embedder: Any,
    rows: Manifest,
    names: Sequence[str],
    here: World,
    notice: Any,
    classes: np.ndarray,
) -> Any:
    """Return the mean embeddings (M,D) of training pictures of `classes` (M,), NaN where there are none.

    Each rank embeds its share. Orientations that are classes have none: how they look is not computed.
    """
    wanted = [names[i] for i in classes]
    sums, counts = warm_start.class_sums(np.zeros((0, embedder.neck.embed_dim)), np.zeros(0, str), wanted)
    chosen = warm_start.spread(rows.labels, classes, cfg["warm_start"]["images_per_class"])
    mine = chosen[here.rank :: here.size]
    if len(mine) and len(names) == rows.num_classes:
        some = rows.select(mine)
        found = embed(
            warm_start.Raw(embedder),
            some,
            Reader(device=here.device, threads=cfg["hw"]["threads"]),
            bad_images=BadImages(some, policy=cfg["bad_images"], max_share=1.0),
            progress=partial(notice, "embeddings of new classes"),
        )
        sums, counts = warm_start.class_sums(found.vectors, found.labels, wanted)
    return (here.mean(sums) / here.mean(counts)[:, None]).float()


def labels(cfg: Mapping[str, Any], rows: Manifest, num_classes: int) -> Labels:
    """Return the columns of labels.parquet."""
    names = assembly.class_names(rows, num_classes)
    prefix = f"{rows.name}/" if len(cfg["dataset"]) == 1 else ""
    return {"names": names, "full": [prefix + name for name in names]}
