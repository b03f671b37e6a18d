"""Bar 4: ArcFace, 17,691 classes x 512, batch 64, forward and backward, against PML and its three products.

    uv run --group bench python benchmarks/bar04_arcface.py [repeats]

Gradients must agree to 1e-3 of the largest. About 0.4 CPU seconds a repeat.
"""

import sys

from bench_heads import check_equal, sides
from timing import compare, report


def main(repeats: int) -> None:
    ours, peer, products = sides(classes=17_691, width=512, batch=64)
    check_equal(ours, peer)
    report(4, "ArcFace 17,691 x 512, batch 64, against PML: time", compare(ours, peer, repeats), ask=2.5)
    ratio = compare(products, ours, repeats)
    report(4, "the same, of its three matrix products: time", ratio, ask=2.0, at_most=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
