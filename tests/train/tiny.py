"""A miniature of everything that training needs: embedder, head, data as a function of (seed, step)."""

from __future__ import annotations

import torch
from torch import nn

from guie.checkpoint import Store
from guie.train.distributed import Hardware, World
from guie.train.loop import fit
from guie.train.optim import adamw
from guie.train.sam import sam
from guie.train.settings import Settings
from guie.train.task import Run, Task
from guie.types import Batch, Loss, Output, Preprocess

CLASSES, DIM, STEPS_PER_EPOCH, GLOBAL_BATCH = 5, 6, 4, 8


class TinyEmbedder(nn.Module):
    """4 x 4 pictures -> 6 numbers; `norm` adds a batch norm, `dropout` noise."""

    def __init__(self, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.preprocess = Preprocess(size_px=(4, 4))
        self.embed_dim = DIM
        # A bias before a norm has no gradient but rounding, which Adam would blow up.
        middle = [nn.BatchNorm2d(4)] if norm else []
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=not norm), *middle, nn.Tanh(), nn.Flatten())
        self.pool = nn.Identity()
        self.neck = nn.Sequential(nn.Dropout(dropout), nn.Linear(16, DIM))

    def features(self, images):
        return self.pool(self.backbone(images.to(self.neck[1].weight.dtype) / 255))

    def from_features(self, feature):
        raw = self.neck(feature)
        return Output(feature, None, raw, nn.functional.normalize(raw, dim=1))

    def forward(self, images):
        return self.from_features(self.features(images))


class TinyHead(nn.Module):
    """Plain softmax over unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, DIM))

    def forward(self, output, batch):
        logits = 10 * output.z @ self.weight.t()
        loss = nn.functional.cross_entropy(logits, batch.labels)
        return Loss(loss, {"accuracy": (logits.argmax(1) == batch.labels).double().mean()})


def sam_adamw(lr, *, embedder, head):
    return sam(adamw(lr=lr, embedder=embedder, head=head), rho=0.1)


def batches(seed=0, world=None, poison=None):
    """Return `(start, stop) -> batches`; `poison` is a step whose first picture is NaN."""
    world = world or World()
    share = GLOBAL_BATCH // world.size

    def between(start, stop):
        for step in range(start, stop):
            draw = torch.Generator().manual_seed(1000 * seed + step)
            images = torch.randint(0, 256, (GLOBAL_BATCH, 3, 4, 4), generator=draw).double()
            labels = torch.randint(0, CLASSES, (GLOBAL_BATCH,), generator=draw)
            if step == poison:
                images[0] = float("nan")
            mine = slice(world.rank * share, (world.rank + 1) * share)
            ids = torch.arange(100 * step, 100 * step + GLOBAL_BATCH)
            yield Batch(images[mine], labels[mine], torch.zeros(share, dtype=torch.int64), ids[mine])

    return between


def task(seed=0, world=None, *, dtype=torch.float32, norm=False, dropout=0.0, optim=adamw, **changes):
    """Return a task; `optim(lr, embedder=, head=)` makes its optimiser, `changes` are attributes of it."""
    torch.manual_seed(0)
    embedder, head = TinyEmbedder(norm, dropout).to(dtype), TinyHead().to(dtype)
    optimizer = optim(lr=0.01, embedder=embedder, head=head)
    made = Task(embedder, head, optimizer, batches(seed, world), STEPS_PER_EPOCH)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def train(made, settings, *, folder=None, world=None, hooks=(), resume=None, seed=0):
    store = None if folder is None else Store(folder, settings.keep)
    run = Run(store=store, hooks=hooks, seed=seed, resume=resume)
    return fit(made, settings, Hardware(), world or World(), run)


def settings(**changes):
    return Settings(**{"epochs": 3, "log_every": 1, "eval_every": 0, "save_every": 0, **changes})
