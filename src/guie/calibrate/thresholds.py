"""From how similar two pictures are to "is it the same thing?", at a stated rate of false matches.

The threshold of a false-match rate is the lowest similarity that no more than this share of impostor pairs
reaches; the true-match rate is the share of genuine pairs that do (ISO/IEC 19795-1). Intervals draw queries
with all of their pairs, for the pairs of one query are not independent (subsets bootstrap: Bolle, Ratha,
Pankanti, CVIU 2004). Thirty errors make a rate known within 30 % or so (rule of 30: Doddington et al., Speech
Communication 2000); with fewer a threshold is not `enough`, below one expected error there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guie.calibrate.open_set import open_set
from guie.calibrate.pairs import Group, Tally, group, tally
from guie.durable import replace_file
from guie.errors import UserError
from guie.metrics.bootstrap import percentile_interval
from guie.protocols.part import Part, Protocol, codes
from guie.search.exact import Exact
from guie.types import Embeddings

FILE = "thresholds.json"
RATES = (1e-2, 1e-3, 1e-4)
ENOUGH = 30
CURVE = 65  # points that are kept to draw, and to tell the rate of any similarity
_DRAWS = 500

Rows = list[dict[str, Any]]


def calibrate(
    found: Mapping[str, Embeddings],
    protocols: Mapping[str, Protocol],
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> tuple[Rows, Rows]:
    """Return the rows `thresholds` and `open_set` of metrics.json: of each data set and of its domains.

    A domain's are those of its queries among its own gallery.
    """
    thresholds, reports = [], []
    for name, part in found.items():
        for domain, pairs in _groups(Part(name, part, Exact()), protocols[name], seed):
            counted = tally(pairs, tuple(rates))
            where = {"dataset": name, "domain": domain, "queries": len(pairs.queries)}
            where["queries_in_all"] = pairs.num_asked
            thresholds.append(where | at_rates(counted, rates, seed))
            if report := open_set(counted.best_genuine, counted.best_impostor, seed=seed):
                reports.append(where | report)
    return thresholds, reports


def _groups(part: Part, protocol: Protocol, seed: int) -> Iterator[tuple[str, Group]]:
    """Yield (domain, pairs): of all ('') and, where there are several, of each domain."""
    queries, gallery = part.roles(protocol.roles[0])
    yield "", group(part, queries, gallery, seed)
    domains, names = codes(part.embeddings.domains)
    present = sorted(set(domains[queries].tolist()), key=lambda code: names[code])
    for code in present if len(present) > 1 else ():
        asks, answers = (rows[domains[rows] == code] for rows in (queries, gallery))
        if len(answers) > 1:
            yield names[code], group(part, asks, answers, seed)


def at_rates(counted: Tally, rates: Sequence[float] = RATES, seed: int = 0) -> dict[str, Any]:
    """Return numbers of pairs, the `curve`, and `at` each rate the threshold and the true-match rate."""
    genuine, impostor = counted.genuine.sum(axis=0), counted.impostor.sum(axis=0)
    numbers: dict[str, Any] = {"genuine": int(genuine[0]), "impostor": int(impostor[0])}
    false, true = (sums / max(1, sums[0]) for sums in (impostor, genuine))
    shown = np.unique(np.linspace(0, len(false) - 1, CURVE).round().astype(int))
    numbers["curve"] = {
        "similarity": counted.levels[shown].tolist(),
        "false_match_rate": false[shown].tolist(),
        "true_match_rate": true[shown].tolist(),
    }
    drawn = _drawn(counted, seed)
    numbers["at"] = [
        {"false_match_rate": rate} | _at(rate, counted.levels, false, true, drawn) | _enough(rate, numbers)
        for rate in rates
        if rate * numbers["impostor"] >= 1
    ]
    return numbers


def _enough(rate: float, numbers: Mapping[str, Any]) -> dict[str, bool]:
    return {"enough": rate * numbers["impostor"] >= ENOUGH}


def _at(
    rate: float, levels: np.ndarray, false: np.ndarray, true: np.ndarray, drawn: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """Return threshold and true-match rate, with the intervals of the draws, (draws,G) false and true."""
    places = np.argmax(drawn[0] <= rate, axis=1)
    reached = drawn[1][np.arange(len(places)), places]
    place = int(np.argmax(false <= rate))
    return {
        "threshold": float(levels[place]),
        "threshold_interval": list(percentile_interval(levels[places])),
        "true_match_rate": float(true[place]),
        "true_match_rate_interval": list(percentile_interval(reached)),
    }


def _drawn(counted: Tally, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the false- and the true-match rate at each level, (draws,G), where queries are drawn."""
    num_queries = len(counted.genuine)
    times = np.random.default_rng(seed).multinomial(num_queries, [1 / num_queries] * num_queries, _DRAWS)
    sums = [times @ counts.astype(np.float64) for counts in (counted.impostor, counted.genuine)]
    false, true = (each / np.maximum(each[:, :1], 1) for each in sums)
    return false, true


class Decision(NamedTuple):
    """`same`: `similarity` reaches the `threshold`; `false_match_rate` and `true_match_rate`: of impostor and
    of genuine pairs the share that is at least so similar; `decided_by`: the row whose threshold it is."""

    same: bool
    similarity: float
    threshold: float
    false_match_rate: float
    true_match_rate: float
    decided_by: str


@dataclass(frozen=True)
class Thresholds:
    """Calibrated thresholds of the embedding space `space_id`; `rows` as in metrics.json."""

    space_id: str
    rows: Rows

    @property
    def names(self) -> dict[str, dict[str, Any]]:
        """Return the rows by name: `<dataset>`, `<dataset>/<domain>`, and `<domain>` where only one is."""
        domains = [row["domain"] for row in self.rows]
        named = {row["dataset"] + (f"/{row['domain']}" if row["domain"] else ""): row for row in self.rows}
        alone = {row["domain"]: row for row in self.rows if domains.count(row["domain"]) == 1}
        return {name: row for name, row in alone.items() if name} | named

    def same_thing(
        self, similarity: float, domain: str | None = None, *, false_match_rate: float = 1e-3
    ) -> Decision:
        """Return whether two pictures of this cosine show the same thing, by a domain's (or data set's) row.

        Without `domain` it is the row of the only data set. Raises UserError for a domain or a rate that was
        not calibrated.
        """
        named = self.names
        whole = [name for name, row in named.items() if not row["domain"]]
        name = whole[0] if domain is None and len(whole) == 1 else domain
        if name is None or name not in named:
            raise UserError(f"domain: {domain!r}; accepted: {', '.join(named)}")
        at = {point["false_match_rate"]: point for point in named[name]["at"]}
        if false_match_rate not in at:
            told = ", ".join(map(str, at)) or "none, for want of pairs"
            raise UserError(f"false_match_rate: {false_match_rate} in {name}; accepted: {told}")
        threshold, curve = at[false_match_rate]["threshold"], named[name]["curve"]
        false, true = (
            float(np.interp(similarity, curve["similarity"], curve[rate]))
            for rate in ("false_match_rate", "true_match_rate")
        )
        return Decision(bool(similarity >= threshold), float(similarity), threshold, false, true, name)

    def save(self, folder: Path) -> Path:
        """Write `folder`/thresholds.json; rows of other data sets there stay where they are of this space."""
        path, mine = folder / FILE, {row["dataset"] for row in self.rows}
        old = load(path) if path.exists() else self
        kept = old.rows if old.space_id == self.space_id else []
        rows = [row for row in kept if row["dataset"] not in mine] + self.rows
        text = json.dumps({"space_id": self.space_id, "thresholds": rows}, indent=1)
        replace_file(path, f"{text}\n".encode())
        return path


def load(path: str | Path) -> Thresholds:
    """Return the thresholds of a file, or of a folder that has thresholds.json; UserError for another."""
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        told = json.loads(path.read_text())
        return Thresholds(told["space_id"], told["thresholds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        accepted = "what guie-eval thresholds=true wrote"
        raise UserError(f"thresholds: {path} cannot be read ({error}); accepted: {accepted}") from error
