"""Embeddings whose inner products are given numbers, so that a protocol sees a score matrix of our choice."""

from __future__ import annotations

import numpy as np

from guie.types import Embeddings, Pairs


def scored(scores, *, query_labels=None, item_labels=None, truth=None, further=None) -> Embeddings:
    """Return Q queries `q0..` and N items `r0..` of which query q scores item i by `scores[i, q]`, (N,Q)."""
    num_items, num_queries = scores.shape
    files = [f"q{q}" for q in range(num_queries)] + [f"r{i}" for i in range(num_items)]
    query_labels = ["?"] * num_queries if query_labels is None else query_labels
    item_labels = ["x"] * num_items if item_labels is None else item_labels
    return Embeddings(
        np.concatenate([np.eye(num_queries), scores]).astype(np.float32),
        files=np.array(files, dtype=object),
        labels=np.array([*query_labels, *item_labels], dtype=object),
        domains=np.full(len(files), "d", dtype=object),
        splits=np.array(["query"] * num_queries + ["index"] * num_items, dtype=object),
        space_id="s",
        truth=truth,
        further=further or {},
    )


def labelled(vectors, labels, splits="test", domains="d", **further) -> Embeddings:
    """Return rows `0.jpg ..` of unit vectors, all of one split or domain where a single one is given."""
    count = len(vectors)
    columns = {
        "labels": labels,
        "splits": [splits] * count if isinstance(splits, str) else splits,
        "domains": [domains] * count if isinstance(domains, str) else domains,
    }
    made = {name: np.array([str(x) for x in column], dtype=object) for name, column in columns.items()}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    files = np.array([f"{i}.jpg" for i in range(count)], dtype=object)
    further = {name: np.array(column, dtype=object) for name, column in further.items()}
    return Embeddings(unit.astype(np.float32), files=files, space_id="s", further=further, **made)


def pairs(*rows, usage="public") -> Pairs:
    """Return pairs from (query, item, relation) or (query, item, relation, usage)."""
    full = [row if len(row) == 4 else (*row, usage) for row in rows]
    return Pairs(*(np.array(column, dtype=object) for column in zip(*full, strict=True)))
