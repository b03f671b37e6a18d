"""Both sides of the evaluation bars as source text, for a process of their own as well as for this one.

`inputs` makes `vectors` (rows,D), unit length, and `labels`: classes of about the same size around drawn
centres. `OURS` and `PML` make `scores` and `accuracies` of what their set-ups have put there.
"""

from __future__ import annotations

from typing import NamedTuple

from timing import compare, peak_extra_mib, report

# Where a query has one number by both definitions.
SAME = {"R@1": "precision_at_1", "R-Prec": "r_precision", "MAP@R": "mean_average_precision_at_r"}


class Sides(NamedTuple):
    """Source of both sides: what makes their inputs, and what is timed."""

    ours_setup: str
    ours: str
    pml_setup: str
    pml: str


def inputs(labels: str, dim: int, noise: float) -> str:
    """Return source that draws vectors for `labels`, an expression over numpy as `np` and a generator `r`."""
    return f"""
import numpy as np
r = np.random.default_rng(0)
labels = {labels}
centres = r.standard_normal((int(labels.max()) + 1, {dim}), dtype=np.float32)
vectors = r.standard_normal((len(labels), {dim}), dtype=np.float32)
vectors *= {noise}
for start in range(0, len(vectors), 1000):
    vectors[start : start + 1000] += centres[labels[start : start + 1000]]
    vectors[start : start + 1000] /= np.linalg.norm(vectors[start : start + 1000], axis=1, keepdims=True)
"""


def ours_setup(queries: str, gallery: str, memory_mib: float = 8) -> str:
    """Return source that makes our data set of the inputs; `queries` and `gallery` are rows."""
    return f"""
import faiss
from guie.protocols.labels import Labels
from guie.protocols.part import Part
from guie.protocols.scoring import Depths, score
from guie.search.exact import Exact
from guie.types import Embeddings
names, none = np.array([f"{{row}}.jpg" for row in range(len(labels))], dtype=object), np.full(len(labels), "")
part = Part("drawn", Embeddings(vectors, names, labels, none, none, "drawn"), Exact(memory_mib={memory_mib}))
queries, gallery = {queries}, {gallery}
"""


def ours(top: int) -> str:
    """Return source that evaluates our side: mP@5, R@k, mAP@top, R-precision, MAP@R, MRR of each query."""
    return f"scores = score(part, Labels(labels), queries, gallery, Depths(map_k={top}))\n"


def pml_setup(top: int) -> str:
    """Return source that makes pytorch-metric-learning's calculator on one thread."""
    return f"""
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
torch.set_num_threads(1)
wanted = {tuple(SAME.values())}
calculator = AccuracyCalculator(include=wanted, k={top}, device=torch.device("cpu"))
whole = torch.from_numpy(vectors), torch.from_numpy(labels)
"""


def check_equal(namespace: dict) -> None:
    """Assert that both sides' means agree to 1e-6, and print them."""
    for name, theirs in SAME.items():
        difference = abs(namespace["scores"].values[name].mean() - namespace["accuracies"][theirs])
        assert difference < 1e-6, f"{name}: {difference}"
        print(f"{name} {namespace['accuracies'][theirs]:.6f}, difference {difference:.1e}", flush=True)


def against_pml(bar: int, title: str, sides: Sides, repeats: int, *, speed: float, memory: float) -> dict:
    """Check both sides to be equal, time them in turn, weigh them; return what they left: `scores` ...

    `speed` and `memory` are what the bar asks.
    """
    namespace: dict = {}
    exec(sides.ours_setup + sides.pml_setup, namespace)
    ours, peer = compile(sides.ours, "ours", "exec"), compile(sides.pml, "peer", "exec")
    exec(ours, namespace)
    exec(peer, namespace)
    check_equal(namespace)
    ratios = compare(lambda: exec(ours, namespace), lambda: exec(peer, namespace), repeats)
    report(bar, f"{title}, against PML: time", ratios, ask=speed)
    peaks = [peak_extra_mib(sides.ours_setup, sides.ours), peak_extra_mib(sides.pml_setup, sides.pml)]
    print(f"extra peak memory: ours {peaks[0]:.1f} MiB, PML {peaks[1]:.1f} MiB")
    report(bar, "same: extra peak memory", peaks[0] / peaks[1], ask=memory, at_most=True)
    return namespace
