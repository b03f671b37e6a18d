"""One retrieval protocol from embeddings to numbers, per domain and merged; no torch.

Protocol from splits: `query` rows search `index` rows; `test` rows search each other and the index, each
without itself. A merged index holds all domains (of one dataset, or of several); a domain's own index holds
only its rows. Labels of different datasets never match.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guie.embeddings import concatenate, to_arrow
from guie.errors import UserError
from guie.metrics.bootstrap import bootstrap_interval
from guie.metrics.hits import count_relevant, find_hits, per_query
from guie.search.exact import knn, tile_rows
from guie.types import Embeddings, Ranking, Truth

# Results per query searched for MAP@R at most; where a class is larger, MAP@R is left out.
DEEPEST = 1000
SHOWN = 5


@dataclass(frozen=True)
class Protocol:
    """What is evaluated: `recall_ks` of R@k, `map_k` of mAP@k; `memory_mib` bounds the search."""

    recall_ks: tuple[int, ...] = (1, 5, 10)
    map_k: int = 100
    memory_mib: float = 8
    match_domain: bool = False


@dataclass(frozen=True)
class Scores:
    """Per-query results on one index.

    `rows` (Q,) row of each query; `values` {metric: (Q,)}; `top` the first 5 as row numbers (-1: none);
    `relevant` (Q,); `first_hit` (Q,) rank of the first hit, 0 where the results hold none; `gallery` N;
    `dropped` lone queries left out.
    """

    rows: np.ndarray
    values: dict[str, np.ndarray]
    top: Ranking
    relevant: np.ndarray
    first_hit: np.ndarray
    gallery: int
    dropped: int


@dataclass(frozen=True)
class Evaluation:
    """`metrics`: {dataset: {..., "domains": {...}}, "merged": {...}}; `queries`: columns with one value per
    query, in the order of the datasets."""

    metrics: dict
    queries: dict[str, np.ndarray | list]

    def write_queries(self, path: str | Path) -> None:
        """Write the per-query results as parquet, for comparing runs and for the report."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = [to_arrow(column) for column in self.queries.values()]
        pq.write_table(pa.Table.from_arrays(arrays, names=list(self.queries)), path)


def evaluate(
    embeddings: Embeddings | Mapping[str, Embeddings], protocol: Protocol | None = None
) -> Evaluation:
    """Evaluate one dataset, or several by name; UserError where there is nothing to search.

    Each level holds mP@5 (with its bootstrap interval), R@k, mAP@k, MAP@R, R-Prec, MRR and counts; each of
    `domains` is on the domain's own index, with `merged` for the same queries on the merged index, and
    `domain_mean` is the plain mean of the domains' merged values (UnED's mMP@5). Where every query has one
    relevant image on its domain's own index and there are several domains (episodes, as Omniglot's runs),
    `one_shot_error` is the share of wrong nearest neighbours, averaged over the domains. One dataset alone:
    "merged" repeats it.
    """
    protocol = protocol or Protocol()
    parts = {"data": embeddings} if isinstance(embeddings, Embeddings) else dict(embeddings)
    numbers: dict[str, dict] = {}
    tables = []
    for name, part in parts.items():
        numbers[name], table = _evaluate_one(name, part, protocol)
        tables.append(table)
    if len(parts) == 1:
        merged = next(iter(numbers.values()))
    else:
        merged, _ = _evaluate_one("merged", concatenate(parts), protocol, own_index=False)
    numbers["merged"] = merged
    return Evaluation(numbers, _stack(tables))


def score(
    vectors: np.ndarray, labels: np.ndarray, queries: np.ndarray, gallery: np.ndarray, protocol: Protocol
) -> Scores:
    """Search rows `queries` (Q,) in rows `gallery` (N,) of `vectors` and score them, tile by tile.

    `labels` (rows,) int64. A row in both is not its own neighbour; lone queries are dropped. Working
    memory is a few tiles of the search, whatever Q is.
    """
    position = np.full(len(vectors), -1, dtype=np.int32)
    position[gallery] = np.arange(len(gallery), dtype=np.int32)
    gallery_labels = labels[gallery]
    relevant = count_relevant(Truth(labels[queries], gallery_labels, position[queries]))
    kept, relevant = queries[relevant > 0], relevant[relevant > 0]
    depth = _depth(protocol, relevant)
    gallery_vectors = _rows_of(vectors, gallery)
    tiles = []
    step = tile_rows(depth + 2, protocol.memory_mib)  # as `knn` cuts, so that it finds one tile
    for start in range(0, len(kept), step):
        rows = kept[start : start + step]
        truth = Truth(labels[rows], gallery_labels, position[rows])
        tiles.append(_score_tile(vectors[rows], gallery_vectors, truth, depth, protocol))
    return _join(tiles, kept, relevant, gallery, len(queries) - len(kept))


def _depth(protocol: Protocol, relevant: np.ndarray) -> int:
    """Return how many neighbours the metrics need: more than `map_k` only where MAP@R can use them."""
    wanted = max(protocol.map_k, *protocol.recall_ks, SHOWN)
    most_relevant = int(relevant.max(initial=0))
    return max(wanted, most_relevant) if most_relevant <= DEEPEST else wanted


def _score_tile(
    queries: np.ndarray, gallery: np.ndarray, truth: Truth, depth: int, protocol: Protocol
) -> tuple[dict[str, np.ndarray], Ranking, np.ndarray]:
    """Return ({metric: (T,)}, the first 5 neighbours, rank of the first hit) of one tile of queries."""
    self_ids = truth.self_ids if (truth.self_ids >= 0).any() else None
    ranking = knn(queries, gallery, depth, self_ids=self_ids, memory_mib=protocol.memory_mib)
    hits = find_hits(ranking.ids, truth, distinct=True)
    values = per_query(hits, recall_ks=protocol.recall_ks, map_k=protocol.map_k)
    first_hit = np.zeros(len(queries), dtype=np.int32)
    first = hits.order == 1
    first_hit[hits.query[first]] = hits.rank[first]
    return values, Ranking(ranking.ids[:, :SHOWN].copy(), ranking.scores[:, :SHOWN].copy()), first_hit


def _join(tiles: list, kept: np.ndarray, relevant: np.ndarray, gallery: np.ndarray, dropped: int) -> Scores:
    names = set.intersection(*(set(values) for values, _, _ in tiles)) if tiles else set()
    ordered = [name for name in tiles[0][0] if name in names] if tiles else []
    values = {name: np.concatenate([tile[0][name] for tile in tiles]) for name in ordered}
    empty = np.empty((0, SHOWN), dtype=np.int32)
    ids = np.concatenate([empty, *(tile[1].ids for tile in tiles)])
    scores = np.concatenate([empty.astype(np.float32), *(tile[1].scores for tile in tiles)])
    first_hit = np.concatenate([empty[:, 0], *(tile[2] for tile in tiles)])
    rows = np.where(ids >= 0, gallery[ids], -1) if len(gallery) else ids
    return Scores(kept, values, Ranking(rows, scores), relevant, first_hit, len(gallery), dropped)


def _rows_of(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return `vectors[rows]` as float32; a view, not a copy, where the rows follow each other."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
        return np.ascontiguousarray(vectors[rows[0] : rows[-1] + 1], dtype=np.float32)
    return np.ascontiguousarray(vectors[rows], dtype=np.float32)


def _evaluate_one(
    name: str, part: Embeddings, protocol: Protocol, own_index: bool = True
) -> tuple[dict, dict[str, np.ndarray | list]]:
    """Return (numbers, per-query table) of one dataset: merged index, then each domain."""
    queries, gallery = _roles(name, part.splits)
    domains, domain_names = _codes(part.domains)
    labels, _ = _codes(part.labels)
    if protocol.match_domain:
        labels = np.unique(labels * len(domain_names) + domains, return_inverse=True)[1]
    scores = score(part.vectors, labels, queries, gallery, protocol)
    if not len(scores.rows):
        raise UserError(f"{name}: no query has a relevant index image; accepted: labels that occur in both")
    numbers = _summary(scores)
    own: dict[str, Scores] = {}
    numbers["domains"] = {}
    for code, domain in sorted(enumerate(domain_names), key=lambda pair: pair[1]):
        mine = scores if len(domain_names) == 1 else None
        if mine is None and own_index:
            in_domain = [rows[domains[rows] == code] for rows in (queries, gallery)]
            mine = score(part.vectors, labels, in_domain[0], in_domain[1], protocol)
        chosen = domains[scores.rows] == code
        if chosen.any():
            if mine is not None and len(mine.rows):
                own[domain] = mine
            entry = _summary(own[domain]) if domain in own else {}
            numbers["domains"][domain or "all"] = entry | {"merged": _summary(scores, chosen)}
    numbers["domain_mean"] = _domain_mean([entry["merged"] for entry in numbers["domains"].values()])
    if len(own) > 1 and all((mine.relevant == 1).all() for mine in own.values()):
        accuracy = _domain_mean([_summary(mine) for mine in own.values()])["R@1"]
        numbers["one_shot_error"] = 1.0 - accuracy
    return numbers, _table(name, part, scores, own)


def _roles(name: str, splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (query rows, gallery rows), int64; UserError where either is empty."""
    splits = np.asarray(splits)
    test = splits == "test"
    queries, gallery = np.flatnonzero((splits == "query") | test), np.flatnonzero((splits == "index") | test)
    if not len(queries) or not len(gallery):
        found = ", ".join(sorted(set(splits.tolist()))) or "no rows"
        raise UserError(f"{name}: splits {found}; accepted for evaluation: query and index, or test")
    return queries, gallery


def _codes(strings: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return (codes (rows,) int64, names) of strings, by hashing (sorting unicode arrays costs memory)."""
    names: dict[str, int] = {}
    codes = (names.setdefault(string, len(names)) for string in strings)
    return np.fromiter(codes, dtype=np.int64, count=len(strings)), list(names)


def _summary(scores: Scores, chosen: np.ndarray | None = None) -> dict:
    """Return the means over all queries, or over those `chosen` (Q,) bool, with counts."""
    chosen = np.ones(len(scores.rows), dtype=bool) if chosen is None else chosen
    numbers: dict = {name: float(values[chosen].mean()) for name, values in scores.values.items()}
    low, high = bootstrap_interval(scores.values["mP@5"][chosen], samples=2000)
    numbers["mP@5_interval"] = [low, high]
    numbers["queries"], numbers["gallery"] = int(chosen.sum()), scores.gallery
    if chosen.all():
        numbers["dropped_lone_queries"] = scores.dropped
    numbers["recall_curve"] = _recall_curve(scores.first_hit[chosen])
    return numbers


def _recall_curve(
    first_hit: np.ndarray, ks: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
) -> dict[str, float]:
    """Return {k: R@k} for plotting, from the rank of each query's first hit (0: none)."""
    return {str(k): float(((first_hit > 0) & (first_hit <= k)).mean()) for k in ks}


def _domain_mean(domains: list[dict]) -> dict[str, float]:
    """Return the plain mean over domains of every number that all of them have."""
    names = [name for name, value in domains[0].items() if isinstance(value, float)]
    return {n: float(np.mean([d[n] for d in domains])) for n in names if all(n in d for d in domains)}


def _table(name: str, part: Embeddings, scores: Scores, own: dict[str, Scores]) -> dict:
    """Return per-query columns: who, the merged metrics, the own-index metrics, the first 5 neighbours."""
    rows, count = scores.rows, len(scores.rows)
    table: dict = {"dataset": np.full(count, name, dtype=object)}
    for column, source in (("file", part.files), ("label", part.labels), ("domain", part.domains)):
        table[column] = np.asarray(source, dtype=object)[rows]
    table |= {"relevant": scores.relevant, "first_hit": scores.first_hit}
    table |= scores.values
    table |= {f"own {metric}": values for metric, values in _own_values(scores, own).items()}
    files, labels = np.asarray(part.files, dtype=object), np.asarray(part.labels, dtype=object)
    found = [row[row >= 0] for row in scores.top.ids]
    table["top_files"] = [files[row].tolist() for row in found]
    table["top_labels"] = [labels[row].tolist() for row in found]
    table["top_scores"] = [row[np.isfinite(row)].tolist() for row in scores.top.scores]
    return table


def _own_values(scores: Scores, own: dict[str, Scores]) -> dict[str, np.ndarray]:
    """Return the metrics on each domain's own index in the order of `scores.rows`; NaN where lone there."""
    values: dict[str, np.ndarray] = {}
    for metric in ("mP@5", "R@1"):
        if metric in scores.values:
            by_row = {
                row: value
                for mine in own.values()
                if metric in mine.values
                for row, value in zip(mine.rows.tolist(), mine.values[metric].tolist(), strict=True)
            }
            values[metric] = np.array([by_row.get(row, np.nan) for row in scores.rows.tolist()])
    return values


def _stack(tables: list[dict]) -> dict:
    """Join tables of several datasets; columns that one lacks (a metric left out) are dropped."""
    shared = [name for name in tables[0] if all(name in table for table in tables)]
    return {
        name: np.concatenate([table[name] for table in tables])
        if isinstance(tables[0][name], np.ndarray)
        else [row for table in tables for row in table[name]]
        for name in shared
    }
