"""Linear maps to fewer dimensions, z = L2(W x + b): PCA, whitening, discriminant, a file, a prefix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from guie.errors import UserError
from guie.postprocess.layers import Mapped
from guie.postprocess.step import ANY, SOME, Ranges, Role, Step
from guie.postprocess.vectors import chunks, unit
from guie.types import Side

# Covariances are summed over so many rows at a time.
ROWS = 8192


class Affine(Step):
    """z = L2(W x + b), from `weight` (D',D) and `bias` (D',) float32; what the maps of this file share."""

    weight: np.ndarray | None = None
    bias: np.ndarray | None = None

    def layer(self, width: int) -> Mapped:
        """Return W (D',D) and b (D',) float32 for vectors of `width` D; UserError where it does not fit."""
        assert self.weight is not None and self.bias is not None, "the pipeline asks fitted steps alone"
        if self.weight.shape[1] != width:
            raise UserError(f"vectors: {width}-d received; accepted: {self.weight.shape[1]}-d, as fitted")
        return Mapped(self.weight, self.bias)

    def state(self) -> dict[str, np.ndarray]:
        """Return the weight and the bias, once there are some."""
        if self.weight is None or self.bias is None:
            return {}
        return {"weight": self.weight, "bias": self.bias}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over weight and bias."""
        self.weight, self.bias = state["weight"], state["bias"]

    def apply(self, vectors: np.ndarray, role: Role) -> np.ndarray:
        """Return (N,D') unit vectors."""
        weight, bias = self.layer(vectors.shape[1])
        mapped = np.empty((len(vectors), len(weight)), dtype=np.float32)
        for rows in chunks(len(vectors), 4 * sum(weight.shape)):
            mapped[rows] = unit(np.asarray(vectors[rows], dtype=np.float32) @ weight.T + bias)
        return mapped

    def _set(self, weight: np.ndarray, mean: np.ndarray) -> None:
        """Take over x -> weight (x - mean)."""
        self.weight = np.ascontiguousarray(weight, dtype=np.float32)
        self.bias = (-weight @ mean).astype(np.float32)


class PCA(Affine):
    """The `dim` directions of largest variance of the bank, centred; `whiten` divides each by its deviation.

    Whitening after Jegou and Chum, ECCV 2012. `shrinkage` adds that part of the mean variance to each before
    the division, so that directions with next to none are not blown up.
    """

    needs_bank = True
    ranges: ClassVar[Ranges] = {"dim": SOME, "shrinkage": ANY}

    def __init__(self, dim: int = 64, whiten: bool = False, shrinkage: float = 0.0) -> None:
        self.dim = dim
        self.whiten = whiten
        self.shrinkage = shrinkage

    def fit(self, bank: Side) -> None:
        """Find the directions in (N,D) training vectors."""
        _check_dim(self.dim, *bank.vectors.shape)
        mean, total, _ = scatter(bank.vectors, np.zeros(len(bank.vectors), dtype=np.int64))
        variances, axes = np.linalg.eigh(total)
        weight = axes[:, ::-1][:, : self.dim].T
        if self.whiten:
            ridge = self.shrinkage * variances.mean()
            kept = variances[::-1][: self.dim]
            if kept[-1] + ridge <= 1e-10 * variances[-1]:
                rank = int((variances > 1e-10 * variances[-1]).sum())
                raise UserError(f"dim: {self.dim} with a bank of rank {rank}; accepted: at most {rank}")
            weight = weight / np.sqrt(kept + ridge)[:, None]
        self._set(signed(weight), mean)


class Discriminant(Affine):
    """The `dim` directions that separate the classes of the bank best, where each class varies alike.

    Discriminant analysis (Fisher 1936; with a ridge, Friedman 1989); from pairs instead of classes it is the
    learned whitening of Radenovic et al., TPAMI 2019, section 3.3. `shrinkage` is the ridge, in parts of the
    mean variance within classes.
    """

    needs_bank = True
    ranges: ClassVar[Ranges] = {"dim": SOME, "shrinkage": ANY}

    def __init__(self, dim: int = 64, shrinkage: float = 1.0) -> None:
        self.dim = dim
        self.shrinkage = shrinkage

    def fit(self, bank: Side) -> None:
        """Find the directions in (N,D) training vectors and their labels (N,)."""
        _check_dim(self.dim, *bank.vectors.shape)
        if bank.labels is None:
            raise UserError("bank: without labels; accepted: training vectors of known classes")
        mean, total, within = scatter(bank.vectors, np.unique(bank.labels, return_inverse=True)[1])
        if np.trace(within) <= 1e-10 * np.trace(total):
            raise UserError("bank: no class varies; accepted: classes of two or more pictures")
        self._set(discriminant(total, within, self.dim, self.shrinkage), mean)


class Linear(Affine):
    """A map from a file: .safetensors with `weight` (D',D) and, where there is one, `bias` (D',)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.load(_read(Path(path).expanduser()))

    def identity(self) -> dict[str, str]:
        """Return nothing: what is in the file counts, not where it lies."""
        return {}


class Prefix(Affine):
    """The first `dim` dimensions alone, for embeddings trained so (Matryoshka, Kusupati et al. 2022)."""

    ranges: ClassVar[Ranges] = {"dim": SOME}

    def __init__(self, dim: int = 64) -> None:
        self.dim = dim

    def layer(self, width: int) -> Mapped:
        """Return the first rows of the unit matrix, and zeros."""
        if not 1 <= self.dim <= width:
            raise UserError(f"dim: {self.dim} of {width}-d vectors; accepted: 1 to {width}")
        return Mapped(np.eye(self.dim, width, dtype=np.float32), np.zeros(self.dim, dtype=np.float32))

    def apply(self, vectors: np.ndarray, role: Role) -> np.ndarray:
        """Return (N,dim) unit vectors."""
        self.layer(vectors.shape[1])
        return unit(np.asarray(vectors[:, : self.dim], dtype=np.float32))


def discriminant(total: np.ndarray, within: np.ndarray, dim: int, shrinkage: float) -> np.ndarray:
    """Return the map (dim,D) float64 from the covariances (D,D) of all vectors and within classes."""
    ridge = max(shrinkage * np.trace(within), 1e-9 * np.trace(total)) / len(within)
    variances, axes = np.linalg.eigh(within + ridge * np.eye(len(within)))
    whitened = axes / np.sqrt(variances)
    _, directions = np.linalg.eigh(whitened.T @ total @ whitened)
    return signed((whitened @ directions[:, ::-1][:, :dim]).T)


def scatter(vectors: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean (D,) and the covariances (D,D) of all and within `classes` (N,) int64, float64."""
    counts = np.bincount(classes)
    sums = np.zeros((len(counts), vectors.shape[1]))
    squares = np.zeros((vectors.shape[1], vectors.shape[1]))
    for part, names in _parts(vectors, classes):
        np.add.at(sums, names, part)
        squares += part.T @ part
    mean = sums.sum(axis=0) / len(vectors)
    between = (sums / np.maximum(counts, 1)[:, None]).T @ sums
    return mean, squares / len(vectors) - np.outer(mean, mean), (squares - between) / len(vectors)


def signed(weight: np.ndarray) -> np.ndarray:
    """Return rows whose largest entry is positive: an eigenvector has no sign, machines should agree."""
    largest = np.abs(weight).argmax(axis=1, keepdims=True)
    return weight * np.sign(np.take_along_axis(weight, largest, axis=1))


def _parts(vectors: np.ndarray, classes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(vectors), ROWS):
        yield np.asarray(vectors[start : start + ROWS], dtype=np.float64), classes[start : start + ROWS]


def _check_dim(dim: int, rows: int, width: int) -> None:
    most = min(width, rows - 1)
    if not 1 <= dim <= most:
        raise UserError(
            f"dim: {dim} from {rows} training vectors of {width} dimensions; accepted: 1 to {most}"
        )


def _read(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file() or path.suffix != ".safetensors":
        raise UserError(f"path: there is no file '{path}'; accepted: .safetensors with weight and bias")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise UserError(f"path: {path} cannot be read ({error})") from error
    weight = found.get("weight", np.empty(0)).astype(np.float32)
    bias = found.get("bias", np.zeros(len(weight))).astype(np.float32)
    if weight.ndim != 2 or bias.shape != (len(weight),):
        shapes = {name: value.shape for name, value in found.items()}
        raise UserError(f"path: {path} holds {shapes}; accepted: weight (D',D) and bias (D',)")
    return {"weight": weight, "bias": bias}
