"""Retrieval by label equality: a merged index, and one for each domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from guie.errors import UserError
from guie.protocols.labels import Labels, labels_of
from guie.protocols.part import (
    SHOWN,
    Columns,
    Numbers,
    Outcome,
    Part,
    Protocol,
    accepted,
    codes,
    interval,
    positive,
    recall_curve,
)
from guie.protocols.scoring import Depths, Scores, listed, score
from guie.types import Ranking


@dataclass(frozen=True)
class Retrieval(Protocol):
    """A hit has the query's label, or any of several (`class_ids`).

    `recall_ks` are those of R@k, `map_k` is that of mAP@k. With `match_domain` a hit needs the same domain,
    too; with `mean_of_domains` there are plain means over domains (UnED's mMP@5). `group_by` names a further
    column (`group`: Copydays' attack) whose values get numbers of their own. The first `lists` results of
    each query are written. `crops`: the splits whose pictures are cropped to their box.

    Numbers: mP@5 (with its bootstrap interval), R@k, mAP@k, MAP@R, R-Prec, MRR and counts; each of `domains`
    is on the domain's own index, with `merged` for the same queries on the merged index; `domain_mean` is the
    plain mean of the domains' merged values. Where every query has one relevant picture on its domain's own
    index and there are several domains (episodes, as Omniglot's runs), `one_shot_error` is the share of wrong
    nearest neighbours, averaged over the domains. Queries without a relevant picture are dropped and counted.
    """

    by_label: ClassVar[bool] = True
    recall_ks: Sequence[int] = (1, 5, 10)
    map_k: int = 100
    metric: str = "mP@5"
    match_domain: bool = False
    mean_of_domains: bool = False
    group_by: str | None = None
    lists: int = 0
    crops: Sequence[str] = ()
    asks: Sequence[str] = ("query", "test")
    answers: Sequence[str] = ("index", "test")

    def __post_init__(self) -> None:
        positive("recall_ks", self.recall_ks)
        positive("map_k", [self.map_k])
        accepted("lists", self.lists, self.lists >= 0, "0 (none) or more")

    def evaluate(self, part: Part) -> Outcome:
        """Return the numbers on the merged index and on each domain's own."""
        queries, gallery = part.roles(self.roles[0])
        domains, names = codes(part.embeddings.domains)
        labels = labels_of(part.embeddings, with_domain=self.match_domain)
        depths = Depths(tuple(self.recall_ks), self.map_k, self.lists)
        scores = score(part, labels, queries, gallery, depths)
        if not len(scores.rows):
            raise UserError(
                f"{part.name}: no query has a relevant index image; accepted: labels that occur in both"
            )
        own = {} if part.merged else _own(part, labels, domains, names, scores, (queries, gallery), depths)
        numbers = summary(scores)
        numbers["domains"] = _by_domain(scores, domains, names, own)
        numbers["domain_mean"] = domain_mean([entry["merged"] for entry in numbers["domains"].values()])
        numbers |= self._further(part, scores, numbers, own)
        lists = listed(part, scores.rows, scores.top, gallery, self.lists) if self.lists else None
        return Outcome(numbers, _table(part, scores, own), lists)

    def _further(self, part: Part, scores: Scores, numbers: Numbers, own: dict[str, Scores]) -> Numbers:
        """Return one-shot error, mean over domains and the groups' numbers, where they apply."""
        found: Numbers = {}
        if len(own) > 1 and all((mine.relevant == 1).all() for mine in own.values()):
            accuracy = np.mean([(mine.first_hit == 1).mean() for mine in own.values()])
            found["one_shot_error"] = 1.0 - float(accuracy)
        if self.mean_of_domains:
            separate = domain_mean([summary(mine) for mine in own.values()]) if own else {}
            for kind, means in (("", numbers["domain_mean"]), (" separate", separate)):
                named = {"mMP@5": means.get("mP@5"), "mR@1": means.get("R@1")}
                found |= {f"{name}{kind}": value for name, value in named.items() if value is not None}
        if self.group_by:
            found["groups"] = _by_group(part, scores, self.group_by)
        return found


def summary(scores: Scores, chosen: np.ndarray | None = None) -> Numbers:
    """Return the means over all queries, or over those `chosen` (Q,) bool, with counts."""
    chosen = np.ones(len(scores.rows), dtype=bool) if chosen is None else chosen
    numbers: Numbers = {name: float(values[chosen].mean()) for name, values in scores.values.items()}
    numbers["mP@5_interval"] = interval(scores.values["mP@5"][chosen])
    numbers["queries"], numbers["gallery"] = int(chosen.sum()), len(scores.gallery)
    if chosen.all():
        numbers["dropped_lone_queries"] = scores.dropped
    numbers["recall_curve"] = recall_curve(scores.first_hit[chosen], scores.depth, len(scores.gallery))
    return numbers


def domain_mean(domains: list[Numbers]) -> dict[str, float]:
    """Return the plain mean over domains of every number that all of them have."""
    names = [name for name, value in domains[0].items() if isinstance(value, float)]
    return {n: float(np.mean([d[n] for d in domains])) for n in names if all(n in d for d in domains)}


def _own(
    part: Part,
    labels: Labels,
    domains: np.ndarray,
    names: list[str],
    merged: Scores,
    roles: tuple[np.ndarray, np.ndarray],
    depths: Depths,
) -> dict[str, Scores]:
    """Return the scores on each domain's own index; a domain whose queries are lone there has none."""
    if len(names) == 1:
        return {names[0]: merged}
    own = {}
    for code, domain in enumerate(names):
        queries, gallery = (rows[domains[rows] == code] for rows in roles)
        if (domains[merged.rows] == code).any() and len(gallery):
            mine = score(part, labels, queries, gallery, depths)
            if len(mine.rows):
                own[domain] = mine
    return own


def _by_domain(scores: Scores, domains: np.ndarray, names: list[str], own: dict[str, Scores]) -> Numbers:
    entries = {}
    for code, domain in sorted(enumerate(names), key=lambda pair: pair[1]):
        chosen = domains[scores.rows] == code
        if chosen.any():
            entry = summary(own[domain]) if domain in own else {}
            entries[domain or "all"] = entry | {"merged": summary(scores, chosen)}
    return entries


def _by_group(part: Part, scores: Scores, column: str) -> Numbers:
    if column not in part.embeddings.further:
        found = ", ".join(part.embeddings.further) or "none"
        raise UserError(f"protocol.group_by: {column}; accepted of {part.name}: {found}")
    groups = np.asarray(part.embeddings.further[column], dtype=object)[scores.rows]
    return {str(group): summary(scores, groups == group) for group in sorted(set(groups.tolist()))}


def _table(part: Part, scores: Scores, own: dict[str, Scores]) -> Columns:
    """Return per-query columns: who, the merged metrics, the own-index metrics, the first 5 neighbours."""
    table = part.described(scores.rows)
    table |= {"relevant": scores.relevant, "first_hit": scores.first_hit}
    table |= scores.values
    table |= {f"own {metric}": values for metric, values in _own_values(scores, own).items()}
    top = Ranking(scores.top.ids[:, :SHOWN], scores.top.scores[:, :SHOWN])
    return table | part.shown(top, scores.gallery)


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
