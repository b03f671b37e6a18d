"""GPR1200: the query itself stays in the gallery and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from guie.errors import UserError
from guie.metrics.hits import average_precision, find_hits
from guie.protocols.part import Outcome, Part, Protocol, asked, codes, cut, interval, recall_curve, top_of
from guie.protocols.scoring import first_hits
from guie.types import Index, Ranking, Side, Truth

_FIRST = 1024  # results of a query that are looked at before all of them are


@dataclass(frozen=True)
class SelfIn(Protocol):
    """mAP over the whole gallery, in which the query itself is and counts (Schall et al., MMM 2022).

    Numbers: mAP, and that of each of `domains` (GPR1200's six parts), all on the one index.
    """

    by_label: ClassVar[bool] = True
    metric: str = "mAP"
    crops: Sequence[str] = ()
    asks: Sequence[str] = ("test",)
    answers: Sequence[str] = ("test",)

    def evaluate(self, part: Part) -> Outcome:
        """Return mAP with the queries left in."""
        queries, gallery = part.roles(self.roles[0])
        labels, _ = codes(part.embeddings.labels)
        known = np.isin(labels[queries], labels[gallery])
        if not known.any():
            raise UserError(f"{part.name}: no query's label is in the gallery; accepted: labels of both")
        queries = queries[known]
        index, side = part.search.index(part.side(gallery, labels=True)), part.side(queries)
        asking, answering = labels[queries], labels[gallery]
        found = _scored(index, side, asking, answering, min(_FIRST, len(gallery)))
        deeper = np.flatnonzero(~found["complete"])
        if len(deeper):
            again = _scored(index, cut(side, deeper), asking[deeper], answering, len(gallery))
            for name, column in found.items():
                column[deeper] = again[name]
        outcome = _outcome(part, queries, gallery, found)
        outcome.numbers["dropped_lone_queries"] = int((~known).sum())
        return outcome


def _scored(
    index: Index, side: Side, asking: np.ndarray, answering: np.ndarray, depth: int
) -> dict[str, np.ndarray]:
    """Return columns (Q,) mAP, first_hit, relevant, ids, scores (Q,5); complete: all relevant are found."""
    tiles: list[dict[str, np.ndarray]] = []
    for tile, ranking in asked(index, side, depth, None):
        truth = Truth(asking[tile], answering, np.full(len(ranking.ids), -1))
        hits = find_hits(ranking.ids, truth, distinct=True)
        found = np.bincount(hits.query, minlength=len(hits))
        top = top_of(ranking)
        tiles.append(
            {
                "mAP": average_precision(hits),
                "first_hit": first_hits(hits),
                "relevant": hits.relevant,
                "ids": top.ids,
                "scores": top.scores,
                "complete": (found == hits.relevant) | (depth >= len(answering)),
            }
        )
    return {name: np.concatenate([tile[name] for tile in tiles]) for name in tiles[0]}


def _outcome(part: Part, queries: np.ndarray, gallery: np.ndarray, found: dict[str, np.ndarray]) -> Outcome:
    values, domains = found["mAP"], np.asarray(part.embeddings.domains, dtype=object)[queries]
    numbers = {
        "mAP": float(values.mean()),
        "mAP_interval": interval(values),
        "queries": len(queries),
        "gallery": len(gallery),
        "recall_curve": recall_curve(found["first_hit"], len(gallery), len(gallery)),
        "domains": {
            domain or "all": {"merged": _of_domain(values[domains == domain], len(gallery))}
            for domain in sorted(set(domains.tolist()))
        },
    }
    table = part.described(queries) | {name: found[name] for name in ("relevant", "first_hit", "mAP")}
    return Outcome(numbers, table | part.shown(Ranking(found["ids"], found["scores"]), gallery))


def _of_domain(values: np.ndarray, gallery: int) -> dict[str, object]:
    mean, count = float(values.mean()), len(values)
    return {"mAP": mean, "mAP_interval": interval(values), "queries": count, "gallery": gallery}
