"""Margins that change with the step, the scale of AdaCos and parts by domain: over ranks, and resumed."""

import numpy as np
import pytest
import torch
from ranks import logs, run_ranks
from tiny import CLASSES, DIM, STEPS_PER_EPOCH, TinyEmbedder, batches, settings, train

from guie import checkpoint
from guie.heads.adacos import AdaCos
from guie.heads.domain import DomainArcFace
from guie.heads.large_margin import LSoftmax
from guie.heads.margin import SubCenterArcFace
from guie.heads.margin_by import ByEpoch, BySize
from guie.heads.matryoshka import Matryoshka
from guie.train.distributed import World
from guie.train.optim import adamw
from guie.train.task import Task

FACTS = {"num_classes": CLASSES, "embed_dim": DIM}
DOMAINS = {"class_domains": np.array([0, 1, 0, 1, 0]), "domain_names": ["a", "b"], "embed_dim": DIM}


def growing():
    by = {"size": BySize(class_counts=np.arange(1, CLASSES + 1)), "epoch": ByEpoch(epochs=4)}
    return SubCenterArcFace(2, margin_by=by, focal=1.0, label_smoothing=0.1, **FACTS)


def adacos(embed_dim):
    return AdaCos(num_classes=CLASSES, embed_dim=embed_dim)


HEADS = {
    "adacos": lambda: AdaCos(**FACTS),
    "adacos of prefixes": lambda: Matryoshka(adacos, [3, DIM], tied=True, embed_dim=DIM),
    "growing": growing,
    "l_softmax": lambda: LSoftmax(decay=0.8, **FACTS),
    "tiles": lambda: DomainArcFace("tile", **DOMAINS),
}


def trained(name, world=None, folder=None, resume=None):
    """Train 20 steps in float64; return the weights of both parts."""
    world = world or World()
    torch.manual_seed(0)
    embedder, head = TinyEmbedder().double(), HEADS[name]().double()
    optimizer = adamw(lr=0.01, embedder=embedder, head=head)
    made = Task(embedder, head, optimizer, batches(0, world), STEPS_PER_EPOCH)
    options = settings(epochs=5, save_steps=7, keep=9)
    train(made, options, folder=folder, world=world, resume=resume)
    parts = (("embedder", embedder), ("head", head))
    return {f"{part}.{key}": value for part, module in parts for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", HEADS)
def test_two_ranks_end_where_one_process_does(name, tmp_path):
    def work(world):
        found = trained(name, world)
        torch.save(found, tmp_path / f"{world.rank}.pt")

    assert run_ranks(2, work, tmp_path / "ranks") == [0, 0], logs(tmp_path / "ranks")
    alone = trained(name)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for key, value in alone.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_in_the_same_bits(name, tmp_path):
    straight = trained(name, folder=tmp_path)
    (middle,) = (path for path in checkpoint.steps(tmp_path) if checkpoint.step_of(path) == 7)
    resumed = trained(name, resume=checkpoint.read(middle))
    assert all(torch.equal(resumed[key], value) for key, value in straight.items())
