"""L-softmax against a loop from the paper, another library, and its annealing."""

import math

import pytest
import torch
from one_batch import CLASSES, WIDTH, batch_of, cross_entropy, output_of, random_case, same_gradients

from guie.errors import UserError
from guie.heads.large_margin import LSoftmax

FACTS = {"num_classes": CLASSES, "embed_dim": WIDTH}


def double(**values):
    torch.manual_seed(0)
    head = LSoftmax(**values, **FACTS).double()
    head.weight.data.mul_(3)
    return head


def psi(angle, m):
    k = min(int(angle.item() * m / math.pi), m - 1)
    return (-1) ** k * torch.cos(m * angle) - 2 * k


def loop_mean(raw, weight, labels, m, beta, smoothing):
    losses = []
    for x, label in zip(raw, labels.tolist(), strict=True):
        logits = [x @ w for w in weight]
        length = x.norm() * weight[label].norm()
        angle = torch.acos(logits[label] / length)
        logits[label] = (beta * logits[label] + length * psi(angle, m)) / (1 + beta)
        losses.append(cross_entropy(logits, label, smoothing))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("margin", [2, 3, 4])
@pytest.mark.parametrize(("beta", "smoothing"), [(0.0, 0.0), (5.0, 0.1)])
def test_loss_and_gradients_equal_a_float64_loop_and_pass_gradcheck(margin, beta, smoothing):
    raw, labels = random_case(pictures=30)
    head = double(margin=margin, beta=beta, label_smoothing=smoothing)
    theirs = loop_mean(raw, head.weight, labels, margin, beta, smoothing)
    same_gradients(head(output_of(raw), batch_of(labels)).total, theirs, raw, head.weight)
    assert torch.autograd.gradcheck(lambda e: head(output_of(e), batch_of(labels)).total, raw)


@pytest.mark.parametrize("margin", [2, 3, 4])
def test_psi_is_continuous_and_falls_from_1_to_1_minus_2_margin(margin):
    cosine = torch.linspace(1, -1, 2001, dtype=torch.float64)
    values = LSoftmax(margin, **FACTS)._psi(cosine)
    assert values[0] == 1 and values[-1] == 1 - 2 * margin
    steps = values.diff()
    assert (steps < 1e-12).all() and (steps > -0.02 * margin).all()


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # its scipy.special.binom of a tensor
@pytest.mark.parametrize("margin", [2, 3, 4])
def test_without_annealing_the_values_are_those_of_pytorch_metric_learning(margin):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    raw, labels = random_case(pictures=30)
    head = double(margin=margin, beta=0.0)
    peer = losses.LargeMarginSoftmaxLoss(num_classes=CLASSES, embedding_size=WIDTH, margin=margin)
    peer.W = torch.nn.Parameter(head.weight.detach().t().clone())
    ours, theirs = head(output_of(raw), batch_of(labels)).total, peer(raw, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # its table of binomials is float32
    gradients = torch.autograd.grad(ours, raw)[0], torch.autograd.grad(theirs, raw)[0]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_beta_decays_with_the_step_alone_and_not_below_its_least():
    head = LSoftmax(beta=100.0, decay=0.99, least_beta=5.0, **FACTS)
    found = []
    for step in (0, 1, 100, 5000, 100):
        head.at_step(step, 10_000, 10)
        found.append(head.mixed_in)
    assert found == pytest.approx([100, 99, 100 * 0.99**100, 5, 100 * 0.99**100])
    assert set(head.state_dict()) == {"weight"}


def test_a_zero_vector_has_a_finite_gradient():
    raw = torch.zeros(2, WIDTH, requires_grad=True)
    head = LSoftmax(beta=0.0, **FACTS)
    loss = head(output_of(raw), batch_of(torch.zeros(2, dtype=torch.int64))).total
    loss.backward()
    assert loss.isfinite() and raw.grad.isfinite().all() and head.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"margin": 1}, r"head.margin: 1 received; accepted: 2, 3, 4"),
        ({"beta": -1.0}, r"head.beta: -1.0 received"),
        ({"decay": 1.1}, r"head.decay: 1.1 received; accepted: 0 to 1"),
        ({"beta": 1.0, "least_beta": 2.0}, r"head.least_beta: 2.0 received; accepted: 0 to 1"),
        ({"label_smoothing": 2.0}, r"head.label_smoothing: 2.0 received"),
    ],
)
def test_a_parameter_out_of_range_is_named(values, message):
    with pytest.raises(UserError, match=message):
        LSoftmax(**values, **FACTS)
