"""Bar 8: evaluation of 10,000 queries against 100,000 images, d=64, top 100, against PML.

    uv run --group bench python benchmarks/bar08_evaluation.py [repeats]

The labels are those of a product set: 10,000 classes of about 10 images (PML's cost grows with their number,
ours does not). Both sides start from vectors and labels and end at mean precision@1, R-precision and MAP@R,
which must agree to 1e-6; ours also computes mP@5, R@k, mAP@100 and MRR. Memory: peak growth of a fresh
process (PML needs 6 GiB). About 15 CPU seconds a repeat.
"""

import sys

from evaluation_sides import Sides, against_pml, inputs, ours, ours_setup, pml_setup

QUERIES, GALLERY, DIM, CLASSES, TOP = 10_000, 100_000, 64, 10_000, 100

INPUTS = inputs(f"r.integers({CLASSES}, size={QUERIES + GALLERY})", DIM, noise=1.5)
PEER = f"""
sides = slice({QUERIES}), slice({QUERIES}, None)
asking, answering = ([column[rows] for column in whole] for rows in sides)
accuracies = calculator.get_accuracy(*asking, *answering)
"""
SIDES = Sides(
    INPUTS + ours_setup(f"np.arange({QUERIES})", f"np.arange({QUERIES}, len(labels))"),
    ours(TOP),
    INPUTS + pml_setup(TOP),
    PEER,
)


def main(repeats: int) -> None:
    title = f"evaluation {QUERIES} x {GALLERY}, d={DIM}, top {TOP}"
    against_pml(8, title, SIDES, repeats, speed=4, memory=1 / 30)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
