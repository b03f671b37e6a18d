"""What every protocol shares: the data set as it sees it, who asks and who answers, what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from guie.errors import UserError
from guie.metrics.bootstrap import bootstrap_interval
from guie.types import Embeddings, Index, Ranking, Search, Side

SHOWN = 5  # results of each query that are kept to look at
CURVE_KS = (1, 2, 5, 10, 20, 50, 100)
_RESULTS = 1 << 22  # of one tile: 32 MiB of ids and scores

Numbers = dict[str, Any]
Columns = dict[str, Any]


class Roles(NamedTuple):
    """Which splits ask and which answer; a row of both is not its own neighbour."""

    asks: Sequence[str]
    answers: Sequence[str]


def splits_of(protocol: Protocol) -> tuple[list[str], list[str]]:
    """Return the splits that ask and those that answer, in all of its roles."""
    asks, answers = (sorted({split for role in protocol.roles for split in role[side]}) for side in (0, 1))
    return asks, answers


class Outcome(NamedTuple):
    """`numbers` of a data set; `queries`: columns, one value per query; `lists`: query, item, rank, score."""

    numbers: Numbers
    queries: Columns
    lists: Columns | None = None


class Protocol:
    """A protocol: from a data set's embeddings to its numbers. Config group `protocol`.

    Rows of the splits `asks` search those of `answers`, each without itself. `metric` names the number that
    stands for all, the higher the better; `by_label`: label equality decides, so that several data sets can
    be searched in one index; `crops`: the splits whose pictures are cropped to their `box`.
    """

    metric: str
    by_label: ClassVar[bool] = False
    asks: Sequence[str]
    answers: Sequence[str]
    crops: Sequence[str] = ()

    @property
    def roles(self) -> Sequence[Roles]:
        """Return who asks whom."""
        return [Roles(self.asks, self.answers)]

    def over(self, split: str, present: Sequence[str]) -> Self:
        """Return the protocol with `split` asking, and those who answered, where they are not who asked.

        `present`: the splits that the data set has. Where none is left, `split` answers, too.
        """
        answers = tuple(name for name in self.answers if name in present and name != "test")
        return replace(self, asks=(split,), answers=answers or (split,))  # type: ignore[type-var]

    def evaluate(self, part: Part) -> Outcome:
        """Return the numbers; UserError where there is nobody to ask or to answer."""
        raise NotImplementedError


@dataclass(frozen=True)
class Part:
    """A data set as a protocol sees it: `embeddings`, the `search`, `picture` (file to bytes).

    `merged`: it is several data sets in one index, where a domain has no index of its own.
    """

    name: str
    embeddings: Embeddings
    search: Search
    picture: Callable[[str], bytes] | None = None
    merged: bool = False

    def rows(self, splits: Sequence[str]) -> np.ndarray:
        """Return the rows of these splits, int64."""
        return np.flatnonzero(np.isin(np.asarray(self.embeddings.splits, dtype=str), list(splits)))

    def roles(self, roles: Roles) -> tuple[np.ndarray, np.ndarray]:
        """Return (query rows, gallery rows); UserError where either is empty."""
        queries, gallery = self.rows(roles.asks), self.rows(roles.answers)
        if not len(queries) or not len(gallery):
            found = ", ".join(sorted(set(self.embeddings.splits.tolist()))) or "no rows"
            raise UserError(f"{self.name}: splits {found}; accepted for evaluation: {_told(roles)}")
        return queries, gallery

    def side(self, rows: np.ndarray, *, labels: bool = False) -> Side:
        """Return these rows as one side of a search; a view, not a copy, where they follow each other."""
        files = np.asarray(self.embeddings.files, dtype=object)[rows]
        names = np.asarray(self.embeddings.labels, dtype=object)[rows] if labels else None
        return Side(vectors_of(self.embeddings.vectors, rows), files, names, self.picture)

    def self_ids(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Return the gallery position of each query row, (Q,) int32, -1 where it is not in the gallery."""
        position = np.full(len(self.embeddings.vectors), -1, dtype=np.int32)
        position[gallery] = np.arange(len(gallery), dtype=np.int32)
        return position[queries]

    def asked(self, queries: np.ndarray, gallery: np.ndarray, depth: int) -> Iterator[tuple[slice, Ranking]]:
        """Yield (which of the query rows, their ranking (T,depth) in gallery positions) tile by tile."""
        index = self.search.index(self.side(gallery, labels=True))
        return asked(index, self.side(queries), depth, self.self_ids(queries, gallery))

    def described(self, rows: np.ndarray) -> Columns:
        """Return the columns dataset, file, label and domain of query rows."""
        table: Columns = {"dataset": np.full(len(rows), self.name, dtype=object)}
        for column in ("file", "label", "domain"):
            table[column] = np.asarray(getattr(self.embeddings, f"{column}s"), dtype=object)[rows]
        return table

    def shown(self, top: Ranking, gallery: np.ndarray) -> Columns:
        """Return what the first results are, as lists of files, labels and scores; `top` holds positions."""
        files, labels = (np.asarray(getattr(self.embeddings, n), dtype=object) for n in ("files", "labels"))
        found = [gallery[ids[ids >= 0]] for ids in top.ids]
        return {
            "top_files": [files[rows].tolist() for rows in found],
            "top_labels": [labels[rows].tolist() for rows in found],
            "top_scores": [row[np.isfinite(row)].tolist() for row in top.scores],
        }


def _told(roles: Roles) -> str:
    """Return the roles as `query and index, or test`."""
    both = [split for split in roles.asks if split in roles.answers]
    apart = [" or ".join(split for split in side if split not in both) for side in roles]
    return ", or ".join([*([" and ".join(apart)] if all(apart) else []), *both])


def vectors_of(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return `vectors[rows]` as float32; a view, not a copy, where the rows follow each other."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
        return np.ascontiguousarray(vectors[rows[0] : rows[-1] + 1], dtype=np.float32)
    return np.ascontiguousarray(vectors[rows], dtype=np.float32)


def asked(
    index: Index, queries: Side, k: int, self_ids: np.ndarray | None
) -> Iterator[tuple[slice, Ranking]]:
    """Yield (which queries, their ranking (T,k)) tile by tile, so that no more than a tile is ever held.

    `self_ids` (Q,) as `Index.search` takes them, None where no query is in the gallery.
    """
    total = len(queries.vectors)
    step = index.tile and max(1, min(index.tile, _RESULTS // k))
    for start in range(0, total, step or max(1, total)):
        tile = slice(start, min(total, start + (step or total)))
        selves = None if self_ids is None or not (self_ids[tile] >= 0).any() else self_ids[tile]
        yield tile, index.search(cut(queries, tile), k, self_ids=selves)


def top_of(ranking: Ranking, width: int = SHOWN) -> Ranking:
    """Return the first results of a ranking, which no longer holds the others in memory."""
    return Ranking(ranking.ids[:, :width].copy(), ranking.scores[:, :width].copy())


def joined(rankings: Sequence[Ranking]) -> Ranking:
    """Return the rankings of one width of several tiles as one."""
    ids, scores = ([getattr(one, name) for one in rankings] for name in ("ids", "scores"))
    return Ranking(np.concatenate(ids), np.concatenate(scores))


def cut(side: Side, rows: slice | np.ndarray) -> Side:
    """Return some rows of a side."""
    parts = [None if column is None else column[rows] for column in (side.files, side.labels)]
    return Side(side.vectors[rows], parts[0], parts[1], side.picture)


def codes(strings: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return (codes (rows,) int64, names) of strings, by hashing (sorting unicode arrays costs memory)."""
    names: dict[str, int] = {}
    found = (names.setdefault(string, len(names)) for string in strings)
    return np.fromiter(found, dtype=np.int64, count=len(strings)), list(names)


def interval(values: np.ndarray) -> list[float]:
    """Return the bootstrap interval of the mean of per-query values."""
    return [float(side) for side in bootstrap_interval(values, samples=2000)]


def recall_curve(first_hit: np.ndarray, depth: int, gallery: int) -> dict[str, float]:
    """Return {k: R@k} for plotting, from the rank of each query's first hit (0: none).

    No k beyond the `depth` that was looked at, but where that is all of the `gallery`.
    """
    ks = [k for k in CURVE_KS if k <= depth or depth >= gallery]
    return {str(k): float(((first_hit > 0) & (first_hit <= k)).mean()) for k in ks}


def accepted(key: str, value: Any, holds: bool, what: str) -> None:
    """Raise UserError naming a protocol's key unless `holds`."""
    if not holds:
        raise UserError(f"protocol.{key}: {value}; accepted: {what}")


def positive(key: str, values: Sequence[int]) -> None:
    """Raise UserError unless `values` are whole numbers of 1 or more."""
    whole = bool(values) and all(isinstance(k, int) and k >= 1 for k in values)
    accepted(key, list(values), whole, "one or more whole numbers from 1, in brackets")


def settings(protocol: Any) -> Any:
    """Return a protocol's settings, with those of the protocols inside of it, as plain values."""
    if is_dataclass(protocol):
        return {"kind": type(protocol).__name__} | {
            one.name: settings(getattr(protocol, one.name)) for one in fields(protocol)
        }
    if isinstance(protocol, dict):
        return {key: settings(value) for key, value in protocol.items()}
    return list(protocol) if isinstance(protocol, tuple) else protocol
