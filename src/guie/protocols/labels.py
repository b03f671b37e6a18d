"""Labels of rows as numbers, of which a picture may have several: a hit shares any of them (UnED)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from guie.metrics.hits import Hits, count_relevant, find_hits, hits_from_mask
from guie.protocols.part import codes
from guie.types import Embeddings, Truth

NOTHING = -1


@dataclass(frozen=True)
class Labels:
    """`first` (N,) int64 of each row; `all` (N,L) int64 with -1 behind those that it has, None: one each."""

    first: np.ndarray
    all: np.ndarray | None = None

    def relevant(self, queries: np.ndarray, gallery: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Return (Q,) int64: gallery rows that share a label, the query itself (position `own`) left out."""
        if self.all is None:
            return count_relevant(Truth(self.first[queries], self.first[gallery], own))
        theirs = self.all[gallery]
        counts = np.bincount(theirs[theirs != NOTHING], minlength=1 + int(self.all.max()))
        found = counts[self.first[queries]]
        for place in np.flatnonzero((self.all[queries, 1:] != NOTHING).any(axis=1)).tolist():
            mine = self.all[queries[place]]
            found[place] = np.isin(theirs, mine[mine != NOTHING]).any(axis=1).sum()
        return found - (own >= 0)

    def hits(
        self, ids: np.ndarray, queries: np.ndarray, gallery: np.ndarray, own: np.ndarray, relevant: np.ndarray
    ) -> Hits:
        """Return the hits of (Q,K) gallery positions of query rows `queries`."""
        if self.all is None:
            return find_hits(ids, Truth(self.first[queries], self.first[gallery], own), distinct=True)
        mask = np.zeros(ids.shape, dtype=bool)
        for mine in self.all[queries].T:
            for theirs in self.all[gallery].T:
                mask |= (theirs[ids] == mine[:, None]) & (mine[:, None] != NOTHING)
        return hits_from_mask(mask & (ids >= 0), relevant)


def labels_of(embeddings: Embeddings, *, with_domain: bool = False) -> Labels:
    """Return the labels, with those of a column `class_ids` (numbers with blanks between) that have more.

    A further number stands for the label with the same beginning: `gldv2/7` and 7 12 mean gldv2/7, gldv2/12,
    and `7` and 7 12 mean 7, 12.
    `with_domain`: a label of another domain is another one.
    """
    first, names = codes(embeddings.labels)
    domains, domain_names = codes(embeddings.domains)
    scale, shift = (len(domain_names), domains) if with_domain else (1, np.zeros_like(domains))
    several = embeddings.further.get("class_ids")
    if several is None or not any(" " in text for text in several):
        return Labels(first * scale + shift)
    known = {name: code for code, name in enumerate(names)}
    rows = [
        [code, *(known.setdefault(_beside(name, number), len(known)) for number in others)]
        for code, name, others in zip(
            first.tolist(), embeddings.labels, (text.split()[1:] for text in several), strict=True
        )
    ]
    every = np.full((len(rows), max(map(len, rows))), NOTHING, dtype=np.int64)
    for row, found in enumerate(rows):
        every[row, : len(found)] = list(dict.fromkeys(found)) + [NOTHING] * (len(found) - len(set(found)))
    every = np.where(every == NOTHING, NOTHING, every * scale + shift[:, None])
    return Labels(every[:, 0], every)


def _beside(name: str, number: str) -> str:
    """Return the label that begins as `name` and ends with `number`."""
    beginning, slash, _ = name.rpartition("/")
    return f"{beginning}{slash}{number}"
