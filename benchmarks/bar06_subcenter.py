"""Bar 6: sub-centre ArcFace, K=3, 17,691 classes x 512, batch 64, against PML: time and extra peak memory.

    uv run --group bench python benchmarks/bar06_subcenter.py [repeats]

Gradients must agree to 1e-3 of the largest. About 1 CPU second a repeat.
"""

import sys
from pathlib import Path

from bench_heads import check_equal, sides
from timing import compare, peak_extra_mib, report

CLASSES, WIDTH, BATCH, SUBCENTRES = 17_691, 512, 64, 3

SETUP = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from bench_heads import our_step, peer_step, sides
torch.set_num_threads(1)
warm = [step() for step in sides(10, 8, 4, 3)[:2]]
embeddings, labels = torch.randn({BATCH}, {WIDTH}), torch.randint({CLASSES}, ({BATCH},))
head, ours = our_step(embeddings, labels, {CLASSES}, {SUBCENTRES})
"""
PEER_SETUP = SETUP + "peer = peer_step(embeddings, labels, head.weight.detach())\n"


def main(repeats: int) -> None:
    ours, peer, _ = sides(CLASSES, WIDTH, BATCH, SUBCENTRES)
    check_equal(ours, peer)
    speed = compare(ours, peer, repeats)
    report(6, "sub-centre ArcFace K=3, 17,691 x 512, against PML: time", speed, ask=2.5)
    memory = peak_extra_mib(SETUP, "ours()") / peak_extra_mib(PEER_SETUP, "peer()")
    report(6, "the same: peak memory", memory, ask=1 / 2, at_most=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
