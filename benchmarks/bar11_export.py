"""Bar 11: ViT-B/32 exported in less than float32, on one core, against the evaluation in eager float32.

    python benchmarks/bar11_export.py [--format openvino] [--precision bf16] [--batch 8] [--repeats 7]

Both sides take pictures of 224 x 224 to unit vectors; the file is what guie-export writes and the loader that
of its bundles. Weights are random, the cosine with evaluation is checked first. The ask needs a CPU with
amx_bf16; printed beside are the rates of a matrix product of the network's shape, which bound the ratio.
"""

import argparse
import os
import tempfile
from pathlib import Path

from timing import Ratio, compare, cpu_seconds, report  # isort: skip  (first: it sets one thread)
import numpy as np
import torch

from guie import resize
from guie.export import runtime
from guie.export.formats import COSINES, FORMATS, writer
from guie.export.source import Request, Source, evaluating
from guie.models.backbones import OpenClip
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import Average

ASK = 4.0
WIDTH, HIDDEN, TOKENS = 768, 3072, 50


def vit_b_32() -> Embedder:
    torch.manual_seed(0)
    backbone = OpenClip("ViT-B-32", pretrained=None)
    return Embedder(backbone, Average(), Linear(64, in_dim=backbone.out_dim)).eval()


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 224, 224), dtype=np.uint8)


def eager(embedder: Embedder, images: np.ndarray) -> np.ndarray:
    """Return the vectors of pictures (B,3,H,W) as evaluation computes them."""
    shown = [resize.apply(picture.transpose(1, 2, 0), embedder.preprocess) for picture in images]
    with torch.inference_mode():
        return embedder(torch.from_numpy(np.stack(shown))).z.numpy()


def exported(source: Source, format: str, precision: str, folder: Path) -> Path:
    """Write the file of a source; int8 takes its ranges from pictures drawn as the others are."""
    path = folder / f"vit{FORMATS[format].suffix}"
    drawn = [picture.transpose(1, 2, 0) for picture in pictures(8)]
    request = Request(precision, calibration=drawn)
    with evaluating(source) as still:
        writer(format).write(still, request, path, {"format": format, **request.told()})
    return path


def rate(dtype: torch.dtype, rows: int) -> float:
    """Return GFLOP/s of the product of a block's first layer, the best of five."""
    x, weight = torch.randn(rows, WIDTH).to(dtype), torch.randn(HIDDEN, WIDTH).to(dtype)
    product = lambda: torch.nn.functional.linear(x, weight)  # noqa: E731
    product()
    return 2e-9 * rows * WIDTH * HIDDEN / min(cpu_seconds(product) for _ in range(5))


def bound(batch: int) -> str:
    rates = [rate(dtype, TOKENS * batch) for dtype in (torch.float32, torch.bfloat16)]
    amx = "amx_bf16" in Path("/proc/cpuinfo").read_text()
    told = f"{rates[0]:.0f} GFLOP/s in float32, {rates[1]:.0f} in bf16: {rates[1] / rates[0]:.1f}x"
    return f"matrix products here: {told}; amx_bf16: {'yes' if amx else 'no'}"


def measured(format: str, precision: str, batch: int, repeats: int) -> Ratio:
    source, images = Source({"": vit_b_32()}), pictures(batch)
    embedder = source.embedders[""]
    with tempfile.TemporaryDirectory() as folder:
        run = runtime.load(exported(source, format, precision, Path(folder)))
        expected = eager(embedder, images)
        cosine = float((run(images) * expected).sum(1).min())
        assert cosine >= COSINES[precision], f"cosine {cosine}"
        print(f"least cosine {cosine:.5f}")
        return compare(lambda: run(images), lambda: eager(embedder, images), repeats)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--format", default="openvino", choices=list(FORMATS))
    parser.add_argument("--precision", default="bf16", choices=list(COSINES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # OpenVINO takes as many threads as cores
    what = f"ViT-B/32 in {options.format} {options.precision}, batch {options.batch}, against eager fp32"
    ratio = measured(options.format, options.precision, options.batch, options.repeats)
    print(bound(options.batch))
    report(11, what, ratio, ASK)


if __name__ == "__main__":
    main()
