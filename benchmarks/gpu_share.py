"""Bars G1 and G2: feature extraction and fine-tuning as a share of the matrix rate measured in the same run.

    python benchmarks/gpu_share.py                              # ViT-H/14 on a GPU; a small ViT on the CPU
    python benchmarks/gpu_share.py --name ViT-L-14-336 --batch 128 --compile --profile

Weights are random, pictures are uint8 in pinned memory, moved step by step: what is left out is decoding.
The model's operations are counted by torch (a multiply and an add are two); a training step counts as three
forward passes whatever is computed twice. Needs neither faiss nor data.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from guie.heads.margin import SubCenterArcFace
from guie.models.backbones import OpenClip, Timm
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import CLS
from guie.train.distributed import Hardware, World, pick_device, precision
from guie.train.hooks import Hook
from guie.train.loop import Run, fit
from guie.train.optim import adamw
from guie.train.settings import Settings
from guie.train.task import Task
from guie.types import Batch

CLASSES, REPEATS, WINDOW = 15_792, 5, 5
ASKS = {"G1": 0.60, "G2": 0.45}


class How(NamedTuple):
    """Where and in which arithmetic; `compiled`: by torch.compile."""

    device: torch.device
    dtype: torch.dtype | None
    compiled: bool


class Rates(Hook):
    """Keep what each window of steps says: images per second."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def record(self, values) -> None:
        """Keep the rate."""
        self.seen += [values["images_per_s"]] if "images_per_s" in values else []


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of one call, the device's queue emptied before and after."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(REPEATS + 1):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first call warms up


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations per second of the fastest of some square products."""
    sizes = (4096, 8192, 16384) if device.type == "cuda" else (1024, 2048)
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2 * size**3 / seconds(lambda a=a, b=b: a @ b, device))
    return best


def model(name: str, device: torch.device, checkpointing: bool) -> Embedder:
    torch.manual_seed(0)
    if name == "small":
        backbone = Timm("vit_tiny_patch16_224", pretrained=False, checkpointing=checkpointing)
    else:
        backbone = OpenClip(name, pretrained=None, checkpointing=checkpointing)
    return Embedder(backbone, CLS(), Linear(in_dim=backbone.out_dim)).to(device)


def operations(embedder: Embedder, images: torch.Tensor) -> float:
    """Return the operations of one picture's forward pass."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        embedder(images[:1])
    return float(counter.get_total_flops())


def extraction(embedder: Embedder, images: torch.Tensor, how: How) -> float:
    """Return pictures per second, from pinned uint8 to vectors on the host."""
    run = torch.compile(embedder) if how.compiled else embedder
    embedder.eval()

    def work() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(how.device.type, how.dtype, enabled=how.dtype is not None),
        ):
            run(images.to(how.device, non_blocking=True)).z.float().cpu()

    return len(images) / seconds(work, how.device)


def training(embedder: Embedder, images: torch.Tensor, how: How) -> float:
    """Return pictures per second of `fit`'s own steps: fine-tuning of all weights with sub-centre ArcFace."""
    head = SubCenterArcFace(num_classes=CLASSES, embed_dim=embedder.embed_dim).to(how.device)
    labels = torch.arange(len(images)) * 37 % CLASSES
    batch = Batch(images, labels, torch.zeros_like(labels), torch.arange(len(images)))

    def batches(start: int, stop: int) -> Iterator[Batch]:
        return (batch for _ in range(start, stop))

    steps = WINDOW * (REPEATS + 1)
    rates = Rates()
    task = Task(embedder, head, adamw(lr=1e-5, embedder=embedder, head=head), batches, steps)
    settings = Settings(epochs=1, log_every=WINDOW, eval_every=0, save_every=0)
    named = {None: "fp32", torch.bfloat16: "bf16"}[how.dtype]
    hardware = Hardware(precision=named, compile=how.compiled)
    fit(task, settings, hardware, World(device=how.device), Run(hooks=[rates]))
    return statistics.median(rates.seen[1:])


def profiled(work: Callable[[], object], device: torch.device) -> str:
    """Return torch's table of where the time goes."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as found:
        work()
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return found.key_averages().table(sort_by=order, row_limit=15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="a model of open_clip, or small (a ViT-Ti/16)")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    device = pick_device("auto")
    on_gpu = device.type == "cuda"
    name, size = options.name or ("ViT-H-14" if on_gpu else "small"), options.batch or (256 if on_gpu else 16)
    dtype = precision("native", device)
    rate = matrix_rate(device, dtype or torch.float32)
    embedder = model(name, device, options.checkpointing)
    images = torch.randint(0, 256, (size, 3, *embedder.preprocess.size_px), dtype=torch.uint8)
    images = images.pin_memory() if on_gpu else images
    cost = operations(embedder, images.to(device))
    print(f"{name}, batch {size}, {dtype or torch.float32} on {device}: {cost / 1e9:.1f} GFLOP a picture")
    print(f"matrix rate {rate / 1e12:.2f} TFLOP/s")
    for bar, measure, passes in (("G1", extraction, 1), ("G2", training, 3)):

        def work(measure=measure):
            return measure(embedder, images, How(device, dtype, options.compile))

        speed = work()
        share = speed * cost * passes / rate
        peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.0f} GiB" if on_gpu else ""
        print(f"| {bar} | >= {ASKS[bar]:.2f} | {share:.2f} | {speed:,.1f} pictures/s{peak} |", flush=True)
        if options.profile:
            print(profiled(work, device))


if __name__ == "__main__":
    main()
