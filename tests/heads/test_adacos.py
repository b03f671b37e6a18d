"""AdaCos against loops from the paper, and over two ranks."""

import math

import pytest
import torch
from one_batch import CLASSES, WIDTH, batch_of, loop_losses, output_of, random_case, same_gradients
from torch import distributed, multiprocessing

from guie.errors import UserError
from guie.heads.adacos import AdaCos
from guie.heads.matryoshka import Matryoshka, prefix
from guie.train.model import TrainedModel
from guie.types import Mixed

FACTS = {"num_classes": CLASSES, "embed_dim": WIDTH}


def double(**values):
    torch.manual_seed(0)
    return AdaCos(**values, **FACTS).double()


def next_scale(scale, raw, weight, labels, theta_zero=math.pi / 4):
    """Return the scale that a batch makes, by loops in float64."""
    sums, angles = [], []
    for x, label in zip(raw.tolist(), labels.tolist(), strict=True):
        cosines = []
        for w in weight.tolist():
            length = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in w))
            cosines.append(sum(a * b for a, b in zip(x, w, strict=True)) / length)
        angles.append(math.acos(cosines[label]))
        sums.append(sum(math.exp(scale * c) for k, c in enumerate(cosines) if k != label))
    median = sorted(angles)[(len(angles) - 1) // 2]
    return math.log(sum(sums) / len(sums)) / math.cos(min(theta_zero, median))


def test_the_fixed_scale_is_root_2_times_log_of_the_other_classes():
    head, (raw, labels) = double(dynamic=False), random_case()
    assert head.scale.item() == pytest.approx(math.sqrt(2) * math.log(CLASSES - 1), rel=1e-6)
    before = head.scale.clone()
    theirs = loop_losses(raw, head.weight, labels, lambda c, _: c, before.item()).mean()
    same_gradients(head(output_of(raw), batch_of(labels)).total, theirs, raw, head.weight)
    assert torch.equal(head.scale, before)


@pytest.mark.parametrize("theta_zero", [math.pi / 4, 1.25])
@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("pictures", [9, 10])
def test_the_dynamic_scale_follows_the_paper_over_three_batches(theta_zero, chunk, pictures):
    head = double(theta_zero=theta_zero, chunk=chunk)
    expected = head.scale.item()
    for seed in range(3):
        raw, labels = random_case(seed, pictures=pictures)
        expected = next_scale(expected, raw.detach(), head.weight.detach(), labels, theta_zero)
        head.at_step(seed, 3, 3)
        loss = head(output_of(raw), batch_of(labels))
        assert head.scale.item() == pytest.approx(expected, rel=1e-12)
        theirs = loop_losses(raw, head.weight, labels, lambda c, _: c, expected).mean()
        same_gradients(loss.total, theirs, raw, head.weight)
        assert loss.scalars["scale"].item() == pytest.approx(expected, rel=1e-12)


def two_steps(head, calls):
    """Return what the scale is after two steps of calls (raw, weight, labels), the mean of each step's."""
    expected = head.scale.item()
    for _ in range(2):
        scales = [next_scale(expected, *(value.detach() for value in call)) for call in calls]
        expected = sum(scales) / len(scales)
    return expected, scales


def test_micro_batches_move_the_scale_once_a_step_by_the_mean_of_theirs():
    head, (raw, labels) = double(), random_case(pictures=10)
    pieces = [(raw[i : i + 5], labels[i : i + 5]) for i in (0, 5)]
    expected, _ = two_steps(head, [(x, head.weight, y) for x, y in pieces])
    for step in range(2):
        head.at_step(step, 2, 2)
        for x, y in pieces:
            head(output_of(x), batch_of(y))
    assert head.scale.item() == pytest.approx(expected, rel=1e-12)


def test_tied_prefixes_move_the_scale_once_a_step_by_the_mean_of_theirs():
    wrapped = Matryoshka(lambda embed_dim: double(), [2, 4, WIDTH], tied=True, embed_dim=WIDTH)
    (inner,), (raw, labels) = wrapped.heads.values(), random_case()
    expected, scales = two_steps(
        inner, [(raw[:, :dim], inner.weight[:, :dim], labels) for dim in wrapped.dims]
    )
    for step in range(2):
        inner.at_step(step, 2, 2)
        loss = wrapped(output_of(raw), batch_of(labels))
    assert inner.scale.item() == pytest.approx(expected, rel=1e-12)
    theirs = 0
    for dim, scale in zip(wrapped.dims, scales, strict=True):
        cut = prefix(output_of(raw), dim).raw
        theirs = theirs + loop_losses(cut, inner.weight[:, :dim], labels, lambda c, _: c, scale).mean()
    same_gradients(loss.total, theirs, raw, inner.weight)


def test_mixed_labels_move_the_scale_once_a_step_by_the_mean_of_theirs():
    head, (raw, labels) = double(), random_case()
    other = labels.flip(0)
    expected, scales = two_steps(head, [(raw, head.weight, labels), (raw, head.weight, other)])
    batch = batch_of(labels)
    batch.mixed = Mixed(other, batch.domains, batch.ids, torch.tensor(0.7, dtype=torch.float64))
    model = TrainedModel(torch.nn.Identity(), head, None, features=False)
    for step in range(2):
        head.at_step(step, 2, 2)
        loss = model.loss(output_of(raw), batch)
    assert head.scale.item() == pytest.approx(expected, rel=1e-12)
    both = [
        loop_losses(raw, head.weight, y, lambda c, _: c, scale).mean()
        for y, scale in zip((labels, other), scales, strict=True)
    ]
    same_gradients(loss.total, 0.7 * both[0] + 0.3 * both[1], raw, head.weight)


def test_a_small_median_angle_is_used_instead_of_theta_zero():
    head = double()
    raw, labels = random_case()
    raw = (head.weight[labels] + 0.1 * raw).detach().requires_grad_()
    expected = next_scale(head.scale.item(), raw.detach(), head.weight.detach(), labels)
    clipped = next_scale(head.scale.item(), raw.detach(), head.weight.detach(), labels, 0.01)
    head(output_of(raw), batch_of(labels))
    assert head.scale.item() == pytest.approx(expected, rel=1e-12)
    assert abs(expected - clipped) > 1e-3


def test_each_loss_is_differentiated_at_its_own_scale_though_another_batch_came_between():
    raw, labels = random_case()
    alone, between = double(), double()
    (expected,) = torch.autograd.grad(alone(output_of(raw), batch_of(labels)).total, raw)
    total = between(output_of(raw), batch_of(labels)).total
    other, others = random_case(seed=8)
    between(output_of(other), batch_of(others))
    torch.testing.assert_close(torch.autograd.grad(total, raw)[0], expected, rtol=0, atol=0)


def test_the_scale_is_in_the_checkpoint_and_stays_in_evaluation():
    head, (raw, labels) = double(), random_case()
    head(output_of(raw), batch_of(labels))
    again = double()
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.scale, head.scale)
    again.eval()(output_of(raw), batch_of(labels))
    assert torch.equal(again.scale, head.scale)
    head.at_step(1, 2, 2)
    first = head(output_of(raw), batch_of(labels)).total
    torch.testing.assert_close(again.train()(output_of(raw), batch_of(labels)).total, first, rtol=0, atol=0)


def test_the_scale_stays_above_zero_where_all_other_classes_are_far():
    head = AdaCos(num_classes=3, embed_dim=2)
    head.weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]))
    raw, labels = torch.tensor([[1.0, 0.0]]).expand(4, 2), torch.zeros(4, dtype=torch.int64)
    for step in range(3):
        head.at_step(step, 3, 3)
        loss = head(output_of(raw), batch_of(labels))
        assert head.scale > 0 and loss.total.isfinite()


def test_gradcheck_passes_at_a_fixed_scale():
    head, (raw, labels) = double(dynamic=False, label_smoothing=0.1), random_case()
    assert torch.autograd.gradcheck(lambda e: head(output_of(e), batch_of(labels)).total, raw)


def test_two_classes_are_refused_and_a_theta_without_a_cosine_is_named():
    with pytest.raises(UserError, match="AdaCos with 2 classes; accepted: 3 or more"):
        AdaCos(num_classes=2, embed_dim=4)
    with pytest.raises(UserError, match=r"head.theta_zero: 1.6 received; accepted: 0 to 1.5"):
        AdaCos(theta_zero=1.6, **FACTS)


def _on_a_rank(rank, address, results):
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    head, (raw, labels) = double(), random_case(pictures=10)
    mine = raw.detach()[rank * 5 : rank * 5 + 5].requires_grad_()
    for step in range(2):
        head.at_step(step, 2, 2)
        loss = head(output_of(mine), batch_of(labels[rank * 5 : rank * 5 + 5]))
    gradients = torch.autograd.grad(loss.total, (mine, head.weight))
    results.put((rank, head.scale.item(), *(g.tolist() for g in gradients)))
    distributed.destroy_process_group()


def test_two_ranks_keep_the_scale_of_the_whole_batch(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    arguments = (f"file://{tmp_path}/meeting", results)
    ranks = [context.Process(target=_on_a_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = sorted(results.get() for _ in ranks)
    for process in ranks:
        process.join()
    head, (raw, labels) = double(), random_case(pictures=10)
    for step in range(2):
        head.at_step(step, 2, 2)
        loss = head(output_of(raw), batch_of(labels))
    of_raw, of_weight = torch.autograd.grad(loss.total, (raw, head.weight))
    assert found[0][1] == found[1][1] == pytest.approx(head.scale.item(), rel=1e-12)
    parts = torch.tensor(found[0][2] + found[1][2], dtype=torch.float64)
    torch.testing.assert_close(parts / 2, of_raw)  # DDP divides by the ranks
    mean = torch.tensor([found[0][3], found[1][3]], dtype=torch.float64).mean(0)
    torch.testing.assert_close(mean, of_weight)
