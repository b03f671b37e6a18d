"""What re-ranking by SIFT gives and costs on the shared data, by a descriptor without training.

    uv run python benchmarks/local_features.py [colour_histogram | raw_pixels] [QUERIES] [TOP]

The queries of `shared_multidomain` (GUIE_SHARED names its folder), at most QUERIES (100) of each domain,
among the index pictures of all domains; the TOP (50) first results are looked at. ms: CPU milliseconds of all
threads for one pair, describing pictures included, and for one pair whose inliers are kept on disk.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from guie.datasets.manifest import Manifest
from guie.datasets.shared import shared_multidomain
from guie.floors import floor_embeddings
from guie.local.rerank import LocalFeatures
from guie.metrics import hits
from guie.postprocess.pipeline import Pipeline
from guie.search.exact import Exact
from guie.types import Ranking, Side, Truth


def main(floor: str, most: int, top: int, scratch: str) -> None:
    rows, floor_of = described(floor, scratch)
    index = np.flatnonzero(rows.splits == "index")
    gallery = side(rows, floor_of, index)
    plain = Exact().index(gallery)
    local = Pipeline({"local": LocalFeatures(top=top, path=f"{scratch}/kept")}, Exact()).index(gallery)
    print("| domain | queries | mP@5 | R@1 | with SIFT: mP@5 | R@1 | ms a pair | kept: ms |")
    print("|---|---|---|---|---|---|---|---|")
    for domain in sorted(set(domains(rows).tolist())):
        asked = np.flatnonzero((rows.splits == "query") & (domains(rows) == domain))
        asked = asked[:: max(1, len(asked) // most)][:most]
        queries, truth = (
            side(rows, floor_of, asked),
            Truth(rows.labels[asked], rows.labels[index], -np.ones(len(asked))),
        )
        before = plain.search(queries, top)
        start = time.process_time()
        after = local.search(queries, top)
        first = time.process_time()
        local.search(queries, top)
        ms = [1e3 * cpu / (len(asked) * top) for cpu in (first - start, time.process_time() - first)]
        numbers = [*values(before, truth), *values(after, truth)]
        told = " | ".join(f"{value:.4f}" for value in numbers)
        print(f"| {domain} | {len(asked)} | {told} | {ms[0]:.2f} | {ms[1]:.3f} |", flush=True)


def values(ranking: Ranking, truth: Truth) -> list[float]:
    """Return mP@5 and R@1."""
    found = hits.find_hits(ranking.ids, truth)
    return [float(hits.guie_precision(found).mean()), float(hits.recall_at(found, 1).mean())]


def side(rows: Manifest, vectors: np.ndarray, chosen: np.ndarray) -> Side:
    return Side(vectors[chosen], rows.files[chosen], picture=rows.picture)


def domains(rows: Manifest) -> np.ndarray:
    return np.array(rows.domain_names)[rows.domains]


def described(floor: str, scratch: str) -> tuple[Manifest, np.ndarray]:
    """Return the rows of splits query and index, and their vectors."""
    root = Path(os.environ.get("GUIE_SHARED", "../shared")) / "data"
    rows = shared_multidomain(str(root), data_root=scratch)
    rows = rows.select(np.flatnonzero(rows.splits != "train"))
    found = floor_embeddings(rows, floor)
    assert len(found.vectors) == len(rows)
    return rows, found.vectors


if __name__ == "__main__":
    given = [*sys.argv[1:], *("colour_histogram", "100", "50")[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        main(given[0], int(given[1]), int(given[2]), folder)
