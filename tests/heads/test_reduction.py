"""The mean loss of each domain, over micro-batches, steps and two ranks of which one lacks a domain."""

import json

import pytest
import torch
from one_batch import output_of
from torch import distributed, multiprocessing, nn

from guie.heads.classifier import Softmax
from guie.heads.combine import Weighted
from guie.heads.reduction import PerDomain, Reduction
from guie.train.distributed import Hardware, World
from guie.train.loop import fit
from guie.train.settings import Settings
from guie.train.task import Run, Task
from guie.types import Batch

NAMES = ["apparel", "landmark", "", "never"]
STEPS, SHARE = 3, 6


def domains_of(step, rank):
    """Return the domains of a rank's pictures: rank 1 has no apparel; domain 3 occurs nowhere."""
    draw = torch.Generator().manual_seed(10 * step + rank)
    return torch.randint(rank, 3, (SHARE,), generator=draw)


def batches(ranks):
    def between(start, stop):
        for step in range(start, stop):
            domains = torch.cat([domains_of(step, rank) for rank in ranks])
            draw = torch.Generator().manual_seed(step)
            images = torch.randn(2 * SHARE, 4, generator=draw)
            images = torch.cat([images[rank * SHARE : (rank + 1) * SHARE] for rank in ranks])
            labels = domains % 2
            yield Batch(images, labels, domains, torch.arange(len(labels)))

    return between


class Features(nn.Module):
    """The pictures themselves as embeddings, times one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return output_of(images * self.weight)


class Records(list):
    """A hook that keeps what is told."""

    def start(self, step, steps):
        pass

    def tick(self, step):
        pass

    def record(self, values):
        self.append(dict(values))

    def close(self):
        pass


def trained(ranks, world, accumulate):
    """Return what was logged, with the weights frozen by a rate of 0."""
    torch.manual_seed(0)
    embedder, found = Features(), Records()
    head = Weighted(
        {"softmax": Softmax(per_domain=PerDomain(domain_names=NAMES), num_classes=2, embed_dim=4)}
    )
    optimizer = torch.optim.SGD([*embedder.parameters(), *head.parameters()], lr=0.0)
    for group in optimizer.param_groups:
        group["initial_lr"] = 0.0
    settings = Settings(epochs=1, log_every=STEPS, accumulate=accumulate, eval_every=0, save_every=0)
    task = Task(embedder, head, optimizer, batches(ranks), STEPS)
    fit(task, settings, Hardware(precision="fp32"), world, Run(hooks=[found]))
    told = {key: value for record in found for key, value in record.items() if "loss" in key}
    return told, (embedder, head)


def means_by_hand(embedder, head):
    pairs = []
    for batch in batches([0, 1])(0, STEPS):
        logits = head.heads["softmax"].linear(batch.images)
        losses = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        pairs += list(zip(batch.domains.tolist(), losses.tolist(), strict=True))
    chosen = {name: [loss for domain, loss in pairs if domain == d] for d, name in enumerate(NAMES)}
    return {name: sum(losses) / len(losses) for name, losses in chosen.items() if losses}


def _on_a_rank(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found, _ = trained([rank], World(rank, 2), 1)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_mean_of_a_domain_is_that_of_all_its_pictures_in_the_window(accumulate):
    found, parts = trained([0, 1], World(), accumulate)
    expected = means_by_hand(*parts)
    assert set(found) == {"loss", "softmax/loss", *(f"softmax/loss/{n or 'none'}" for n in expected)}
    for name, value in expected.items():
        assert found[f"softmax/loss/{name or 'none'}"] == pytest.approx(value, rel=1e-6)


def test_two_ranks_log_the_means_of_one_process_though_one_lacks_a_domain(tmp_path):
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_on_a_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    alone, _ = trained([0, 1], World(), 1)
    assert json.loads((tmp_path / "0.json").read_text()) == pytest.approx(alone, rel=1e-6)


def test_one_domain_alone_and_no_wish_log_nothing_more():
    losses, domains = torch.rand(4), torch.zeros(4, dtype=torch.int64)
    assert set(Reduction(per_domain=PerDomain(domain_names=[""]))(losses, domains).scalars) == {"loss"}
    assert set(Reduction()(losses, domains).scalars) == {"loss"}
