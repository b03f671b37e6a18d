"""Cross-batch memory against pytorch-metric-learning's and against a loop over everything remembered."""

import pytest
import torch
from head_cases import batch_of, distance, equal_with_gradients, mean, output_of
from torch.nn.functional import normalize

from guie.errors import UserError
from guie.heads.classifier import Softmax
from guie.heads.contrastive import Contrastive, MultiSimilarity, SupCon
from guie.heads.memory import CrossBatchMemory
from guie.heads.triplet import Triplet
from guie.types import Mixed

BATCH, WIDTH = 6, 5
HEADS = [Contrastive(), SupCon(), MultiSimilarity(epsilon=None), Triplet(0.3)]


def memory_of(head, size, **options):
    return CrossBatchMemory(head, size, **options, embed_dim=WIDTH).double()


def steps(count, classes=4, pictures=100):
    """Yield raw vectors, labels and ids of `count` batches."""
    random = torch.Generator().manual_seed(5)
    for _ in range(count):
        raw = torch.randn(BATCH, WIDTH, generator=random, dtype=torch.float64).requires_grad_()
        ids = torch.randint(0, pictures, (BATCH,), generator=random)
        yield raw, ids % classes, ids


@pytest.mark.parametrize("size", [6, 20, 100])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_every_step_equals_the_memory_of_pytorch_metric_learning(head, size):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses

    named = {
        Contrastive: losses.ContrastiveLoss(),
        SupCon: losses.SupConLoss(),
        MultiSimilarity: losses.MultiSimilarityLoss(),
        Triplet: losses.TripletMarginLoss(0.3),
    }
    theirs = losses.CrossBatchMemory(named[type(head)], WIDTH, size)
    ours = memory_of(head, size)
    for raw, labels, ids in steps(8):
        # Their memory keeps what it is given, and their distance normalises both.
        expected = theirs(normalize(raw), labels)
        equal_with_gradients(ours(output_of(raw), batch_of(labels, ids)).total, expected, raw)


def remembered_loop(z, labels, ids, seen, drop):
    """Return the contrastive loss of a batch with `seen`, (z, label, id, step) in order of storing."""
    pull, push, now = [], [], seen[-1][3]
    first = len(seen) - len(z)
    for i in range(len(z)):
        for place, (other, label, number, step) in enumerate(seen):
            if place == first + i or (drop and number == ids[i] and step != now):
                continue
            d = distance(z[i], other)
            (pull if label == labels[i] else push).append(d if label == labels[i] else torch.relu(1 - d))
    return mean([v for v in pull if v > 0]) + mean([v for v in push if v > 0])


@pytest.mark.parametrize("same_id", ["positive", "drop"])
@pytest.mark.parametrize("size", [7, 15])
def test_it_equals_a_loop_over_what_is_remembered(same_id, size):
    ours, seen, differs = memory_of(Contrastive(), size, same_id=same_id), [], False
    for step, (raw, labels, ids) in enumerate(steps(6, pictures=9)):
        z = normalize(raw)
        seen += [(z[i].detach(), labels[i], ids[i], step) for i in range(BATCH)]
        seen = seen[-size:]
        expected = remembered_loop(z, labels, ids, seen, same_id == "drop")
        equal_with_gradients(ours(output_of(raw), batch_of(labels, ids)).total, expected, raw)
        other = remembered_loop(z, labels, ids, seen, same_id != "drop")
        differs |= bool((other - expected).abs() > 1e-3)
    assert differs  # the option matters for these batches


def test_positives_by_id_are_earlier_views_of_the_same_picture():
    labels = torch.zeros(BATCH, dtype=torch.int64)
    by_id, by_label = memory_of(Contrastive(by="id"), 20), memory_of(Contrastive(), 20)
    for raw, _, ids in steps(4, pictures=9):
        loss = by_id(output_of(raw), batch_of(labels, ids)).total
        assert loss == by_label(output_of(raw), batch_of(ids, ids)).total


def test_before_its_first_step_the_head_sees_the_batch_alone_while_the_queue_fills():
    head = memory_of(Contrastive(), 20, start_step=2)
    for step, (raw, labels, ids) in enumerate(steps(4)):
        head.at_step(step, 10, 5)
        alone = Contrastive()(output_of(raw), batch_of(labels, ids)).total
        assert (head(output_of(raw), batch_of(labels, ids)).total == alone) == (step < 2)
        assert head.num_stored == (step + 1) * BATCH


def test_the_oldest_entries_are_overwritten_in_order():
    head = memory_of(Contrastive(), 8)
    for raw, labels, ids in steps(2):
        head(output_of(raw), batch_of(labels, ids))
        last = normalize(raw.detach()), torch.stack([labels, ids], 1)
    places = torch.tensor([6, 7, 0, 1, 2, 3])
    assert torch.equal(head.vectors[places], last[0])
    assert torch.equal(head.columns[places], last[1])


def test_the_memory_is_saved_and_taken_up_in_the_middle():
    straight, first, second = (memory_of(SupCon(), 20) for _ in range(3))
    for step, (raw, labels, ids) in enumerate(steps(6)):
        half = first if step < 3 else second
        expected = straight(output_of(raw), batch_of(labels, ids)).total
        assert half(output_of(raw), batch_of(labels, ids)).total == expected
        if step == 2:
            second.load_state_dict(first.state_dict())
    assert set(straight.state_dict()) == {"vectors", "columns", "num_stored"}
    assert not list(straight.parameters())


def test_evaluation_leaves_the_memory_alone():
    head = memory_of(Contrastive(), 20).eval()
    raw, labels, ids = next(steps(1))
    assert (
        head(output_of(raw), batch_of(labels, ids)).total
        == Contrastive()(output_of(raw), batch_of(labels)).total
    )
    assert head.num_stored == 0


def test_a_later_batch_does_not_disturb_an_earlier_backward_pass():
    head = memory_of(Contrastive(), 6)
    (first, labels, ids), (second, *others) = steps(2)
    loss = head(output_of(first), batch_of(labels, ids)).total
    (expected,) = torch.autograd.grad(loss, first, retain_graph=True)
    head(output_of(second), batch_of(*others))
    assert torch.equal(torch.autograd.grad(loss, first)[0], expected)


def test_what_cannot_be_is_named():
    raw, labels, ids = next(steps(1))
    with pytest.raises(UserError, match=r"head\.head: Softmax received; accepted: .*Contrastive, Multi"):
        memory_of(Softmax(num_classes=2, embed_dim=WIDTH), 9)
    with pytest.raises(UserError, match=r"head\.size: 5 received; accepted: at least the batch of 6"):
        memory_of(Contrastive(), 5)(output_of(raw), batch_of(labels))
    with pytest.raises(UserError, match=r"head\.size: 0 received; accepted: 1 or more"):
        memory_of(Contrastive(), 0)
    with pytest.raises(UserError, match=r"head\.same_id: 'keep' received; accepted: positive, drop"):
        memory_of(Contrastive(), 9, same_id="keep")
    batch = batch_of(labels, ids)
    batch.mixed = Mixed(labels, labels, ids, torch.tensor(0.5))
    with pytest.raises(UserError, match=r"mixup_alpha above 0; accepted: one of the two"):
        memory_of(Contrastive(), 9)(output_of(raw), batch)
