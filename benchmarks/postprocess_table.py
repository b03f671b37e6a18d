"""What each post-processing step gives and costs on the shared data: grocery photographs and copies.

    uv run python benchmarks/postprocess_table.py colour_histogram      # or raw_pixels: no model needed
    uv run python benchmarks/postprocess_table.py runs/x [FOLDER]       # a run; FOLDER keeps its embeddings
    uv run python benchmarks/postprocess_table.py FOLDER                # embeddings saved before

Embeddings are those of `shared_multidomain` (GUIE_SHARED names its folder), training rows included: they are
what steps are fitted on. Grocery: its query pictures among its index pictures, mP@5 and R@1. Copies: 140
copies among the index pictures of all domains, R@1, and uAP and RP90 of the ten best pairs of each. Steps
stand alone or, with +, in a row; the first row is the search alone. ms: CPU milliseconds, of one thread, for
all that is done to the gallery and to one query, the share of fitting not counted.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from guie import embeddings
from guie.datasets.shared import shared_multidomain
from guie.floors import FLOORS, floor_embeddings
from guie.metrics import copies, hits
from guie.postprocess.diffusion import Diffusion
from guie.postprocess.expansion import DBA, AlphaQE
from guie.postprocess.maps import PCA, Discriminant, Prefix
from guie.postprocess.negatives import NegativeSubtraction, ScoreNormalisation
from guie.postprocess.pipeline import Pipeline
from guie.postprocess.reciprocal import KReciprocal
from guie.postprocess.step import Step
from guie.postprocess.superglobal import SuperGlobal
from guie.postprocess.traversal import EGT
from guie.search.exact import Exact
from guie.types import Embeddings, Ranking, Side, Truth

PAIRS = 10


def steps() -> dict[str, dict[str, Step]]:
    """Return what is compared, each a fresh set of steps."""
    rows: list[dict[str, Step]] = [
        {},
        {"negative_subtraction": NegativeSubtraction()},
        {"score_normalisation": ScoreNormalisation()},
        {"negative_subtraction": NegativeSubtraction(), "score_normalisation": ScoreNormalisation()},
        {"alpha_qe": AlphaQE()},
        {"dba": DBA()},
        {"dba": DBA(), "alpha_qe": AlphaQE()},
        {"pca 32": PCA(32)},
        {"pca_whitening 32": PCA(32, whiten=True)},
        {"discriminant 32": Discriminant(32)},
        {"discriminant 64": Discriminant(64)},
        {"prefix 32": Prefix(32)},
        {"k_reciprocal": KReciprocal()},
        {"diffusion": Diffusion()},
        {"egt": EGT()},
        {"egt, always exploring": EGT(neighbours=50, threshold=1.0)},
        {"superglobal": SuperGlobal()},
        {"discriminant 64": Discriminant(64), "dba": DBA(), "alpha_qe": AlphaQE()},
        {"discriminant 64": Discriminant(64), "k_reciprocal": KReciprocal()},
    ]
    return {" + ".join(row) or "-": row for row in rows}


def main(source: str, folder: str | None) -> None:
    found = described(source, folder)
    splits, files = found.splits.astype(str), found.files.astype(str)
    grocery = np.char.startswith(files, "grocery/")
    copied = np.char.startswith(files, "copies_sacre_coeur/")
    bank = side(found, splits == "train")
    print(f"bank {len(bank.vectors)} x {bank.vectors.shape[1]}, space {found.space_id}\n")
    print("| steps | grocery mP@5 | R@1 | copies R@1 | uAP | RP90 | fit s | gallery ms | query ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, row in steps().items():
        pipeline = Pipeline(row, Exact())
        start = time.thread_time()
        pipeline.fit(bank)
        fit_s = time.thread_time() - start
        of_grocery, _, _ = ranked(
            pipeline, found, grocery & (splits == "query"), grocery & (splits == "index"), 5
        )
        of_copies, gallery_ms, query_ms = ranked(
            pipeline, found, copied & (splits == "query"), splits == "index", PAIRS
        )
        values = [
            *retrieval(found, of_grocery, grocery, splits),
            *copy_detection(found, of_copies, copied, splits),
        ]
        numbers = " | ".join(f"{value:.4f}" for value in values)
        print(f"| {name} | {numbers} | {fit_s:.2f} | {gallery_ms:.0f} | {query_ms:.2f} |", flush=True)


def ranked(
    pipeline: Pipeline, found: Embeddings, queries: np.ndarray, gallery: np.ndarray, k: int
) -> tuple[Ranking, float, float]:
    """Return the ranking of rows `queries` among rows `gallery`, ms for the gallery and ms a query."""
    asked = side(found, queries)
    start = time.thread_time()
    index = pipeline.index(side(found, gallery))
    built = time.thread_time()
    ranking = index.search(Side(asked.vectors), k)
    done = time.thread_time()
    return ranking, 1e3 * (built - start), 1e3 * (done - built) / len(asked.vectors)


def retrieval(found: Embeddings, ranking: Ranking, grocery: np.ndarray, splits: np.ndarray) -> list[float]:
    """Return mP@5 and R@1 of the grocery queries."""
    _, labels = np.unique(found.labels.astype(str), return_inverse=True)
    queries, gallery = labels[grocery & (splits == "query")], labels[grocery & (splits == "index")]
    outside = np.full(len(queries), -1)
    of_queries = hits.find_hits(ranking.ids, Truth(queries, gallery, outside))
    values = hits.guie_precision(of_queries), hits.recall_at(of_queries, 1)
    return [float(value.mean()) for value in values]


def copy_detection(
    found: Embeddings, ranking: Ranking, copied: np.ndarray, splits: np.ndarray
) -> list[float]:
    """Return R@1, uAP and RP90 of the copies; a copy has the label of its original."""
    queries, gallery = found.labels[copied & (splits == "query")], found.labels[splits == "index"]
    true_query, true_item = np.nonzero(queries[:, None] == gallery)
    query, rank = np.nonzero(ranking.ids >= 0)
    pairs = copies.ScoredPairs(query, ranking.ids[query, rank].astype(np.int64), ranking.scores[query, rank])
    values = copies.evaluate(pairs, true_query, true_item)
    return [values["R@1"], values["uAP"], values["RP90"]]


def side(found: Embeddings, rows: np.ndarray) -> Side:
    return Side(np.ascontiguousarray(found.vectors[rows]), found.files[rows], found.labels[rows])


def described(source: str, folder: str | None) -> Embeddings:
    """Return the embeddings of all rows of the shared protocol, by a floor, from a folder or of a run."""
    if (Path(source) / "vectors.npy").exists():
        return embeddings.load(source)
    root = Path(os.environ.get("GUIE_SHARED", "../shared")) / "data"
    with tempfile.TemporaryDirectory() as scratch:
        manifest = shared_multidomain(str(root), data_root=scratch)
        if source in FLOORS:
            return floor_embeddings(manifest, source, background=(128, 128, 128))
        from guie import assembly
        from guie.embed.vectors import embed

        embedder, _ = assembly.trained_embedder(Path(source))
        found = embed(embedder, manifest)
        if folder:
            embeddings.save(found, folder)
        return found


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else None)
