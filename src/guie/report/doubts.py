"""What the results make doubtful: classes taken for each other, labels, pictures that are there twice."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from guie.report.album import Album
from guie.report.folder import Queries
from guie.report.galleries import SHOWN, Judge, framed, picture, short, strip

PAIRS, CASES = 12, 12
# Neighbours that have to agree on another label, at least.
AGREEING = 4
# Pairs that are worth a look at their pixels: cosine at least, and how many.
ALIKE, LOOKED_AT = 0.95, 80
# Difference of two pictures (Album.difference) that show the same file, scaled or saved again.
SAME_PIXELS = 0.02


class Confused(NamedTuple):
    """Two classes: `wrong` of their `asked` queries have the other among the first results; an `example`
    (row, place of the result), the most similar."""

    dataset: str
    labels: tuple[str, str]
    wrong: int
    asked: int
    example: tuple[int, int]


def doubts(queries: Queries, album: Album, judge: Judge) -> list[dict[str, Any]]:
    """Return the galleries of what is doubtful, those that are not empty."""
    found = [
        {
            "title": "Classes taken for each other",
            "note": "How many queries of both classes have the other among the first results that count.",
            "cases": [_confused_case(queries, one, album) for one in confused(queries, judge)],
        },
        {
            "title": "Suspected label errors",
            "note": f"At least {AGREEING} of the first {SHOWN} results agree on another label, none has the "
            "query's. Suspected, not proven: a picture may just be hard.",
            "cases": [_label_case(queries, row, album, judge) for row in mislabelled(queries, judge)[:CASES]],
        },
        {
            "title": "Suspected duplicates",
            "note": "The most similar of all pairs of query and result whose pixels are nearly the same "
            f"(mean difference up to {SAME_PIXELS:.0%}), those of two labels first."
            if album.read
            else f"Pairs of cosine {ALIKE} and more, those of two labels first; without their pictures.",
            "cases": [_twice_case(queries, pair, album, judge) for pair in _twice(queries, album)[:CASES]],
        },
    ]
    return [gallery | {"paired": i != 1} for i, gallery in enumerate(found) if gallery["cases"]]


class Coded(NamedTuple):
    """Queries (R) of data sets where labels decide, that have something to find: `rows`; `own` (R,) and
    `others` (R,K) label codes, -1 where there is no result; `scores` (R,K); `names` of the codes."""

    rows: np.ndarray
    own: np.ndarray
    others: np.ndarray
    scores: np.ndarray
    names: list[str]


def coded(queries: Queries, judge: Judge) -> Coded:
    """Return the labels of queries and of their first results as numbers."""
    rows = np.flatnonzero(np.isin(queries["dataset"], list(judge.labels)) & (queries["relevant"] > 0))
    names: dict[str, int] = {}
    own = np.array([names.setdefault(label, len(names)) for label in queries["label"][rows]], dtype=np.int64)
    others = np.full((len(rows), SHOWN), -1, dtype=np.int64)
    scores = np.full((len(rows), SHOWN), -np.inf)
    for place, row in enumerate(rows.tolist()):
        labels = [names.setdefault(label, len(names)) for label in queries["top_labels"][row][:SHOWN]]
        others[place, : len(labels)] = labels
        scores[place, : len(labels)] = queries["top_scores"][row][:SHOWN]
    return Coded(rows, own, others, scores, list(names))


def confused(queries: Queries, judge: Judge, most: int = PAIRS) -> list[Confused]:
    """Return `most` pairs of classes by how many of their queries find the other one.

    A result counts where a right one was possible: up to the query's number of relevant pictures.
    """
    found = coded(queries, judge)
    row, place = np.nonzero(_wrong(found, queries["relevant"][found.rows]))
    if not len(row):
        return []
    datasets, where = _codes(queries["dataset"][found.rows])
    total = len(found.names)
    ends = found.own[row], found.others[row, place]
    key = (where[row] * total + np.minimum(*ends)) * total + np.maximum(*ends)
    order = np.lexsort((-found.scores[row, place], key))
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    wrong = np.diff(starts, append=len(order))
    asked = np.bincount(where * total + found.own, minlength=len(datasets) * total)
    both = [asked[where[row] * total + end][order[starts]] for end in ends]
    pairs = []
    for one in np.lexsort((starts, both[0] + both[1], -wrong))[:most].tolist():
        example = order[starts[one]]
        low, high = divmod(int(key[example]) % total**2, total)
        first, second = sorted((found.names[low], found.names[high]))
        at = int(found.rows[row[example]]), int(place[example])
        count = int(wrong[one]), int(both[0][one] + both[1][one])
        pairs.append(Confused(datasets[where[row[example]]], (first, second), *count, at))
    return pairs


def _wrong(found: Coded, relevant: np.ndarray) -> np.ndarray:
    """Return which results (R,K) are of another class, the first of each, where a right one could be."""
    others = found.others
    wrong = (others >= 0) & (others != found.own[:, None]) & (np.arange(SHOWN) < relevant[:, None])
    for later in range(1, SHOWN):
        wrong[:, later] &= ~(others[:, :later] == others[:, later : later + 1]).any(axis=1)
    return wrong


def _codes(words: np.ndarray) -> tuple[list[str], np.ndarray]:
    names: dict[str, int] = {}
    found = [names.setdefault(word, len(names)) for word in words.tolist()]
    return list(names), np.array(found, dtype=np.int64)


def mislabelled(queries: Queries, judge: Judge) -> list[int]:
    """Return queries whose neighbours agree on one other label, the most similar neighbours first."""
    found = coded(queries, judge)
    others = found.others
    agreeing = (others[:, :, None] == others[:, None, :]) & (others >= 0)[:, None, :]
    best = agreeing.sum(axis=2).argmax(axis=1)
    agree = agreeing[np.arange(len(best)), best]
    enough = (agree.sum(axis=1) >= AGREEING) & ~(others == found.own[:, None]).any(axis=1)
    similar = np.where(agree, found.scores, 0.0).sum(axis=1) / np.maximum(1, agree.sum(axis=1))
    chosen = np.flatnonzero(enough)
    return [int(row) for row in found.rows[chosen[np.argsort(-similar[chosen], kind="stable")]]]


def alike(queries: Queries) -> list[tuple[int, int]]:
    """Return (row, place of the result) of the most similar pairs, each once, the most similar first.

    None where scores are no cosines, as those of a re-ranking.
    """
    if max((scores[0] for scores in queries["top_scores"] if scores), default=0.0) > 1.001:
        return []
    found: dict[tuple[str, str, str], tuple[float, int, int]] = {}
    for row, scores in enumerate(queries["top_scores"]):
        for place in (place for place, score in enumerate(scores) if score >= ALIKE):
            dataset, file, other = _files(queries, row, place)
            if other != file:
                key = dataset, min(file, other), max(file, other)
                found.setdefault(key, (-scores[place], row, place))
    return [(row, place) for _, row, place in sorted(found.values())]


def _twice(queries: Queries, album: Album) -> list[tuple[int, int, str]]:
    """Return (row, place, what is the same) of suspected duplicates, those of two labels first."""
    apart: list[tuple[int, int]] = []
    together: list[tuple[int, int]] = []
    for pair in alike(queries):
        (together if _one_label(queries, *pair) else apart).append(pair)
    if not album.read:
        return [(row, place, "") for row, place in [*apart, *together]]
    chosen = [*apart[: LOOKED_AT // 2], *together[: LOOKED_AT // 2]]
    seen = [(album.difference(*_files(queries, *pair)), pair) for pair in chosen]
    same = [(value, pair) for value, pair in seen if value is not None and value <= SAME_PIXELS]
    same.sort(key=lambda one: (_one_label(queries, *one[1]), one[0]))
    return [(*pair, f"pixels differ {value:.1%}" if value else "same bytes") for value, pair in same]


def _files(queries: Queries, row: int, place: int) -> tuple[str, str, str]:
    return queries["dataset"][row], queries["file"][row], queries["top_files"][row][place]


def _one_label(queries: Queries, row: int, place: int) -> bool:
    return bool(queries.results(row)[place][1] == queries["label"][row])


def _confused_case(queries: Queries, one: Confused, album: Album) -> dict[str, Any]:
    row, place = one.example
    case = _pair_case(queries, row, place, f"{one.wrong:,} of {one.asked:,} queries", album)
    return case | {"label": " ↔ ".join(one.labels)}


def _twice_case(queries: Queries, pair: tuple[int, int, str], album: Album, judge: Judge) -> dict[str, Any]:
    row, place, what = pair
    same = "one label" if _one_label(queries, row, place) else "two labels"
    words = [same if queries["dataset"][row] in judge.labels else "", what]
    return _pair_case(queries, row, place, " · ".join(filter(None, words)), album)


def _pair_case(queries: Queries, row: int, place: int, words: str, album: Album) -> dict[str, Any]:
    file, label, score = queries.results(row)[place]
    dataset, own = queries["dataset"][row], queries["label"][row]
    pictures = [
        picture(album, dataset, queries["file"][row], own, "", short(own)),
        picture(album, dataset, file, label, "", f"{score:.2f} {short(label)}"),
    ]
    return framed(queries, row, words, pictures)


def _label_case(queries: Queries, row: int, album: Album, judge: Judge) -> dict[str, Any]:
    results = queries.results(row)
    label, count = Counter(label for _, label, _ in results).most_common(1)[0]
    own = picture(
        album, queries["dataset"][row], queries["file"][row], queries["label"][row], "query", "query"
    )
    pictures = [own, *strip(queries, row, album, judge.kinds(queries, row))]
    return framed(queries, row, f"{count} of {len(results)}: {short(label)}", pictures)
