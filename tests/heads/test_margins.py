"""Margins by class, by epoch and combined; focal factor, fixed centres; against loops and another library."""

import math

import numpy as np
import pytest
import torch
from one_batch import CLASSES, WIDTH, batch_of, loop_losses, output_of, random_case, same_gradients

from guie.errors import UserError
from guie.heads.classifier import Softmax
from guie.heads.combined import Combined, CombinedMargin
from guie.heads.fused import Additive, Angular, Rule, margin_softmax
from guie.heads.margin import ArcFace, CosFace, SubCenterArcFace
from guie.heads.margin_by import ByEpoch, BySize
from guie.heads.reduction import focal_losses

FACTS = {"num_classes": CLASSES, "embed_dim": WIDTH}
COUNTS = np.array([1, 4, 16, 81, 1000])


def arc(cosine, margin):
    if cosine <= math.cos(math.pi - margin):
        return cosine - margin * math.sin(math.pi - margin)
    return torch.cos(torch.acos(cosine) + margin)


def double(head_class, *arguments, **values):
    torch.manual_seed(0)
    return head_class(*arguments, **values, **FACTS).double()


@pytest.mark.parametrize("head_class", [ArcFace, CosFace, SubCenterArcFace])
def test_a_class_of_n_pictures_has_the_margin_a_times_n_to_the_power_plus_b(head_class):
    raw, labels = random_case()
    values = {"k": 1} if head_class is SubCenterArcFace else {}
    by = {"size": BySize(0.25, 0.05, class_counts=COUNTS)}
    head = double(head_class, margin=0.5, scale=8.0, margin_by=by, **values)
    weight = head.weight.reshape(CLASSES, WIDTH)
    margins = [0.5 * float(np.float32(n**-0.25)) + 0.05 for n in COUNTS]
    with_margin = (
        (lambda c, y: c - margins[y]) if head_class is CosFace else (lambda c, y: arc(c, margins[y]))
    )
    theirs = loop_losses(raw, weight, labels, with_margin, 8.0).mean()
    same_gradients(head(output_of(raw), batch_of(labels)).total, theirs, raw, head.weight)


def test_the_margin_grows_by_epoch_and_is_a_function_of_the_step():
    part = ByEpoch(epochs=4, first=0.2)
    assert part(0.5, None) == pytest.approx(0.1)
    found = []
    for step in (0, 9, 10, 25, 39, 40, 99):
        part.at_step(step, 100, 10)
        found.append(part(1.0, None))
    assert found == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    part.at_step(25, 100, 10)
    assert part(1.0, None) == pytest.approx(0.6)
    assert not part.state_dict()


def test_margins_by_class_and_epoch_follow_each_other():
    by = {"size": BySize(class_counts=COUNTS), "epoch": ByEpoch(epochs=2)}
    head = double(ArcFace, margin=0.5, margin_by=by)
    assert set(head.state_dict()) == {"weight"}
    raw, labels = random_case()
    plain = double(ArcFace, margin=0.0)
    plain.load_state_dict(head.state_dict())
    first = head(output_of(raw), batch_of(labels)).total
    torch.testing.assert_close(first, plain(output_of(raw), batch_of(labels)).total)
    for part in head.modules():
        if hasattr(part, "at_step"):
            part.at_step(10, 20, 10)
    half = head.margins(labels)
    torch.testing.assert_close(
        half, 0.5 * (0.5 * torch.from_numpy(COUNTS**-0.25)[labels] + 0.05), rtol=1e-6, atol=0
    )


def test_equal_margins_of_all_pictures_give_the_bits_of_one_margin():
    raw, labels = random_case()
    weight = torch.randn(CLASSES, WIDTH, dtype=torch.float64)
    for kind in (Angular, Additive):
        one = margin_softmax(raw, weight, labels, Rule(kind(0.5), 30.0)).losses
        each = margin_softmax(
            raw, weight, labels, Rule(kind(torch.full((9,), 0.5, dtype=torch.float64)), 30.0)
        )
        torch.testing.assert_close(each.losses, one, rtol=1e-14, atol=0)


def test_a_label_out_of_range_is_named_before_its_margin_is_looked_up():
    head = ArcFace(margin_by={"size": BySize(class_counts=COUNTS)}, **FACTS)
    raw, labels = random_case(dtype=torch.float32)
    with pytest.raises(UserError, match=r"labels: .*5 received; accepted: 0\.\.4"):
        head(output_of(raw), batch_of(torch.full_like(labels, 5)))


@pytest.mark.parametrize(
    "margins", [(1.0, 0.3, 0.2), (0.9, 0.4, 0.15), (1.35, 0.0, 0.0), (2.0, 0.5, 0.1)], ids=str
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_combined_margin_equals_a_loop_and_passes_gradcheck(margins, smoothing):
    m1, m2, m3 = margins
    last = min((math.pi - m2) / m1, math.pi)

    def with_margin(cosine, _):
        angle = torch.acos(cosine)
        if angle < last:
            return torch.cos(m1 * angle + m2) - m3
        return cosine - (math.pi - last) * math.sin(last) - m3

    raw, labels = random_case()
    head = double(CombinedMargin, 8.0, *margins, label_smoothing=smoothing)
    theirs = loop_losses(raw, head.weight, labels, with_margin, 8.0, smoothing).mean()
    same_gradients(head(output_of(raw), batch_of(labels)).total, theirs, raw, head.weight)
    rule = Rule(Combined(*margins), 3.0, smoothing)
    assert torch.autograd.gradcheck(
        lambda e, w: margin_softmax(e, w, labels, rule).losses, (raw, head.weight)
    )


@pytest.mark.parametrize(
    ("combined", "one"),
    [(Combined(1, 0.5, 0), Angular(0.5)), (Combined(1, 0, 0.35), Additive(0.35))],
    ids=str,
)
def test_the_combined_margin_holds_arcface_and_cosface(combined, one):
    cosine = torch.linspace(-0.999, 0.999, 101, dtype=torch.float64)
    torch.testing.assert_close(combined(cosine), one(cosine))


def test_the_slope_of_the_combined_margin_is_finite_at_both_ends():
    for cosine in (torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0], dtype=torch.float64)):
        value, slope = Combined(0.9, 0.4, 0.15)(cosine)
        assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_focal_factor_equals_a_loop_with_margin_and_without(gamma, smoothing):
    raw, labels = random_case()
    head = double(ArcFace, 8.0, 0.5, smoothing, focal=gamma)
    losses = loop_losses(raw, head.weight, labels, lambda c, _: arc(c, 0.5), 8.0, smoothing)
    theirs = torch.stack([(1 - torch.exp(-loss)) ** gamma * loss for loss in losses]).mean()
    same_gradients(head(output_of(raw), batch_of(labels)).total, theirs, raw, head.weight)
    plain = double(Softmax, smoothing, focal=gamma)
    share = plain.linear(raw).log_softmax(1)
    losses = -(1 - smoothing) * share[torch.arange(len(raw)), labels] - smoothing * share.mean(1)
    theirs = ((1 - torch.exp(-losses)) ** gamma * losses).mean()
    same_gradients(plain(output_of(raw), batch_of(labels)).total, theirs, raw, plain.linear.weight)


def test_the_focal_factor_of_a_certain_picture_is_finite():
    losses = torch.tensor([0.0, -1e-7, 1e-30, 90.0], requires_grad=True)
    found = focal_losses(losses, 0.5)
    found.sum().backward()
    assert found.isfinite().all() and losses.grad.isfinite().all()
    assert found[3] == 90


def test_no_focal_factor_and_gamma_0_are_the_same_bits():
    raw, labels = random_case()
    with_0, without = double(ArcFace, focal=0.0), double(ArcFace)
    assert with_0(output_of(raw), batch_of(labels)).total == without(output_of(raw), batch_of(labels)).total


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_centres_from_a_file_are_used_and_stay(tmp_path, suffix):
    vectors = np.random.default_rng(0).normal(size=(CLASSES, WIDTH)).astype(np.float32)
    path = tmp_path / f"centres.{suffix}"
    if suffix == "npy":
        np.save(path, vectors)
    else:
        from safetensors.numpy import save_file

        save_file({"centres": vectors}, path)
    head = ArcFace(centres=str(path), **FACTS)
    raw, labels = random_case(dtype=torch.float32)
    head(output_of(raw), batch_of(labels)).total.backward()
    assert not [p for p in head.parameters() if p.requires_grad]
    assert raw.grad.abs().sum() > 0
    assert torch.equal(head.state_dict()["weight"], torch.from_numpy(vectors))


@pytest.mark.parametrize(
    ("name", "vectors", "message"),
    [
        ("absent.npy", None, "head.centres: there is no file '.*absent.npy'; accepted: .npy, .safetensors"),
        ("c.npy", np.zeros((2, WIDTH)), r"head.centres: .* holds \(2, 6\); accepted: \(5, 6\)"),
        ("c.npy", np.full((CLASSES, WIDTH), np.nan), "holds values that are not finite"),
        ("c.npy", np.array([object()]), "cannot be read"),
        ("c.txt", np.zeros(1), "head.centres: 'c.txt' received; accepted: .npy, .safetensors"),
    ],
)
def test_a_file_of_centres_that_cannot_be_used_is_named(tmp_path, name, vectors, message):
    if vectors is not None:
        with (tmp_path / name).open("wb") as file:
            np.save(file, vectors)
    with pytest.raises(UserError, match=message):
        ArcFace(centres=str(tmp_path / name), **FACTS)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ArcFace(focal=-1.0, **FACTS), "head.focal: -1.0 received; accepted: 0"),
        (
            lambda: BySize(power=2.0, class_counts=COUNTS),
            "head.margin_by.power: 2.0 received; accepted: 0 to 1",
        ),
        (lambda: ByEpoch(epochs=0), "head.margin_by.epochs: 0 received; accepted: 1 or more"),
        (lambda: ByEpoch(first=2.0), "head.margin_by.first: 2.0 received; accepted: 0 to 1"),
        (lambda: CombinedMargin(m1=0.0, **FACTS), "head.m1: 0.0 received; accepted: 0.5 to 4"),
    ],
)
def test_a_parameter_out_of_range_is_named(build, message):
    with pytest.raises(UserError, match=message):
        build()


PML = {
    "ArcFaceLoss": (ArcFace, {"scale": 64.0, "margin": 0.5}, {"scale": 64, "margin": math.degrees(0.5)}),
    "CosFaceLoss": (CosFace, {"scale": 64.0, "margin": 0.35}, {"scale": 64, "margin": 0.35}),
    "NormalizedSoftmaxLoss": (CosFace, {"scale": 20.0, "margin": 0.0}, {"temperature": 0.05}),
    "SubCenterArcFaceLoss": (
        SubCenterArcFace,
        {"k": 3, "scale": 64.0, "margin": 0.5},
        {"scale": 64, "margin": math.degrees(0.5), "sub_centers": 3},
    ),
}


@pytest.mark.parametrize("name", PML)
def test_values_and_gradients_are_those_of_pytorch_metric_learning(name):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    head_class, values, theirs = PML[name]
    raw, labels = random_case(pictures=24)
    head = double(head_class, **values)
    peer = getattr(losses, name)(num_classes=CLASSES, embedding_size=WIDTH, **theirs)
    rows = head.weight.detach()
    # sub-centres of one class lie side by side there
    side_by_side = rows.permute(1, 0, 2).reshape(-1, WIDTH) if rows.dim() == 3 else rows
    peer.W = torch.nn.Parameter(side_by_side.t().clone())
    ours, expected = head(output_of(raw), batch_of(labels)).total, peer(raw, labels)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0)
    gradients = torch.autograd.grad(ours, (raw, head.weight))
    of_raw, of_weight = torch.autograd.grad(expected, (raw, peer.W))
    torch.testing.assert_close(gradients[0], of_raw, rtol=1e-6, atol=1e-9)
    ordered = gradients[1].permute(1, 0, 2).reshape(-1, WIDTH) if rows.dim() == 3 else gradients[1]
    torch.testing.assert_close(ordered, of_weight.t(), rtol=1e-6, atol=1e-9)
