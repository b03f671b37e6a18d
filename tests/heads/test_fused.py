"""The fused margin softmax against a plain loop in float64, gradcheck and edge cases."""

import math

import pytest
import torch

from guie.errors import UserError
from guie.heads import fused
from guie.heads.fused import Additive, Angular, Rule, margin_softmax
from guie.heads.margin import ArcFace, CosFace, SubCenterArcFace
from guie.types import Batch, Output

B, D, C = 7, 5, 11


def problem(subcentres=1, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(B, D, generator=random, dtype=dtype)
    weight = torch.randn(subcentres, C, D, generator=random, dtype=dtype)
    labels = torch.randint(0, C, (B,), generator=random)
    return embeddings.requires_grad_(), weight.requires_grad_(), labels


def loop_loss(embeddings, weight, labels, rule):
    """Return the losses (B,) by autograd over scalar operations, from the papers' equations."""
    losses = []
    for b in range(len(embeddings)):
        logits = []
        for c in range(weight.shape[1]):
            cosines = [
                embeddings[b] @ weight[k, c] / (embeddings[b].norm() * weight[k, c].norm())
                for k in range(weight.shape[0])
            ]
            cosine = torch.stack(cosines).max()
            logits.append(rule.scale * (loop_margin(cosine, rule) if c == labels[b] else cosine))
        log_p = torch.stack(logits).log_softmax(0)
        losses.append(-(1 - rule.smoothing) * log_p[labels[b]] - rule.smoothing * log_p.mean())
    return torch.stack(losses)


def loop_margin(cosine, rule):
    m = rule.margin.margin
    if isinstance(rule.margin, Additive):
        return cosine - m
    if cosine <= math.cos(math.pi - m):
        return cosine - m * math.sin(math.pi - m)
    return torch.cos(torch.acos(cosine) + m)


RULES = [
    Rule(Angular(0.5), 30.0),
    Rule(Angular(0.3), 64.0, smoothing=0.1),
    Rule(Additive(0.35), 30.0),
    Rule(Additive(0.0), 16.0, smoothing=0.2),
    Rule(Angular(1.4), 5.0),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("subcentres", [1, 3])
@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
def test_loss_and_gradients_equal_a_float64_loop(rule, subcentres, chunk):
    embeddings, weight, labels = problem(subcentres)
    upstream = torch.linspace(0.5, 2, B, dtype=torch.float64)
    rule = Rule(rule.margin, rule.scale, rule.smoothing, chunk)
    ours = margin_softmax(embeddings, weight, labels, rule).losses
    theirs = loop_loss(embeddings, weight, labels, rule)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours_grad = torch.autograd.grad(ours, (embeddings, weight), upstream)
    theirs_grad = torch.autograd.grad(theirs, (embeddings, weight), upstream)
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", RULES[:3], ids=str)
@pytest.mark.parametrize("chunk", [None, 4])
def test_gradcheck_passes_and_a_second_backward_gives_the_same(rule, chunk):
    embeddings, weight, labels = problem()
    rule = Rule(rule.margin, rule.scale / 10, rule.smoothing, chunk)
    assert torch.autograd.gradcheck(
        lambda e, w: margin_softmax(e, w, labels, rule).losses, (embeddings, weight), nondet_tol=0
    )


def test_many_cache_blocks_equal_one(monkeypatch):
    random = torch.Generator().manual_seed(1)
    embeddings = torch.randn(4, 8, generator=random).requires_grad_()
    weight = torch.randn(2, 1000, 8, generator=random).requires_grad_()
    labels = torch.tensor([0, 255, 256, 999])
    results = []
    for cache_bytes in (1, 1 << 30):
        monkeypatch.setattr(fused, "_CACHE_BYTES", cache_bytes)
        losses = margin_softmax(embeddings, weight, labels, RULES[0]).losses
        results.append((losses.detach(), *torch.autograd.grad(losses.sum(), (embeddings, weight))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_a_large_buffer_is_dropped_without_changing_the_numbers(monkeypatch):
    embeddings, weight, labels = problem(3)
    results = []
    for small in (0, 1 << 20):
        monkeypatch.setattr(fused, "_SMALL_BYTES", small)
        assert fused._keeps_logits(embeddings.repeat(9, 1), weight, None) == (small > 0)
        losses = margin_softmax(embeddings.repeat(9, 1), weight, labels.repeat(9), RULES[1]).losses
        results.append((losses.detach(), *torch.autograd.grad(losses.sum(), (embeddings, weight))))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_float32_stays_close_to_float64():
    embeddings, weight, labels = problem(3)
    exact = margin_softmax(embeddings, weight, labels, RULES[0]).losses
    rough = margin_softmax(embeddings.float(), weight.float(), labels, RULES[0]).losses
    torch.testing.assert_close(rough.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_target_exactly_along_or_against_its_centre_has_finite_gradients(sign):
    weight = torch.eye(3, dtype=torch.float32).requires_grad_()
    embeddings = (sign * 5 * torch.eye(3)[:1]).requires_grad_()
    found = margin_softmax(embeddings, weight, torch.tensor([0]), RULES[0])
    found.losses.sum().backward()
    assert found.cosine.item() == sign
    assert embeddings.grad.isfinite().all() and weight.grad.isfinite().all()
    expected = math.cos(0.5) if sign > 0 else -1 - 0.5 * math.sin(0.5)
    logits = torch.tensor([[30 * expected, 0.0, 0.0]])
    expected_loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0])).item()
    assert found.losses.item() == pytest.approx(expected_loss, rel=1e-4)


def test_a_zero_vector_has_cosine_zero_and_no_gradient():
    embeddings, weight, labels = problem()
    embeddings = torch.cat([torch.zeros(1, D, dtype=torch.float64), embeddings[1:].detach()]).requires_grad_()
    found = margin_softmax(embeddings, weight, labels, RULES[2])
    found.losses.sum().backward()
    assert found.cosine[0] == 0
    assert (embeddings.grad[0] == 0).all() and (embeddings.grad[1:] != 0).any()
    assert weight.grad.isfinite().all()


def test_one_class_costs_nothing():
    embeddings, _, _ = problem()
    weight = torch.ones(1, D, dtype=torch.float64, requires_grad=True)
    found = margin_softmax(embeddings, weight, torch.zeros(B, dtype=torch.int64), RULES[0])
    found.losses.sum().backward()
    torch.testing.assert_close(found.losses, torch.zeros(B, dtype=torch.float64))
    assert embeddings.grad.abs().max() < 1e-12


def test_a_hopeless_logit_does_not_overflow_or_vanish():
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    losses = margin_softmax(
        torch.tensor([[1.0, 0.0]]), weight, torch.tensor([1]), Rule(Additive(0.0), 1000.0)
    ).losses
    assert losses.item() == pytest.approx(2000)


def test_correct_counts_the_target_without_its_margin():
    weight = torch.eye(2)
    found = margin_softmax(torch.tensor([[1.0, 0.9], [0.9, 1.0]]), weight, torch.tensor([0, 0]), RULES[0])
    assert found.correct.tolist() == [True, False]


def test_only_the_winning_sub_centre_receives_gradient():
    embeddings, weight, labels = problem(3)
    margin_softmax(embeddings[:1], weight, labels[:1], RULES[0]).losses.sum().backward()
    touched = (weight.grad.abs().sum(-1) > 0).sum(0)
    assert (touched <= 1).all()


@pytest.mark.parametrize("label", [-1, C])
def test_a_label_out_of_range_is_named(label):
    head = ArcFace(num_classes=C, embed_dim=D)
    with pytest.raises(UserError, match=rf"labels: .*{label}.* received; accepted: 0..10"):
        labels = torch.tensor([0, label])
        head(Output(torch.randn(2, D), None, torch.randn(2, D), None), Batch(labels, labels, labels, labels))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"margin": 28.6}, "head.margin: 28.6 received; accepted: 0 to 1.571 radians"),
        ({"scale": 0.0}, "head.scale: 0.0 received"),
        ({"label_smoothing": 1.5}, "head.label_smoothing: 1.5 received; accepted: 0 to 1"),
        ({"chunk": 0}, "head.chunk: 0 received"),
        ({"init": "normal"}, "head.init: 'normal' received; accepted: xavier, uniform"),
    ],
)
def test_a_parameter_out_of_range_is_named(values, message):
    with pytest.raises(UserError, match=message):
        ArcFace(**values, num_classes=C, embed_dim=D)


@pytest.mark.parametrize("head_class", [ArcFace, CosFace, SubCenterArcFace])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_keeps_the_dtype_of_its_weights_under_autocast(head_class, dtype):
    head = head_class(num_classes=C, embed_dim=D).to(dtype)
    raw = torch.randn(B, D, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(B, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(Output(raw, None, raw, raw), Batch(raw, labels, labels, labels))
        loss.total.backward()
    assert loss.total.dtype == dtype
    assert set(loss.scalars) == {"loss", "accuracy", "target_cosine"}
    exact = head(Output(raw, None, raw.double(), raw), Batch(raw, labels, labels, labels))
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=1e-6)
