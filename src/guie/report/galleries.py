"""Queries to look at with their first results: the worst, the near misses, the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from guie.report.album import Album
from guie.report.folder import Queries
from guie.report.numbers import Numbers, main_metric, share
from guie.types import Embeddings, Pairs

CASES = 12
SHOWN = 5
MARKS = {"hit": "✓", "miss": "✗"}
_STATED = ("Stated", "Revisited", "Copies")

Case = dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """Tells which results of a query are right.

    `labels`: data sets where equal labels are; `ids`: where any common label is, {file: its labels}; `right`:
    of others {query: its right items}, as far as known;
    `late`: where a result before the first hit is wrong, whatever its label; `votes`: where results vote, so
    that none is beyond the relevant ones.
    """

    labels: frozenset[str]
    right: Mapping[str, Mapping[str, set[str]]] = field(default_factory=dict)
    ids: Mapping[str, Mapping[str, set[str]]] = field(default_factory=dict)
    late: frozenset[str] = frozenset()
    votes: frozenset[str] = frozenset()

    def kinds(self, queries: Queries, row: int) -> list[str]:
        """Return hit, miss, beyond (no more are relevant) or unknown of each of the first results."""
        query, first = (queries["file"][row], queries["label"][row]), queries["first_hit"][row]
        found = []
        for rank, (file, label, _) in enumerate(queries.results(row), start=1):
            hit = self.right_item(queries["dataset"][row], query, (file, label))
            if hit is None and not 0 < first < rank:
                hit = bool(rank == first)
            if queries["dataset"][row] in self.late and not 0 < first <= rank:
                hit = False
            few = queries["dataset"][row] not in self.votes and rank > max(1, queries["relevant"][row])
            other = "beyond" if few else "miss"
            found.append("unknown" if hit is None else "hit" if hit else other)
        return found

    def right_item(self, dataset: str, query: tuple[str, str], item: tuple[str, str]) -> bool | None:
        """Return whether an item (file, label) is right for a query (file, label), None where unknown."""
        if dataset in self.labels:
            return query[1] == item[1]
        if dataset in self.ids:
            ids = self.ids[dataset]
            return bool(ids.get(query[0], set()) & ids.get(item[0], set()))
        stated = self.right.get(dataset)
        return None if stated is None else item[0] in stated.get(query[0], ())


def judge(queries: Queries, numbers: Numbers, found: Mapping[str, Embeddings]) -> Judge:
    """Return who tells right from wrong; where pairs or several labels are stated, as `found` holds them."""
    protocols = numbers.get("protocols", {})
    labels, right, ids = set(), {}, {}
    for name in set(queries["dataset"].tolist()):
        part = found.get(name)
        stated = protocols.get(name, {}).get("kind") in _STATED
        if part is not None and part.truth is not None and stated:
            right[name] = _right_items(part.truth)
        elif part is not None and (several := _several(part)):
            ids[name] = several
        elif part is not None or not stated:
            labels.add(name)
    late, votes = (
        frozenset(name for name, one in protocols.items() if one.get(key) == value)
        for key, value in (("match_domain", True), ("kind", "Recognition"))
    )
    return Judge(frozenset(labels), right, ids, late, votes)


def _right_items(truth: Pairs) -> dict[str, set[str]]:
    from guie.protocols.pairs import RIGHT

    items: dict[str, set[str]] = {}
    for query, item, relation in zip(truth.query, truth.item, truth.relation, strict=True):
        if relation in RIGHT:
            items.setdefault(query, set()).add(item)
    return items


def _several(part: Embeddings) -> dict[str, set[str]]:
    """Return {file: its labels} where some picture has several, else nothing.

    Of `class_ids` the numbers after the first stand for labels that begin as the picture's own.
    """
    for column in ("class_ids", "landmarks"):
        texts = part.further.get(column)
        if texts is None or not any(" " in text for text in texts):
            continue
        rows = zip(part.files.tolist(), texts.tolist(), part.labels.tolist(), strict=True)
        if column == "landmarks":
            return {file: set(text.split()) or {label} for file, text, label in rows}
        return {
            file: {label, *(f"{label.rpartition('/')[0]}/{number}" for number in text.split()[1:])}
            for file, text, label in rows
        }
    return {}


def galleries(queries: Queries, album: Album, judge: Judge, numbers: Numbers) -> list[dict[str, Any]]:
    """Return the worst queries, the near misses and the best, each in turn from each domain."""
    hint = "✓ right, ✗ wrong, pale: no more are relevant. Number: similarity to the query, then the label."
    notes = {
        "worst": f"Lowest value of the metric, a first hit that is late before one that is early. {hint}",
        "near misses": "A wrong result came first, a right one soon after, and little was between them.",
        "best": "Highest value of the metric, those with the most relevant pictures first.",
    }
    return [
        {
            "title": f"{name.capitalize()} queries" if name != "near misses" else "Near misses",
            "note": f"{notes[name]} In turn from each domain.",
            "cases": [case(queries, row, album, judge, numbers) for row in _chosen(queries, order)],
        }
        for name, order in _orders(queries).items()
        if len(order)
    ]


def varied(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return rows with the first of each label before the second of any."""
    times: dict[str, int] = {}
    turn = []
    for label in labels[order].tolist():
        times[label] = times.get(label, -1) + 1
        turn.append(times[label])
    return order[np.argsort(np.array(turn, dtype=np.int64), kind="stable")]


def _orders(queries: Queries) -> dict[str, np.ndarray]:
    """Return rows in the order of each gallery; a query that does not count is in none of the extremes."""
    first, relevant = queries["first_hit"], queries["relevant"]
    late = np.where(first > 0, first, np.iinfo(np.int32).max)
    value = queries.value
    counted = np.flatnonzero(~np.isnan(value))
    worst = counted[np.lexsort((-late[counted], value[counted]))]
    best = counted[np.lexsort((-relevant[counted], -value[counted]))]
    near = np.flatnonzero((first > 1) & (first <= SHOWN))
    scores = queries["top_scores"]
    margins = np.array([scores[row][0] - scores[row][min(first[row], len(scores[row])) - 1] for row in near])
    top = value[counted].max(initial=0.0)
    return {
        "worst": worst[value[worst] < top],
        "near misses": near[np.argsort(margins, kind="stable")],
        "best": best[value[best] > 0],
    }


def _chosen(queries: Queries, order: np.ndarray) -> list[int]:
    return in_turn(varied(order, queries["label"]), _places(queries))


def _places(queries: Queries) -> np.ndarray:
    """Return the data set and domain of each query, (Q,) objects."""
    pairs = zip(queries["dataset"].tolist(), queries["domain"].tolist(), strict=True)
    return np.array([f"{dataset}/{domain}" for dataset, domain in pairs], dtype=object)


def in_turn(order: np.ndarray, domains: np.ndarray, count: int = CASES) -> list[int]:
    """Return `count` rows of `order`, one of each domain in turn, so that no domain fills the gallery."""
    waiting = {
        domain: iter(order[domains[order] == domain].tolist()) for domain in sorted(set(domains.tolist()))
    }
    chosen: list[int] = []
    while waiting and len(chosen) < count:
        for domain, rows in list(waiting.items()):
            row = next(rows, None)
            if row is None:
                del waiting[domain]
            elif len(chosen) < count:
                chosen.append(row)
    return chosen


def case(queries: Queries, row: int, album: Album, judge: Judge, numbers: Numbers) -> Case:
    """Return a query with its first results, as the template shows it."""
    dataset = queries["dataset"][row]
    own = picture(album, dataset, queries["file"][row], queries["label"][row], "query", "query")
    pictures = [own, *strip(queries, row, album, judge.kinds(queries, row))]
    return framed(queries, row, _told(queries, row, numbers), pictures)


def _told(queries: Queries, row: int, numbers: Numbers) -> str:
    dataset, first = queries["dataset"][row], queries["first_hit"][row]
    if numbers.get("protocols", {}).get(dataset, {}).get("kind") == "Recognition":
        taken = queries["predicted"][row]
        return f"taken for {short(taken)} · {queries['prediction_score'][row]:.3g}" if taken else "no answer"
    value = f"{main_metric(dataset, numbers)} {share(float(queries.value[row]))}"
    found = f"first hit {first}" if first else "no hit"
    return f"{value} · {found} · {queries['relevant'][row]:,} relevant"


def framed(queries: Queries, row: int, value: str, pictures: Sequence[Mapping[str, Any]]) -> Case:
    """Return pictures under the head of a query."""
    return {
        "label": queries["label"][row],
        "file": queries["file"][row],
        "domain": queries["domain"][row] or queries["dataset"][row],
        "value": value,
        "pictures": pictures,
        "pictured": any(one["source"] for one in pictures),
    }


def strip(queries: Queries, row: int, album: Album, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return the first results of a query as pictures."""
    pictures = []
    for kind, (file, label, score) in zip(kinds, queries.results(row), strict=True):
        words = f"{MARKS.get(kind, '')} {score:.2f}".strip()
        caption = words if kind == "hit" else f"{words} {short(label)}"
        pictures.append(picture(album, queries["dataset"][row], file, label, kind, caption))
    return pictures


def picture(album: Album, dataset: str, file: str, label: str, kind: str, caption: str) -> dict[str, Any]:
    """Return a picture as the template shows it; `source` is None where there is none."""
    source = album.thumbnail(dataset, file)
    return {"source": source, "file": file, "label": label, "kind": kind, "caption": caption}


def short(label: str) -> str:
    """Return a label without the data set that it begins with."""
    return label.rsplit(":", 1)[-1]
