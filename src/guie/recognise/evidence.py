"""What is known of queries before one label is chosen, as numbers that a model can be trained on.

Pure numpy. Q queries, K neighbours, T candidate labels, n pictures that show nothing known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from guie.metrics.votes import Votes


@dataclass(frozen=True)
class Neighbours:
    """A model's list: `labels` (Q,K) int64, -1 where there is none, and `scores` (Q,K)."""

    labels: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """`votes` for T labels; by model its `lists` and the similarities `negatives` (Q,n) to nothing known.

    `inliers` (Q,T): summed inlier scores of the candidates' neighbours, None without local features.
    `made_by`: settings and embedding spaces that the numbers come from, as JSON.
    """

    votes: Votes
    lists: Mapping[str, Neighbours]
    negatives: Mapping[str, np.ndarray] = field(default_factory=dict)
    inliers: np.ndarray | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)


class Support(NamedTuple):
    """What a list says of some labels, (Q,T) float32 each; 0 where it does not hold the label."""

    total: np.ndarray
    highest: np.ndarray
    mean: np.ndarray


def features(evidence: Evidence) -> dict[str, np.ndarray]:
    """Return the columns (Q,) float32 by name, those of the second place of Landmark Recognition 2020.

    Votes and the lead of the first; by model and candidate the sum, maximum and mean of its scores, with mean
    and deviation over the models; mean, maximum and deviation of the first vote over all queries with the
    same first label, so over those asked together; similarities to nothing known; inlier scores.
    """
    votes = evidence.votes
    columns = _numbered("vote", votes.scores)
    if votes.scores.shape[1] > 1:
        columns["vote lead"] = votes.scores[:, 0] - votes.scores[:, 1]
    columns |= _of_models(evidence)
    columns |= _of_same_label(votes.labels[:, 0], votes.scores[:, 0])
    for name, similarities in evidence.negatives.items():
        finite = np.where(np.isfinite(similarities), similarities, 0)
        columns |= _numbered(f"{name} nothing", finite[:, : votes.scores.shape[1]])
    if evidence.inliers is not None:
        columns |= _numbered("inliers", evidence.inliers)
    return {name: np.asarray(column, np.float32) for name, column in columns.items()}


def _numbered(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{name} {place}": values[:, place] for place in range(values.shape[1])}


def _of_models(evidence: Evidence) -> dict[str, np.ndarray]:
    """Return what each model says of each candidate, and mean and deviation of the sums over the models."""
    columns: dict[str, np.ndarray] = {}
    totals = []
    for name, one in evidence.lists.items():
        found = support(one.labels, one.scores, evidence.votes.labels)
        totals.append(found.total)
        for what, values in found._asdict().items():
            columns |= _numbered(f"{name} {what}", values)
    columns |= _numbered("models mean", np.mean(totals, axis=0))
    return columns | _numbered("models deviation", np.std(totals, axis=0))


def _of_same_label(labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean, maximum and deviation of `scores` (Q,) over the queries of the same label (Q,)."""
    group = np.unique(labels, return_inverse=True)[1]
    count = np.bincount(group)
    mean = (np.bincount(group, scores) / count)[group]
    deviation = np.sqrt(np.bincount(group, (scores - mean) ** 2) / count)[group]
    highest = np.full(len(count), -np.inf)
    np.maximum.at(highest, group, scores)
    return {"same label mean": mean, "same label highest": highest[group], "same label deviation": deviation}


def support(labels: np.ndarray, scores: np.ndarray, candidates: np.ndarray) -> Support:
    """Return what neighbours (Q,K) of `labels` with `scores` say of the `candidates` (Q,T)."""
    same = (labels[:, None, :] == candidates[:, :, None]) & (candidates >= 0)[:, :, None]
    given = np.where(same, scores[:, None, :], 0).astype(np.float32)
    total, count = given.sum(axis=2), same.sum(axis=2)
    highest = np.where(same, scores[:, None, :], -np.inf).max(axis=2, initial=-np.inf)
    return Support(
        total,
        np.where(count > 0, highest, 0).astype(np.float32),
        (total / np.maximum(count, 1)).astype(np.float32),
    )
