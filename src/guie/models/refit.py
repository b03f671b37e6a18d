"""The linear neck in closed form at the end of training: discriminant analysis of the features it reads.

A neck trained by a loss keeps what separates the training classes; unseen classes need what separates
classes at all. Discriminant analysis (Fisher 1936; with a ridge, Friedman 1989) whitens what varies within
the training classes and keeps the directions of largest variance that remain: as "learned whitening"
(Radenovic et al., TPAMI 2019, section 3.3) does for landmarks, from classes instead of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guie.errors import UserError

CHUNK = 8192


def refit(neck: Any, features: np.ndarray, labels: np.ndarray, shrinkage: float) -> None:
    """Give `neck` the discriminant map of `features` (N, F), NaN rows skipped, and `labels` (N,).

    What the neck has learnt is kept as D further directions of the feature, with the weight of all others
    together. `shrinkage` is the ridge, in parts of the mean variance within classes: towards 0 the rarest
    differences count most, above 1 little changes but the scale.

    Raises:
        UserError: a neck that is not one linear map, or fewer than two pictures with features.

    """
    if not hasattr(neck, "assign"):
        raise UserError(
            f"trainer.refit_shrinkage: {shrinkage} with neck {type(neck).__name__}; accepted: a linear neck "
            "(fc_bn, linear, bn_linear), or 0"
        )
    good = np.flatnonzero(np.isfinite(features[:, 0]))
    if len(good) < 2:
        raise UserError(f"trainer.refit_shrinkage: {len(good)} pictures with features; accepted: 2 or more")
    mean, total, within = _scatter(features, labels, good)
    weight = discriminant(total, within, _weight_of(neck, len(mean)), shrinkage)
    neck.assign(torch.from_numpy(weight), torch.from_numpy(-weight @ mean))


def discriminant(total: np.ndarray, within: np.ndarray, learnt: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return the map (D, F) float64 from the covariances (F, F) of features, and the learnt map (D, F)."""
    scale = np.sqrt(np.maximum(np.diag(total), 1e-12))
    total, within = total / np.outer(scale, scale), within / np.outer(scale, scale)
    learnt = learnt * scale
    learnt /= np.sqrt(np.maximum(np.einsum("df,fg,dg->d", learnt, total, learnt), 1e-12))[:, None]
    stacked = np.vstack([np.eye(len(scale)), np.sqrt(len(scale) / len(learnt)) * learnt])
    total, within = stacked @ total @ stacked.T, stacked @ within @ stacked.T
    ridge = max(shrinkage * np.trace(within), 1e-6 * np.trace(total)) / len(within)
    variances, axes = np.linalg.eigh(within + ridge * np.eye(len(within)))
    whitened = axes / np.sqrt(variances)
    _, directions = np.linalg.eigh(whitened.T @ total @ whitened)
    found = (whitened @ directions[:, ::-1][:, : len(learnt)]).T @ stacked / scale
    # an eigenvector has no sign: the largest entry is made positive, so that machines agree
    largest = np.abs(found).argmax(axis=1, keepdims=True)
    return found * np.sign(np.take_along_axis(found, largest, axis=1))


def _scatter(
    features: np.ndarray, labels: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean (F,) and the covariances (F, F) in all and within classes, float64, chunk by chunk."""
    width, names = features.shape[1], labels[rows]
    counts = np.bincount(names)
    sums = np.zeros((len(counts), width))
    squares = np.zeros((width, width))
    for chunk, classes in _chunks(features, names, rows):
        np.add.at(sums, classes, chunk)
        squares += chunk.T @ chunk
    mean = sums.sum(axis=0) / len(rows)
    seen = counts > 0
    between = (sums[seen] / counts[seen, None]).T @ sums[seen]
    total = squares / len(rows) - np.outer(mean, mean)
    return mean, total, (squares - between) / len(rows)


def _chunks(
    features: np.ndarray, names: np.ndarray, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        yield np.asarray(features[rows[part]], dtype=np.float64), names[part]


@torch.no_grad()
def _weight_of(neck: Any, width: int) -> np.ndarray:
    """Return the linear part (D, F) of a neck in evaluation mode."""
    some: Tensor = next(neck.parameters())
    basis = torch.eye(width, dtype=some.dtype, device=some.device)
    return (neck(basis) - neck(torch.zeros_like(basis[:1]))).t().double().cpu().numpy()
