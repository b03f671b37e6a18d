"""Which drawn pictures gated views are verified on: those that take different looks, and clearly so.

Where a picture lies between two classes, half precision decides otherwise than evaluation did: that tells
nothing of a file. Noise is rarely of many classes, so twice as many pictures are drawn as are needed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guie.export.golden import Draw, draw_each
from guie.export.prepare import prepared
from guie.export.source import Source
from guie.views import Choice, View

log = logging.getLogger("guie")

SPARE = 2
# The least distance of a feature from where the looks change, in lengths of the feature.
CLEAR = 0.02
BATCH = 8


def drawing(source: Source) -> Draw:
    """Return how the golden pictures of a source in eval mode are drawn."""
    views = source.views
    if views is None or views.gating is None:
        return draw_each
    gating = views.gating
    embedder: Any = next(iter(source.embedders.values()))  # those that share a gate have one backbone
    first = views.of(embedder.preprocess)[gating.first]

    def telling(sizes: Sequence[tuple[int, int]], count: int, seed: int) -> list[np.ndarray]:
        images, taken = draw_each(sizes, SPARE * count, seed), set()
        for place, pictures in enumerate(images):
            rows = np.arange(count)
            if not gating.is_square(*pictures.shape[2:]):
                looks, distances = decisions(gating.choice, _features(embedder, first, pictures))
                rows = picked(looks, distances, count)
                taken |= set(looks[rows].tolist())
            images[place] = pictures[rows]
        known = len(gating.choice.table.unique(dim=0))
        log.info("golden pictures take %d of the gate's %d sets of looks", len(taken), known)
        return images

    return telling


def decisions(choice: Choice, features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return which set of looks features (N,F) get, (N,), and how far they are from getting another, (N,).

    The distance is in lengths of the feature; infinite where no class has another.
    """
    sets = choice.table.unique(dim=0, return_inverse=True)[1]
    logits = functional.linear(features, choice.weight, choice.bias)
    best = logits.argmax(1)
    steps = torch.cdist(choice.weight[best], choice.weight) * features.norm(dim=1, keepdim=True)
    distances = (logits.amax(1, keepdim=True) - logits) / steps
    distances[sets[best][:, None] == sets[None]] = torch.inf
    return sets[best].numpy(), distances.amin(1).numpy()


def picked(looks: np.ndarray, distances: np.ndarray, count: int) -> np.ndarray:
    """Return `count` rows: sets of looks by turns, the clearest pictures of each first, unclear ones last."""
    rank = np.zeros(len(looks), int)
    for one in np.unique(looks):
        rows = np.flatnonzero(looks == one)
        rank[rows[np.argsort(-distances[rows], kind="stable")]] = np.arange(len(rows))
    return np.lexsort((looks, rank, ~(distances >= CLEAR)))[:count]


def _features(embedder: Any, view: View, pictures: np.ndarray) -> Tensor:
    """Return what the classifier reads of pictures (N,3,H,W), (N,F)."""
    prepare = prepared(view)
    with torch.inference_mode():
        parts = [embedder.features(prepare(part)).float() for part in torch.from_numpy(pictures).split(BATCH)]
    return torch.cat(parts)
