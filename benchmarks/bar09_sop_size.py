"""Bar 9: self-retrieval as large as Stanford Online Products (60,502 images), d=64, against PML.

    uv run --group bench python benchmarks/bar09_sop_size.py [repeats]

11,316 classes. Both sides start from vectors and labels and end at mean precision@1, R-precision and MAP@R
over the 100 nearest others, which must agree to 1e-6. PML's memory grows with classes x images: it needs
several GiB. About 40 CPU seconds a repeat. open-metric-learning needs its own project and is not here.
"""

import sys

from timing import compare, peak_extra_mib, report

IMAGES, CLASSES, DIM, TOP = 60_502, 11_316, 64, 100

INPUTS = f"""
import numpy as np
from guie.evaluate import Protocol, score
r = np.random.default_rng(0)
labels = np.arange({IMAGES}) % {CLASSES}
vectors = r.standard_normal(({CLASSES}, {DIM}), dtype=np.float32)[labels]
vectors += 1.5 * r.standard_normal(vectors.shape, dtype=np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
rows = np.arange({IMAGES})
"""

OURS_SETUP = INPUTS + "import faiss\n"
OURS = f"scores = score(vectors, labels, rows, rows, Protocol(map_k={TOP}))\n"

PEER_SETUP = (
    INPUTS
    + f"""
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
torch.set_num_threads(1)
wanted = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
calculator = AccuracyCalculator(include=wanted, k={TOP}, device=torch.device("cpu"))
both = torch.from_numpy(vectors), torch.from_numpy(labels)
"""
)
PEER = "accuracies = calculator.get_accuracy(*both)\n"

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
    speed = compare(lambda: exec(ours, namespace), lambda: exec(peer, namespace), repeats)
    report(9, f"self-retrieval of {IMAGES}, d={DIM}, against PML: time", speed, ask=2.5)
    memory = [peak_extra_mib(OURS_SETUP, OURS), peak_extra_mib(PEER_SETUP, PEER)]
    print(f"extra peak memory: ours {memory[0]:.1f} MiB, PML {memory[1]:.1f} MiB")
    report(9, "same: extra peak memory", memory[0] / memory[1], ask=1 / 25, at_most=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
