"""The rows that stand for classes: drawn at random and learnt, or read from a file and fixed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from guie.errors import UserError


def class_centres(shape: tuple[int, ...], init: str, centres: str | None) -> nn.Parameter:
    """Return rows (..., C, D): learnt from a random `init`, or with a file of `centres` read and frozen."""
    if centres is None:
        return nn.Parameter(initial_weight(shape, init))
    return nn.Parameter(fixed_centres(centres, shape), requires_grad=False)


def initial_weight(shape: tuple[int, ...], init: str) -> Tensor:
    """Return random rows (..., C, D), "xavier" uniform over (C, D) or "uniform" within 1 / sqrt(D)."""
    bound = initial_bound(shape[-2:], init)
    return torch.empty(shape).uniform_(-bound, bound)


def initial_bound(shape: tuple[int, ...], init: str) -> float:
    """Return how far from 0 the random rows of (C, D) weights may lie."""
    classes, width = shape
    if init not in ("xavier", "uniform"):
        raise UserError(f"head.init: {init!r} received; accepted: xavier, uniform")
    return math.sqrt(6 / (classes + width)) if init == "xavier" else 1 / math.sqrt(width)


def fixed_centres(path: str, shape: tuple[int, ...]) -> Tensor:
    """Return the vectors (..., C, D) of an .npy file or of the only tensor of a .safetensors file.

    Row i is class i, in the order of a run's labels.parquet. Raises UserError for a missing file, another
    shape or values that are not finite.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"head.centres: there is no file '{place}'; accepted: .npy, .safetensors")
    rows = _read(place)
    if tuple(rows.shape) != shape:
        raise UserError(f"head.centres: {place} holds {tuple(rows.shape)}; accepted: {shape}")
    if not bool(torch.isfinite(rows).all()):
        raise UserError(f"head.centres: {place} holds values that are not finite; accepted: finite ones")
    return rows


def _read(place: Path) -> Tensor:
    if place.suffix == ".npy":
        try:
            return torch.from_numpy(np.load(place, allow_pickle=False)).to(torch.get_default_dtype())
        except (ValueError, TypeError) as error:
            raise UserError(f"head.centres: {place} cannot be read ({error})") from error
    if place.suffix != ".safetensors":
        raise UserError(f"head.centres: '{place.name}' received; accepted: .npy, .safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(place)
    except SafetensorError as error:
        raise UserError(f"head.centres: {place} cannot be read ({error})") from error
    if len(found) != 1:
        raise UserError(f"head.centres: {place} holds {len(found)} tensors; accepted: 1")
    return next(iter(found.values())).to(torch.get_default_dtype())
