"""A small model, its run and its evaluation, as a bundle is made of; and a bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guie import images, resize
from guie.bundle.verifying import WITHOUT
from guie.bundle.writing import Order, write
from guie.embed.space import space_id
from guie.export import writing
from guie.export.alone import package_folders
from guie.export.source import Source
from guie.models.embedder import Embedder
from guie.models.necks import Identity
from guie.models.pooling import Average
from guie.types import Preprocess

SPEC = Preprocess(size_px=(32, 32), background=(10, 200, 30))
SIZES, BATCHES = ((1, 1), (9, 40), (33, 20)), (1, 2)
TIMM = "guie.models.backbones.Timm"


class Convolution(nn.Module):
    """The least that a backbone is."""

    kind, prefix_tokens, out_dim = "map", 0, 8

    def __init__(self, spec: Preprocess, seed: int) -> None:
        super().__init__()
        self.preprocess = spec
        self.layer = nn.Conv2d(3, 8, 3, stride=2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


def model(spec: Preprocess = SPEC, seed: int = 0) -> Embedder:
    return Embedder(Convolution(spec, seed), Average(), Identity(in_dim=8)).eval()


def evaluated(embedder: Embedder, pictures: Any) -> np.ndarray:
    """Return what the evaluation gives for pictures (3,H,W) uint8."""
    resized = [resize.apply(picture.transpose(1, 2, 0), embedder.preprocess) for picture in pictures]
    with torch.inference_mode():
        return embedder(torch.from_numpy(np.stack(resized))).z.numpy()


def of_bytes(embedder: Embedder, data: bytes) -> np.ndarray:
    """Return what the evaluation gives for a picture's file."""
    image = images.decode(data, background=embedder.preprocess.background)
    return evaluated(embedder, [image.transpose(2, 0, 1)])[0]


def run_folder(
    path: Path,
    data: dict[str, Any],
    labels: tuple[str, ...] = (),
    told: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write the least that is a checkpoint of a run; `told` stands beside its config."""
    from guie import runfolder
    from guie.checkpoint import State, Store

    backbone = {"_target_": TIMM, "name": "resnet50", "pretrained": "resnet50.safetensors"}
    cfg = {"dataset": data, "backbone": backbone, **config}
    counts = {name: {"images": 1234, "classes": 2} for name in data}
    meta = {"config": cfg, "data": counts, "space_id": path.name, **(told or {})}
    Store(path / "checkpoints").save(State(1, {}, {}, meta))
    if labels:
        runfolder.write_labels(path, list(labels), full=[f"toy/{label}" for label in labels])
    return path


def evaluation_folder(path: Path, space: str, **further: Any) -> Path:
    """Write what guie-eval leaves, as far as a bundle reads it."""
    of_set = {"mP@5": 0.5, "mP@5_interval": [0.25, 0.75], "R@1": 0.625, "queries": 1500, "gallery": 2000}
    of_set["domains"] = {"toys|games": {"merged": {"mP@5": 0.4, "queries": 7, "gallery": 2000}}}
    numbers = {"trained": {"toy": of_set, "merged": of_set}, "space_id": space, "floors": {}}
    numbers["protocols"] = {"toy": {"metric": "mP@5", "kind": "retrieval"}}
    numbers["floors"] = {"backbone": {"toy": {"mP@5": 0.375}}}
    path.mkdir()
    (path / "metrics.json").write_text(json.dumps({**numbers, **further}))
    at = {
        "false_match_rate": 0.01,
        "threshold": 0.875,
        "threshold_interval": [0.8125, 0.9375],
        "enough": False,
    }
    at |= {"true_match_rate": 0.75, "true_match_rate_interval": [0.5, 1.0]}
    rows = [{"dataset": "toy", "domain": "", "at": [at]}]
    (path / "thresholds.json").write_text(json.dumps({"space_id": space, "thresholds": rows}))
    return path


def order(embedder: Embedder, run: Path, formats: tuple[str, ...] = ("torchscript",), **more: Any) -> Order:
    source = Source({"": embedder}, facts={"space_id": space_id(embedder), "vectors_space_id": "before"})
    return Order(source, lambda pictures: evaluated(embedder, pictures), formats, {"": run}, **more)


def written(made: Order, folder: Path, **options: Any) -> Path:
    """Write a bundle with small golden pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GOLDEN_SIZES", SIZES)
        patch.setattr(writing, "GOLDEN_BATCHES", BATCHES)
        return write(made, folder, **options)[0]


def anyone(folder: Path, *arguments: str, without: str = "guie", cwd: Path | None = None) -> Any:
    """Run a bundle's own embed.py in a process that lacks the packages `without`."""
    words = [str(folder / "embed.py"), without, json.dumps(arguments), *package_folders()]
    command = [sys.executable, "-I", "-S", str(WITHOUT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd or folder.parent)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))
