"""How similar genuine and impostor pairs are, and precision by recall of all pairs. Q queries, N gallery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from guie.calibrate.pairs import Group, group
from guie.protocols.part import Part
from guie.search.exact import Exact
from guie.types import Embeddings

# Queries of the sample, and pairs that are looked at, about.
MOST, PAIRS = 500, 50_000_000
# Of the gallery, which is copied once: half a GiB. A larger one is not looked at.
NUMBERS = 1 << 27
STEPS, BINS, POINTS = 2000, 50, 200


@dataclass(frozen=True)
class PairScores:
    """`genuine`, `impostor`, `nearest` (B,): share of the pairs of a kind whose cosine lies between `edges`
    (B+1,); `recall`, `precision` (P,) at falling cosine; over `total` pairs of `queries` queries."""

    edges: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray
    nearest: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    queries: int
    total: int


def pair_scores(name: str, embeddings: Embeddings, protocol: Mapping[str, Any]) -> PairScores | None:
    """Return the scores of some queries against the whole gallery; None without pairs, or of a huge one.

    `protocol` is what metrics.json says of it: `asks` and `answers`. A pair is genuine where its labels are
    equal, or as the data set states.
    """
    protocol = next(iter(protocol.get("parts", {}).values()), protocol)
    part = Part(name, embeddings, Exact())
    queries = part.rows(protocol.get("asks", ("query", "test")))
    gallery = part.rows(protocol.get("answers", ("index", "test")))
    if not len(queries) or not len(gallery) or gallery.size * embeddings.vectors.shape[1] > NUMBERS:
        return None
    drawn = min(len(queries), MOST, max(20, PAIRS // len(gallery)))
    chosen = np.sort(np.random.default_rng(0).permutation(len(queries))[:drawn])
    return _counted(group(part, queries[chosen], gallery))


def _counted(pairs: Group) -> PairScores | None:
    genuine, impostor = np.zeros((2, STEPS), dtype=np.int64)
    nearest = np.full(len(pairs.queries), -np.inf, dtype=np.float32)
    for rows, similarity, related in pairs.tiles():
        steps, places = _steps_of(similarity), (related.query, related.item)
        of_related = steps[places]
        genuine += np.bincount(of_related[related.genuine], minlength=STEPS)
        impostor += np.bincount(steps.ravel(), minlength=STEPS) - np.bincount(of_related, minlength=STEPS)
        similarity[places] = -np.inf
        nearest[rows] = similarity.max(axis=1, initial=-np.inf)
    if not genuine.any():
        return None
    near = np.bincount(_steps_of(nearest[np.isfinite(nearest)]), minlength=STEPS)
    counts = np.stack([genuine, impostor, near]).reshape(3, BINS, -1).sum(axis=2)
    first = int(np.flatnonzero(counts.any(axis=0))[0])
    shares = counts[:, first:] / np.maximum(1, counts.sum(axis=1, keepdims=True))
    edges = np.linspace(-1, 1, BINS + 1)[first:]
    recall, precision = precision_by_recall(genuine, impostor)
    total = int(genuine.sum() + impostor.sum())
    return PairScores(edges, shares[0], shares[1], shares[2], recall, precision, len(nearest), total)


def _steps_of(similarity: np.ndarray) -> np.ndarray:
    return np.clip((similarity + np.float32(1)) * np.float32(STEPS / 2), 0, STEPS - 1).astype(np.int32)


def precision_by_recall(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (recall (P,), precision (P,)) at falling thresholds, from pairs at each rising step (S,)."""
    right, wrong = (np.cumsum(counts[::-1]) for counts in (genuine, impostor))
    places = np.flatnonzero(genuine[::-1])
    places = places[np.linspace(0, len(places) - 1, min(POINTS, len(places))).round().astype(int)]
    return right[places] / right[-1], right[places] / (right[places] + wrong[places])
