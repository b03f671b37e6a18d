"""Bar 7: 10 epochs on a frozen backbone with the feature cache, extraction included, against recomputing.

    python benchmarks/bar07_feature_cache.py [--pictures 192] [--repeats 7]

Both sides train the same neck and ArcFace head by `fit` on the same batches of the same pictures; the
losses of all steps must agree to 1 % (the cache holds fp16).
"""

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import compare, report  # first: it sets the threads

from guie.data.sampling import Shuffled
from guie.datasets.manifest import Manifest, from_columns
from guie.embed.batches import CachedBatches
from guie.embed.features import cache_features
from guie.embed.reading import Reader
from guie.heads.margin import ArcFace
from guie.models.backbones import Timm
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import GeM
from guie.resize import load
from guie.train.distributed import Hardware, World
from guie.train.hooks import Hook
from guie.train.loop import Run, Settings, Task, fit
from guie.train.optim import adamw
from guie.types import Batch

CLASSES, BATCH, EPOCHS, SIZE_PX = 16, 32, 10, 128


class Losses(Hook):
    """Keep the loss of every step."""

    def __init__(self):
        self.values = []

    def record(self, values):
        """Keep it."""
        self.values.append(values["loss"])


def draw(folder: Path, pictures: int) -> Manifest:
    draws = np.random.default_rng(0)
    for i in range(pictures):
        coarse = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    files = [f"{i}.jpg" for i in range(pictures)]
    return from_columns(
        "drawn", folder, {"file": files, "label": [str(i % CLASSES) for i in range(pictures)]}
    )


def model() -> Embedder:
    torch.manual_seed(0)
    backbone = Timm("resnet18", pretrained=False, image_px=SIZE_PX)
    return Embedder(backbone, GeM(), Linear(64, in_dim=backbone.out_dim))


def train(manifest: Manifest, cache: Path | None, untrained: Embedder) -> list[float]:
    embedder = copy.deepcopy(untrained)
    torch.manual_seed(1)
    head = ArcFace(num_classes=CLASSES, embed_dim=64)
    sampler = Shuffled(labels=manifest.labels, domains=manifest.domains, batch_size=BATCH, seed=1)

    def recomputed(start, stop):
        for step in range(start, stop):
            rows = sampler.batch(step)
            images = np.stack([load(manifest.read(row), embedder.preprocess) for row in rows])
            columns = (images, manifest.labels[rows], manifest.domains[rows], rows)
            yield Batch(*map(torch.from_numpy, columns))

    batches = recomputed
    if cache is not None:
        cached = cache_features(embedder, manifest, cache, Reader(batch_size=BATCH, threads=1))
        batches = CachedBatches(cached, sampler, manifest.labels, manifest.domains, seed=1).batches
    optimizer = adamw(lr=1e-3, embedder=embedder, head=head)
    task = Task(embedder, head, optimizer, batches, sampler.steps_per_epoch, features=cache is not None)
    losses = Losses()
    settings = Settings(epochs=EPOCHS, batch_size=BATCH, freeze_backbone=True, log_every=1, save_every=0)
    fit(task, settings, Hardware(), World(), Run(hooks=[losses]))
    return losses.values


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = draw(folder, options.pictures)
        untrained = model()
        made = iter(range(100))

        def ours() -> list[float]:
            return train(
                manifest, folder / f"cache{next(made)}", untrained
            )  # a new folder: extraction is included

        def peer() -> list[float]:
            return train(manifest, None, untrained)

        with_cache, without = ours(), peer()
        assert len(with_cache) == EPOCHS * (options.pictures // BATCH)
        np.testing.assert_allclose(with_cache, without, rtol=0.01)
        print(f"largest relative difference of {len(without)} losses:", end=" ")
        print(f"{np.max(np.abs(np.divide(with_cache, without) - 1)):.1e}")
        what = f"{EPOCHS} epochs, frozen ResNet-18 at {SIZE_PX} px, cached features against recomputing"
        report(7, what, compare(ours, peer, options.repeats), ask=9)


if __name__ == "__main__":
    main()
