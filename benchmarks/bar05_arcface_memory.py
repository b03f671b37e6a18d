"""Bar 5: ArcFace, 81,313 classes x 64, batch 256: extra peak memory of one step against PML.

    uv run --group bench python benchmarks/bar05_arcface_memory.py

A fresh process for each side; the gradients of the weights (20 MiB) count on both. Gradients must agree to
1e-3 of the largest. About 20 CPU seconds.
"""

from pathlib import Path

from bench_heads import check_equal, sides
from timing import compare, peak_extra_mib, report

CLASSES, WIDTH, BATCH = 81_313, 64, 256

SETUP = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from bench_heads import our_step, peer_step, sides
torch.set_num_threads(1)
warm = [step() for step in sides(10, 8, 4)[:2]]
embeddings, labels = torch.randn({BATCH}, {WIDTH}), torch.randint({CLASSES}, ({BATCH},))
head, ours = our_step(embeddings, labels, {CLASSES}, 1)
"""
PEER_SETUP = (
    SETUP + f"peer = peer_step(embeddings, labels, head.weight.detach().view(1, {CLASSES}, {WIDTH}))\n"
)


def main() -> None:
    check_equal(*sides(CLASSES, WIDTH, BATCH)[:2])
    peer = peak_extra_mib(PEER_SETUP, "peer()")
    ours = peak_extra_mib(SETUP, "ours()")
    print(f"MiB: PML {peer:.0f}, ours {ours:.0f}")
    report(
        5, "ArcFace 81,313 x 64, batch 256, against PML: peak memory", ours / peer, ask=1 / 8, at_most=True
    )
    speed = compare(*sides(CLASSES, WIDTH, BATCH)[:2])
    report(5, "the same: time (not asked)", speed, ask=1.0)


if __name__ == "__main__":
    main()
