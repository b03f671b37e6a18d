"""Bar 8: evaluation of 10,000 queries against 100,000 images, d=64, top 100, against PML.

    uv run --group bench python benchmarks/bar08_evaluation.py [repeats]

The labels are those of a product set: 10,000 classes of about 10 images (PML's cost grows with their number,
ours does not). Both sides start from vectors and labels and end at mean precision@1, R-precision and MAP@R,
which must agree to 1e-6; ours also computes mP@5, R@k, mAP@100 and MRR. Memory: peak growth of a fresh
process (PML needs 6 GiB). About 15 CPU seconds a repeat.
"""

import sys

from timing import compare, peak_extra_mib, report

QUERIES, GALLERY, DIM, CLASSES, TOP = 10_000, 100_000, 64, 10_000, 100

INPUTS = f"""
import numpy as np
from guie.protocols.part import Part
from guie.protocols.scoring import Depths, score
from guie.search.exact import Exact
from guie.types import Embeddings
r = np.random.default_rng(0)
labels = r.integers({CLASSES}, size={QUERIES} + {GALLERY})
centres = r.standard_normal(({CLASSES}, {DIM}), dtype=np.float32)
vectors = r.standard_normal((len(labels), {DIM}), dtype=np.float32)
vectors *= 1.5
for start in range(0, len(vectors), 1000):
    vectors[start : start + 1000] += centres[labels[start : start + 1000]]
    vectors[start : start + 1000] /= np.linalg.norm(vectors[start : start + 1000], axis=1, keepdims=True)
"""

OURS_SETUP = (
    INPUTS
    + f"""
import faiss
queries, gallery = np.arange({QUERIES}), np.arange({QUERIES}, len(labels))
names = np.arange(len(labels)).astype(object)
part = Part("made up", Embeddings(vectors, names, names, names, names, "s"), Exact(memory_mib=8))
"""
)
OURS = f"scores = score(part, labels, queries, gallery, Depths(map_k={TOP}))\n"

PEER_SETUP = (
    INPUTS
    + f"""
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
torch.set_num_threads(1)
wanted = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
calculator = AccuracyCalculator(include=wanted, k={TOP}, device=torch.device("cpu"))
query_part = torch.from_numpy(vectors[:{QUERIES}]), torch.from_numpy(labels[:{QUERIES}])
gallery_part = torch.from_numpy(vectors[{QUERIES}:]), torch.from_numpy(labels[{QUERIES}:])
"""
)
PEER = "accuracies = calculator.get_accuracy(*query_part, *gallery_part)\n"

SAME = {"R@1": "precision_at_1", "R-Prec": "r_precision", "MAP@R": "mean_average_precision_at_r"}


def main(repeats: int) -> None:
    namespace: dict = {}
    exec(OURS_SETUP + PEER_SETUP, namespace)
    ours, peer = compile(OURS, "ours", "exec"), compile(PEER, "peer", "exec")
    exec(ours, namespace)
    exec(peer, namespace)
    for name, theirs in SAME.items():
        difference = abs(namespace["scores"].values[name].mean() - namespace["accuracies"][theirs])
        assert difference < 1e-6, f"{name}: {difference}"
        print(f"{name} {namespace['accuracies'][theirs]:.6f}, difference {difference:.1e}")
    speed = compare(lambda: exec(ours, namespace), lambda: exec(peer, namespace), repeats)
    report(8, f"evaluation {QUERIES} x {GALLERY}, d={DIM}, top {TOP}, against PML: time", speed, ask=4)
    memory = [peak_extra_mib(OURS_SETUP, OURS), peak_extra_mib(PEER_SETUP, PEER)]
    print(f"extra peak memory: ours {memory[0]:.1f} MiB, PML {memory[1]:.1f} MiB")
    report(8, "same: extra peak memory", memory[0] / memory[1], ask=1 / 30, at_most=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
