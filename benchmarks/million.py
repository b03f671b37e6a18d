"""A gallery of 1,000,000 x 64 asked by 5,000 queries: extra peak memory of the whole evaluation, below 2 GiB.

    uv run python benchmarks/million.py

`evaluate` as guie-eval calls it on saved embeddings, the search in the memory that it has there by default
(64 MiB): numbers with intervals, per domain, per-query columns. Before, the first 100 neighbours of some
queries are compared with a full sort of all scores. Half a CPU minute; prints seconds of one thread.
"""

import numpy as np
from evaluation_sides import inputs
from timing import cpu_seconds, peak_extra_mib, report

QUERIES, GALLERY, DIM, CLASSES = 5_000, 1_000_000, 64, 100_000
LIMIT_MIB, CHECKED = 2048, 20

SETUP = (
    inputs(f"r.integers({CLASSES}, size={QUERIES + GALLERY})", DIM, noise=1.0)
    + f"""
import faiss, pyarrow
from guie.evaluate import evaluate
from guie.search.exact import Exact
from guie.types import Embeddings
files = np.array([f"{{row:07}}.jpg" for row in range(len(labels))])
splits = np.where(np.arange(len(labels)) < {QUERIES}, "query", "index")
embeddings = Embeddings(vectors, files, labels.astype(str), np.full(len(labels), ""), splits, "drawn")
"""
)
WORK = "evaluation = evaluate(embeddings, search=Exact(memory_mib=64))\n"


def check_neighbours(vectors: np.ndarray) -> None:
    from guie.search.exact import knn

    queries, gallery = vectors[:QUERIES], vectors[QUERIES:]
    rows = np.linspace(0, QUERIES - 1, CHECKED).astype(int)
    sums = np.array([np.einsum("nd,d->n", gallery, query) for query in queries[rows]])
    found = knn(queries[rows], gallery, 100)
    np.testing.assert_array_equal(found.ids, np.argsort(-sums, axis=1, kind="stable")[:, :100])


def main() -> None:
    namespace: dict = {}
    exec(SETUP, namespace)
    check_neighbours(namespace["vectors"])
    seconds = cpu_seconds(lambda: exec(WORK, namespace))
    numbers = namespace["evaluation"].metrics["merged"]
    print(f"mP@5 {numbers['mP@5']:.4f}, R@1 {numbers['R@1']:.4f}, {seconds:.0f} CPU seconds")
    extra = peak_extra_mib(SETUP, WORK)
    print(f"extra peak memory {extra:.0f} MiB")
    what = f"evaluation {QUERIES} x {GALLERY}, d={DIM}: extra peak memory in parts of {LIMIT_MIB} MiB"
    report("million", what, extra / LIMIT_MIB, ask=1, at_most=True)


if __name__ == "__main__":
    main()
