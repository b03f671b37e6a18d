"""The shared multi-domain protocol by pytorch-metric-learning's documented recipes, for comparison.

Pictures, decoded-pixel cache, augmentation, backbone, pooling and neck come from the same config as ours
(`+exp=shared_multidomain`, without its growing pictures: they are part of our training); loss, miner, sampler
and the loss's own optimiser are the library's. The clock counts CPU minutes over `--threads`, so that other
work on the machine takes nothing from either side. From the project's root:

    uv run --group bench python benchmarks/peers/pml_shared.py --recipe arcface --minutes 15 --out runs/pml0

`arcface`: `ArcFaceLoss`, its class weights in an optimiser of their own (SGD at `--loss-lr`, 0.01 as in the
library's documentation), shuffled batches. Margin and scale are `--margin` 8 degrees and `--scale` 30, which
measured best on this protocol; the library's defaults are `--margin 28.6 --scale 64`.
`multisimilarity`: `MultiSimilarityLoss` (alpha 2, beta 50, base .5) on the pairs of `MultiSimilarityMiner`
(epsilon .1), batches by `MPerClassSampler` with m = 4.

`--out` receives `vectors.npy`, `rows.parquet` and `meta.json` (as guie-eval reads) and `queries.parquet`,
the result of each query, for the paired comparison.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guie import assembly
from guie.config.compose import composed
from guie.data.sampling import Shuffled
from guie.embed.vectors import embed
from guie.embeddings import save
from guie.evaluate import evaluate

FOREVER = 1_000_000  # steps: the clock ends the run, not the loader
WARMUP_STEPS = 50


class PerClassByLibrary:
    """`MPerClassSampler` as a guie sampler: the rows of step after step, in order."""

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int):
        from pytorch_metric_learning.samplers import MPerClassSampler
        from pytorch_metric_learning.utils import common_functions

        common_functions.NUMPY_RANDOM = np.random.RandomState(seed)
        self.batch_size, self.steps_per_epoch = batch_size, max(1, len(labels) // batch_size)
        self._sampler = MPerClassSampler(labels, m=4, batch_size=batch_size)
        self._rows = self._endless()

    def _endless(self) -> Iterator[int]:
        while True:
            yield from self._sampler

    def batch(self, step: int) -> np.ndarray:
        """Return the next rows (batch_size,) int64; steps are asked for in order."""
        return np.fromiter(self._rows, np.int64, self.batch_size)


def main() -> None:
    """Train until the clock ends, embed, save, print the measured numbers."""
    options = _options()
    started = time.monotonic()
    torch.set_num_threads(options.threads)
    cfg = composed("train", [*options.override, f"seed={options.seed}"])
    sets = assembly.manifests(cfg["dataset"], cfg["data_root"])
    rows = assembly.training_rows(sets)
    embedder = assembly.embedder(cfg).to(memory_format=torch.channels_last)
    objective = _Objective(options, rows.num_classes, embedder.embed_dim)
    loader = assembly.loader(cfg, rows, embedder.preprocess)
    loader.sampler = _sampler(options, rows, loader.sampler.batch_size)
    cached = time.monotonic() - started
    facts = train(embedder, objective, loader, options)
    found = embed(embedder.eval(), assembly.evaluation_rows(sets)["shared_multidomain"])
    facts |= {"cache_and_start_s": cached, "wall_s": time.monotonic() - started, **vars(options)}
    measured = evaluate(found)
    numbers = _shown(measured.metrics)
    folder = save(found, options.out, recipe=facts, numbers=numbers)
    measured.write_queries(folder / "queries.parquet")
    print(json.dumps({**facts, **numbers}, default=str))


def _sampler(options: argparse.Namespace, rows: Any, batch_size: int) -> Any:
    """Return the recipe's sampler, whatever ours is."""
    if options.recipe == "multisimilarity":
        return PerClassByLibrary(rows.labels, batch_size, options.seed)
    facts = {"labels": rows.labels, "domains": rows.domains}
    return Shuffled(**facts, batch_size=batch_size, seed=options.seed)


class _Objective(nn.Module):
    """The library's loss, with its miner where the recipe has one."""

    def __init__(self, options: argparse.Namespace, num_classes: int, embed_dim: int):
        from pytorch_metric_learning import losses, miners

        super().__init__()
        torch.manual_seed(options.seed + 1)
        self.miner = None
        if options.recipe == "arcface":
            self.loss: Any = losses.ArcFaceLoss(
                num_classes, embed_dim, margin=options.margin, scale=options.scale
            )
        else:
            self.loss = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
            self.miner = miners.MultiSimilarityMiner(epsilon=0.1)

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of vectors (B, D)."""
        return self.loss(vectors, labels, self.miner(vectors, labels) if self.miner else None)

    def optimizers(self, embedder: nn.Module, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
        """Return AdamW of the network and, where the loss has weights, their own optimiser as documented."""
        matrices = [p for p in embedder.parameters() if p.ndim > 1]
        rest = [p for p in embedder.parameters() if p.ndim <= 1]
        decayed = {"params": matrices, "weight_decay": options.decay}
        network = torch.optim.AdamW([decayed, {"params": rest, "weight_decay": 0.0}], lr=options.lr)
        weights = list(self.loss.parameters())
        if not weights:
            return [network]
        if options.loss_optimizer == "adamw":
            return [network, torch.optim.AdamW(weights, lr=options.loss_lr, weight_decay=0.0)]
        return [network, torch.optim.SGD(weights, lr=options.loss_lr)]


def train(
    embedder: nn.Module, objective: _Objective, loader: Any, options: argparse.Namespace
) -> dict[str, float]:
    """Step until `options.minutes` are used up; the cosine follows the share of them that is gone."""
    optimizers = objective.optimizers(embedder, options)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    begun, cpu, budget = time.monotonic(), time.process_time(), 60 * options.minutes * options.threads
    step = 0
    embedder.train()
    for step, batch in enumerate(loader.batches(0, FOREVER)):
        gone = (time.process_time() - cpu) / budget
        if gone >= 1:
            break
        factor = min(1, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * gone))
        for optimizer, own in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            output = embedder(batch.images.contiguous(memory_format=torch.channels_last))
        objective(output.z.float(), batch.labels).backward()
        for optimizer in optimizers:
            optimizer.step()
    used = {"train_wall_s": time.monotonic() - begun, "train_cpu_s": time.process_time() - cpu}
    return {"steps": step, "epochs": step / loader.sampler.steps_per_epoch, **used}


def _shown(numbers: dict) -> dict[str, float]:
    merged, domains = numbers["merged"], numbers["merged"]["domains"]
    own = {f"mP@5 {name}": found["mP@5"] for name, found in domains.items()}
    return {"merged mP@5": merged["mP@5"], "merged R@1": merged["R@1"], **own}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--recipe", choices=["arcface", "multisimilarity"], default="arcface")
    add("--out", required=True, help="folder for vectors.npy, rows.parquet, meta.json")
    add("--minutes", type=float, default=15.0, help="CPU minutes of training, times threads")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2)
    add("--precision", choices=["fp32", "bf16"], default="bf16")
    add("--lr", type=float, default=1e-3, help="AdamW, network")
    add("--decay", type=float, default=1e-4, help="AdamW, matrices only")
    add("--loss-optimizer", choices=["sgd", "adamw"], default="sgd")
    add("--loss-lr", type=float, default=0.01, help="of ArcFace's class weights")
    add("--margin", type=float, default=8.0, help="degrees; the library's default is 28.6")
    add("--scale", type=float, default=30.0, help="the library's default is 64")
    shared = ["+exp=shared_multidomain", "augment.growth=null"]
    add("override", nargs="*", default=shared, help="config of pictures and network, as for guie-train")
    return parser.parse_args()


if __name__ == "__main__":
    main()
