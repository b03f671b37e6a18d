"""Open-metric-learning's side of bar 9: reads the source of the inputs, then evaluates once for each line.

Its documented way: `RetrievalResults.from_embeddings` over a data set, then `calc_retrieval_metrics_rr`.
Prints the CPU seconds and cmc@1 of each turn. Rows 0..N-1 are all queries and all gallery.
"""

import os
import sys
import time

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import torch
from oml.interfaces.datasets import IQueryGalleryLabeledDataset
from oml.metrics import calc_retrieval_metrics_rr
from oml.retrieval import RetrievalResults


class Everybody(IQueryGalleryLabeledDataset):
    """Rows that search each other."""

    def __init__(self, labels: torch.Tensor):
        self.labels, self.extra_data = labels, {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int) -> dict:
        return {}

    def get_query_ids(self) -> torch.Tensor:
        """Return all rows."""
        return torch.arange(len(self.labels))

    get_gallery_ids = get_query_ids

    def get_labels(self) -> torch.Tensor:
        """Return the labels of all rows."""
        return self.labels


def turn(vectors: torch.Tensor, rows: Everybody, top: int) -> tuple[float, float]:
    start = time.process_time()
    found = RetrievalResults.from_embeddings(vectors, rows, n_items=top)
    numbers = calc_retrieval_metrics_rr(
        found, cmc_top_k=(1, 5, 10), precision_top_k=(5,), map_top_k=(top,), verbose=False
    )
    return time.process_time() - start, float(numbers["cmc"][1])


def main(top: int) -> None:
    torch.set_num_threads(1)
    namespace: dict = {}
    exec(sys.stdin.readline().replace("\0", "\n"), namespace)
    print("ready", flush=True)
    vectors, rows = torch.from_numpy(namespace["vectors"]), Everybody(torch.from_numpy(namespace["labels"]))
    for _ in sys.stdin:
        print(*turn(vectors, rows, top), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
