"""Heads that compare pictures equal one process over ranks, and end in the same bits after a kill."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from killed import killed_and_straight
from ranks import logs, run_ranks
from test_distributed import largest_difference
from tiny import CLASSES, DIM, STEPS_PER_EPOCH, TinyEmbedder, batches, settings, train
from torch import nn

from guie import checkpoint
from guie.heads import pairs
from guie.heads.combine import Weighted
from guie.heads.contrastive import Contrastive, MultiSimilarity, SupCon
from guie.heads.distill import EmbeddingDistillation, SimilarityDistillation
from guie.heads.margin import ArcFace
from guie.heads.memory import CrossBatchMemory
from guie.heads.pml import Pml
from guie.heads.proxy import ProxyAnchor
from guie.heads.triplet import Triplet
from guie.train.distributed import World, replicate
from guie.train.optim import adamw
from guie.train.sam import sam
from guie.train.task import Task
from guie.types import Batch, Output, Preprocess

FACTS = {"num_classes": CLASSES, "embed_dim": DIM}


class Teaching(nn.Module):
    """A fixed random view of 4 x 4 pictures."""

    def __init__(self):
        super().__init__()
        self.preprocess, self.out_dim, self.prefix_tokens = Preprocess(size_px=(4, 4)), 7, 0
        self.look = nn.Conv2d(3, 7, 4).double()

    def forward(self, x):
        return self.look(x).flatten(1)


def memory(head, size=20, **options):
    return CrossBatchMemory(head, size, **options, embed_dim=DIM)


HEADS = {
    "contrastive memory": lambda: memory(Contrastive()),
    "memory of labels and ArcFace": lambda: Weighted(
        {"memory": memory(SupCon(), 50, start_step=6, same_id="drop"), "arcface": ArcFace(**FACTS)}
    ),
    "proxy anchor": lambda: ProxyAnchor(alpha=8.0, **FACTS),
}
MORE = {
    "memory as large as the batch": lambda: memory(Contrastive(), 8),
    "multi-similarity memory": lambda: memory(MultiSimilarity()),
    "triplet memory": lambda: memory(Triplet()),
    "memory of ids": lambda: memory(Contrastive(by="id"), 60),
    "contrastive": Contrastive,
    "triplet": Triplet,
    "hard triplet": lambda: Triplet(mining="hard"),
    "semi-hard triplet": lambda: Triplet(mining="semi_hard"),
    "similarity distillation": lambda: SimilarityDistillation(Teaching()),
    "embedding distillation": lambda: EmbeddingDistillation(Teaching(), embed_dim=DIM, feature_dim=16),
}


def task_of(make_head, world, climbs, dtype):
    torch.manual_seed(0)
    embedder, head = TinyEmbedder().to(dtype), make_head().to(dtype)
    optimizer = adamw(lr=0.01, embedder=embedder, head=head)
    optimizer = sam(optimizer) if climbs else optimizer
    drawn = batches(0, world)

    def with_returning_ids(start, stop):  # 24 pictures, seen again within the memory
        return (replace(batch, ids=batch.ids % 24) for batch in drawn(start, stop))

    return Task(embedder, head, optimizer, with_returning_ids, STEPS_PER_EPOCH)


def trained(
    make_head,
    folder,
    world=None,
    *,
    hooks=(),
    resume=None,
    climbs=False,
    dtype=torch.float64,
    **changes,
):
    world = world or World()
    made = task_of(make_head, world, climbs, dtype)
    options = settings(**{"epochs": 5, "keep": 20, **changes})
    train(made, options, folder=folder, world=world, hooks=hooks, resume=resume)
    return made


def two_ranks_and_one_agree(heads, folder, **changes):
    for name, make_head in heads.items():  # before the ranks, which then find torch's imports made
        trained(make_head, folder / name / "one", **changes)

    def both(world):
        for name, make_head in heads.items():
            head = trained(make_head, folder / name / "two", world, **changes).head
            queues = world.gather([buffer.tolist() for buffer in head.buffers()])
            assert queues[0] == queues[1], name

    assert run_ranks(2, both, folder / "ranks") == [0, 0], logs(folder / "ranks")
    for name in heads:
        assert largest_difference(folder / name / "one", folder / name / "two") < 1e-9, name


def test_two_ranks_equal_one_process_with_the_whole_batch(tmp_path):
    two_ranks_and_one_agree(HEADS, tmp_path)


class Holder(nn.Module):
    """A memory beside statistics, as in an embedder and its head."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(DIM).double(), memory(SupCon(), 200).double()

    def forward(self, raw, batch):
        raw = self.norm(raw)
        return self.head(Output(raw, None, raw, nn.functional.normalize(raw, dim=1)), batch).total


def test_rank_0_sends_statistics_but_no_memory_which_is_equal_on_all_ranks(tmp_path, monkeypatch):
    def work(world):
        sent, send = [], torch.distributed._broadcast_coalesced

        def noted(group, tensors, *more):
            sent.extend(tensor.numel() for tensor in tensors)
            send(group, tensors, *more)

        monkeypatch.setattr(torch.distributed, "_broadcast_coalesced", noted)
        holder = Holder()
        model = replicate(holder, world)
        sent.clear()  # of the beginning, where rank 0's weights become everybody's
        for step in range(3):
            draw = torch.Generator().manual_seed(10 * step + world.rank)
            raw = torch.randn(4, DIM, generator=draw, dtype=torch.float64)
            labels = torch.randint(0, 3, (4,), generator=draw)
            model(raw, Batch(raw, labels, labels, labels)).backward()
        assert sent == 3 * [DIM, DIM, 1], sent
        assert int(holder.head.num_stored) == 24
        queues = world.gather([buffer.tolist() for buffer in holder.head.buffers()])
        assert queues[0] == queues[1]

    assert run_ranks(2, work, tmp_path) == [0, 0], logs(tmp_path)


def logged_and_kept(head, share):
    """Return loss and mean positive cosine of two steps, and the largest tensor kept for the gradient."""
    found, kept = [], []
    for step in range(2):
        draw = torch.Generator().manual_seed(step)
        raw = torch.randn(64, DIM, generator=draw, dtype=torch.float64)[share].requires_grad_()
        labels = torch.randint(0, 9, (64,), generator=draw)[share]
        output = Output(raw, None, raw, nn.functional.normalize(raw, dim=1))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            loss = head(output, Batch(raw, labels, labels, labels))
        found.append(torch.stack([loss.scalars["loss"], loss.scalars["positive_cosine"]]))
    return torch.stack(found), max(kept)


def test_ranks_divide_the_pairs_and_what_they_log_averages_to_that_of_one_process(tmp_path):
    logged, kept = logged_and_kept(memory(SupCon(), 200).double(), slice(None))
    assert kept == 64 * 200

    def compare(world):
        share = slice(32 * world.rank, 32 * world.rank + 32)
        mine, kept = logged_and_kept(memory(SupCon(), 200).double(), share)
        torch.testing.assert_close(world.mean(mine), logged)
        assert kept == 32 * 200

    assert run_ranks(2, compare, tmp_path) == [0, 0], logs(tmp_path)


@pytest.mark.slow
def test_two_ranks_equal_one_process_for_every_head_of_pairs(tmp_path):
    two_ranks_and_one_agree(MORE, tmp_path)


@pytest.mark.slow
def test_two_ranks_equal_one_process_with_a_loss_of_pytorch_metric_learning(tmp_path):
    pytest.importorskip("pytorch_metric_learning")
    heads = {
        "pairs": lambda: Pml("ContrastiveLoss", **FACTS),
        "proxies": lambda: Pml("ProxyAnchorLoss", {"alpha": 8}, **FACTS),
    }
    two_ranks_and_one_agree(heads, tmp_path)


@pytest.mark.slow
def test_a_batch_that_is_seen_twice_is_remembered_once_on_all_ranks(tmp_path):
    """SAM takes each gradient twice: the queue moves by one batch a step."""
    two_ranks_and_one_agree({"memory": HEADS["contrastive memory"]}, tmp_path, climbs=True)
    stored = checkpoint.read(tmp_path / "memory" / "one", "last").parts["head"]["num_stored"]
    assert stored == 20 * 8


@pytest.mark.slow
def test_two_ranks_stay_near_one_process_in_float32(tmp_path):
    make_head, changes = HEADS["contrastive memory"], {"dtype": torch.float32, "max_steps": 10}
    one = trained(make_head, tmp_path / "one", **changes)

    def near(world):
        two = trained(make_head, tmp_path / "two", world, **changes)
        for a, b in zip(one.embedder.parameters(), two.embedder.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

    assert run_ranks(2, near, tmp_path) == [0, 0], logs(tmp_path)


def test_the_comparison_can_fail_where_ranks_keep_to_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "num_ranks", lambda: 1)
    make_head = HEADS["contrastive memory"]
    assert run_ranks(2, lambda world: trained(make_head, tmp_path / "two", world), tmp_path) == [
        0,
        0,
    ]
    trained(make_head, tmp_path / "one")
    assert largest_difference(tmp_path / "one", tmp_path / "two") > 1e-6


def digests(folder):
    state = checkpoint.read(folder, "last")
    assert state.step == 20
    return {part: checkpoint.weights_digest(tensors) for part, tensors in state.parts.items()}


def test_a_memory_killed_in_mid_epoch_ends_in_the_same_bits(tmp_path):
    make_head = HEADS["memory of labels and ArcFace"]
    killed, straight = killed_and_straight(tmp_path, partial(trained, make_head))
    assert digests(killed) == digests(straight)


@pytest.mark.parametrize(("first", "second"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_a_memory_is_taken_up_by_another_number_of_ranks(tmp_path, first, second):
    make_head = HEADS["contrastive memory"]

    def begin(world):
        trained(make_head, tmp_path / "all", world, save_steps=6)

    def end(world):
        state = checkpoint.read(tmp_path / "all" / "step_000006")
        trained(make_head, tmp_path / "end", world, resume=state)

    for size, work in ((first, begin), (second, end)):
        assert run_ranks(size, work, tmp_path / f"ranks{size}") == [0] * size, logs(tmp_path / f"ranks{size}")
    trained(make_head, tmp_path / "one")
    assert largest_difference(tmp_path / "one", tmp_path / "end") < 1e-9


def test_a_memory_of_another_size_is_refused_by_name(tmp_path):
    trained(lambda: memory(Contrastive(), 20), tmp_path / "a", epochs=1)
    state = checkpoint.read(tmp_path / "a", "last")
    with pytest.raises(Exception, match=r"head\.columns: the checkpoint has \(20, 2\), the model \(30, 2\)"):
        trained(lambda: memory(Contrastive(), 30), tmp_path / "b", resume=state)
