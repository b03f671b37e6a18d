"""The story of guie-export: a run, or several, as one file that gives what was evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guie import assembly, evaluating
from guie.embed import ensemble
from guie.embed.ensemble import Ensemble
from guie.embed.pictures import vectors_of
from guie.embed.space import space_id
from guie.export.source import Request, Source
from guie.export.verify import Verified
from guie.export.writing import export


def export_configured(cfg: Mapping[str, Any]) -> Verified:
    """Write `pt` as the config says; return what its verification found."""
    source = chosen(cfg)
    return export(
        source,
        cfg["pt"],
        lambda pictures: evaluated(source, pictures),
        format=cfg["format"],
        request=requested(cfg),
        overwrite=cfg["overwrite"],
    )


def requested(cfg: Mapping[str, Any]) -> Request:
    """Return how the file is to be written."""
    size = cfg["size"]
    size_px = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    return Request(cfg["precision"], cfg["batch"], size_px, cfg["pixels"])


def chosen(cfg: Mapping[str, Any]) -> Source:
    """Return what is to be exported: each run's embedder, cut to `keep`."""
    models = evaluating.chosen_models(cfg)
    joined = ensemble.chosen(cfg["weights"], cfg["combine"], list(models))
    views = assembly.views(cfg)
    embedders = {name: trained(path, cfg["keep"]) for name, path in models.items()}
    spaces = {name: space_id(embedder, views=views) for name, embedder in embedders.items()}
    facts = {"space_id": joined.space_id(spaces)}
    return Source(embedders, joined.weights, joined.combine, views, facts=facts)


def trained(path: str | None, keep: int | None) -> Any:
    """Return the embedder of a run or checkpoint, the first `keep` of its numbers."""
    embedder = assembly.trained_embedder(path or evaluating.newest_run(Path("runs")))[0]
    if keep is not None:
        embedder.cut_to(keep)
    return embedder


def evaluated(source: Source, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return what evaluation makes of pictures (3,H,W) uint8, (N,D) float32: nothing of `export` is in it."""
    parts = {name: vectors_of(one, pictures, source.views) for name, one in source.embedders.items()}
    return Ensemble({name: source.weight(name) for name in parts}, source.combine).joined(parts)
