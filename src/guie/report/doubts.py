"""What the results make doubtful: classes taken for each other, labels, pictures that are there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
            "cases": [_confused_case(queries, one, album) for one in confused(queries, judge)[:PAIRS]],
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


def _rows(queries: Queries, judge: Judge) -> Iterator[int]:
    """Yield the queries of data sets where labels decide, that have something to find."""
    right = np.isin(queries["dataset"], list(judge.labels)) & (queries["relevant"] > 0)
    yield from np.flatnonzero(right).tolist()


def confused(queries: Queries, judge: Judge) -> list[Confused]:
    """Return the pairs of classes by how many of their queries find the other one, most first.

    A result counts where a right one was possible: up to the query's number of relevant pictures.
    """
    asked: Counter[tuple[str, str]] = Counter()
    wrong: Counter[tuple[str, str, str]] = Counter()
    examples: dict[tuple[str, str, str], tuple[float, int, int]] = {}
    for row in _rows(queries, judge):
        dataset, label = queries["dataset"][row], queries["label"][row]
        asked[dataset, label] += 1
        counted = queries.results(row)[: min(SHOWN, queries["relevant"][row])]
        seen: set[str] = {label}
        for place, (_, other, score) in enumerate(counted):
            if other in seen:
                continue
            seen.add(other)
            key = (dataset, *sorted((label, other)))
            wrong[key] += 1
            examples[key] = max(examples.get(key, (-np.inf, 0, 0)), (score, -row, -place))
    found = []
    for key, count in wrong.items():
        dataset, first, second = key
        total = asked[dataset, first] + asked[dataset, second]
        example = -examples[key][1], -examples[key][2]
        found.append(Confused(dataset, (first, second), count, total, example))
    return sorted(found, key=lambda one: (-one.wrong, one.asked, one.labels))


def mislabelled(queries: Queries, judge: Judge) -> list[int]:
    """Return queries whose neighbours agree on one other label, the most similar neighbours first."""
    found = []
    for row in _rows(queries, judge):
        results = queries.results(row)
        label, count = Counter(label for _, label, _ in results).most_common(1)[0] if results else ("", 0)
        own = any(other == queries["label"][row] for _, other, _ in results)
        if count >= AGREEING and not own and label:
            similar = float(np.mean([score for _, other, score in results if other == label]))
            found.append((-similar, row))
    return [row for _, row in sorted(found)]


def alike(queries: Queries) -> list[tuple[int, int]]:
    """Return (row, place of the result) of the most similar pairs, each once, the most similar first.

    None where scores are no cosines, as those of a re-ranking.
    """
    if max((scores[0] for scores in queries["top_scores"] if scores), default=0.0) > 1.001:
        return []
    found: dict[tuple[str, str, str], tuple[float, int, int]] = {}
    for row in range(len(queries)):
        for place, (file, _, score) in enumerate(queries.results(row)):
            if score >= ALIKE and file != queries["file"][row]:
                key = (queries["dataset"][row], *sorted((file, queries["file"][row])))
                found.setdefault(key, (-score, row, place))
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
    return queries["dataset"][row], queries["file"][row], queries.results(row)[place][0]


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
