"""Partial FC in one process: ArcFace where every class counts, else a loop over the drawn classes."""

import pytest
import torch

from guie.errors import UserError
from guie.heads import sharded
from guie.heads.margin import ArcFace, CosFace
from guie.heads.margin_by import ByEpoch
from guie.heads.sharded import PartialFC, Shard, coins, initial_rows, own_shard
from guie.types import Batch, Output

B, D, C = 6, 5, 40
CPU = torch.device("cpu")


def problem(seed=0):
    random = torch.Generator().manual_seed(seed)
    raw = torch.randn(B, D, generator=random, dtype=torch.float64).requires_grad_()
    return raw, torch.randint(0, C, (B,), generator=random)


def head_of(made=PartialFC, **arguments):
    torch.manual_seed(1)
    return made(**arguments, num_classes=C, embed_dim=D).double()


def loss_of(head, raw, labels):
    return head(Output(raw, None, raw, raw), Batch(labels, labels, labels, labels))


@pytest.mark.parametrize(("kind", "plain"), [("arcface", ArcFace), ("cosface", CosFace)])
@pytest.mark.parametrize(
    "arguments", [{}, {"label_smoothing": 0.1, "focal": 2.0}, {"chunk": 7, "init": "uniform"}], ids=str
)
def test_with_one_rank_and_every_class_it_is_the_plain_head_to_the_bit(kind, plain, arguments):
    raw, labels = problem()
    theirs = head_of(plain, margin=0.4, **arguments)
    ours = head_of(kind=kind, margin=0.4, **arguments)
    assert torch.equal(ours.weight, theirs.weight)
    found, expected = loss_of(ours, raw, labels), loss_of(theirs, raw, labels)
    assert found.scalars == expected.scalars
    grads = [
        torch.autograd.grad(loss.total, (raw, head.weight))
        for loss, head in ((found, ours), (expected, theirs))
    ]
    assert all(torch.equal(mine, other) for mine, other in zip(*grads, strict=True))


def splitmix(value):
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def coin(seed, step, number):
    golden = 0x9E3779B97F4A7C15
    of_step = splitmix((splitmix((seed + golden) % 2**64) + step) % 2**64)
    return (splitmix(((number + 1) * golden + of_step) % 2**64) >> 11) / 2**53


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (7, 3), (-5, 10**6)])
def test_coins_are_a_function_of_seed_step_and_class_whatever_the_block(seed, step):
    whole = coins(Shard(0, C, C), seed, step, CPU)
    assert whole.tolist() == [coin(seed, step, number) for number in range(C)]
    assert torch.equal(coins(Shard(11, 29, C), seed, step, CPU), whole[11:29])


def test_coins_are_uniform_and_independent_of_those_of_the_next_step():
    a, b = (coins(Shard(0, 100_000, 100_000), 0, step, CPU) for step in (4, 5))
    counts = torch.histc(a, 20, 0, 1)
    assert float(((counts - 5000).square() / 5000).sum()) < 50  # chi-squared of 19 degrees of freedom
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([a[1:], a[:-1]]))[0, 1])) < 0.02


def drawn_loss(raw, weight, labels, counted, head):
    """Return the mean loss over the counted classes, by autograd over scalar operations."""
    losses = []
    for row, label in zip(raw, labels.tolist(), strict=True):
        logits = []
        for c in counted:
            cosine = row @ weight[c] / (row.norm() * weight[c].norm())
            logits.append(head.rule.scale * (torch.cos(torch.acos(cosine) + 0.5) if c == label else cosine))
        log_p, smoothing = torch.stack(logits).log_softmax(0), head.rule.smoothing
        losses.append(-(1 - smoothing) * log_p[counted.index(label)] - smoothing * log_p.mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("step", [0, 9])
def test_a_sampled_loss_equals_a_loop_over_the_batchs_classes_and_the_drawn_ones(smoothing, step):
    raw, labels = problem()
    head = head_of(sample_rate=0.3, seed=2, label_smoothing=smoothing)
    head.at_step(step, 20, 5)
    counted = [c for c in range(C) if c in labels.tolist() or coin(2, step, c) < 0.3]
    assert len(set(labels.tolist())) < len(counted) < C
    found, expected = loss_of(head, raw, labels).total, drawn_loss(raw, head.weight, labels, counted, head)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, (raw, head.weight)) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    left_out = [c for c in range(C) if c not in counted]
    assert not ours[1][left_out].any()


def test_a_draw_of_nothing_counts_the_batchs_classes_alone():
    raw, labels = problem()
    head = head_of(sample_rate=1e-6)
    expected = drawn_loss(raw, head.weight, labels, sorted(set(labels.tolist())), head)
    torch.testing.assert_close(loss_of(head, raw, labels).total, expected)


def test_the_margin_may_change_by_epoch():
    raw, labels = problem()
    head, plain = head_of(margin_by={"epoch": ByEpoch(2)}), head_of(ArcFace, margin=0.25)
    for part in head.modules():
        if hasattr(part, "at_step"):
            part.at_step(5, 20, 5)
    torch.testing.assert_close(loss_of(head, raw, labels).total, loss_of(plain, raw, labels).total)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_blocks_of_first_weights_put_together_are_those_of_arcface(ranks, monkeypatch):
    monkeypatch.setattr(sharded, "_DRAWN_AT_ONCE", 16)
    blocks, ends = [], []
    for rank in range(ranks):
        torch.manual_seed(1)
        shard = Shard(C * rank // ranks, C * (rank + 1) // ranks, C)
        blocks.append(initial_rows(shard, D, "xavier"))
        ends.append(float(torch.rand(())))
    assert torch.equal(torch.cat(blocks).double(), head_of(ArcFace).weight)
    assert set(ends) == {float(torch.rand(()))}


def test_more_ranks_than_classes_are_refused(monkeypatch):
    monkeypatch.setattr(sharded, "num_ranks", lambda: 8)
    monkeypatch.setattr(sharded.distributed, "get_rank", lambda: 7)
    with pytest.raises(
        UserError, match=r"head: 7 classes cannot be cut over 8 ranks; accepted: a world size"
    ):
        own_shard(7)
    assert own_shard(8) == Shard(7, 8, 8)
    assert own_shard(13) == Shard(11, 13, 13)


def test_a_head_made_before_the_ranks_have_joined_is_refused(monkeypatch):
    raw, labels = problem()
    head = head_of()
    monkeypatch.setattr(sharded, "num_ranks", lambda: 2)
    with pytest.raises(
        UserError, match=r"head: cut for 1 rank\(s\), used by 2; accepted: a head that is made"
    ):
        loss_of(head, raw, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "sphere"}, "head.kind: 'sphere' received; accepted: arcface, cosface"),
        ({"sample_rate": 0.0}, "head.sample_rate: 0.0 received; accepted: 1e-06 to 1"),
        ({"sample_rate": 1.5}, "head.sample_rate: 1.5 received"),
        ({"margin": 3.0}, "head.margin: 3.0 received"),
        ({"init": "he"}, "head.init: 'he' received"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        head_of(**arguments)


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("label", [-1, C])
def test_a_label_out_of_range_is_named(rate, label):
    raw, labels = problem()
    labels[2] = label
    with pytest.raises(UserError, match=rf"labels: .*{label}.* received; accepted: 0..{C - 1}"):
        loss_of(head_of(sample_rate=rate), raw, labels)
