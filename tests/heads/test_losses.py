"""Heads against the values of pytorch-metric-learning and against loops written from the papers."""

import json
import math

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from guie.errors import UserError
from guie.heads.classifier import Softmax
from guie.heads.combine import Weighted
from guie.heads.contrastive import MultiSimilarity, SupCon
from guie.heads.margin import ArcFace, CosFace, SubCenterArcFace
from guie.types import Batch, Output


def output_of(raw):
    return Output(raw, None, raw, torch.nn.functional.normalize(raw, dim=1))


def batch_of(labels):
    return Batch(labels, labels, labels, labels)


def random_case(pictures=12, classes=4, dtype=torch.float64):
    random = torch.Generator().manual_seed(3)
    raw = torch.randn(pictures, 6, generator=random, dtype=dtype).requires_grad_()
    return raw, torch.arange(pictures) % classes


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "reference" / "synthetic"
    inputs = np.load(folder / "loss_inputs.npz")
    values = json.loads((folder / "reference_outputs.json").read_text())["pml_losses"]
    return {key: torch.from_numpy(inputs[key]) for key in inputs}, values


REFERENCES = {
    "ArcFace m=28.6deg s=64": (ArcFace, {"scale": 64.0, "margin": math.radians(28.6)}),
    "ArcFace m=17.19deg(0.3rad) s=30": (ArcFace, {"scale": 30.0, "margin": 0.3}),
    "CosFace m=0.35 s=64": (CosFace, {"scale": 64.0, "margin": 0.35}),
    "NormalizedSoftmax T=0.05": (CosFace, {"scale": 20.0, "margin": 0.0}),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("chunk", [None, 5])
def test_margin_heads_give_the_values_of_pytorch_metric_learning(reference, name, chunk):
    inputs, values = reference
    head_class, arguments = REFERENCES[name]
    width, classes = inputs["W"].shape
    head = head_class(**arguments, chunk=chunk, num_classes=classes, embed_dim=width).double()
    head.weight.data.copy_(inputs["W"].t())
    loss = head(output_of(inputs["E"]), batch_of(inputs["y"]))
    assert loss.total.item() == pytest.approx(values[name], rel=1e-9)


def test_equal_sub_centres_give_plain_arcface(reference):
    inputs, values = reference
    width, classes = inputs["W"].shape
    head = SubCenterArcFace(3, 64.0, math.radians(28.6), num_classes=classes, embed_dim=width).double()
    head.weight.data.copy_(inputs["W"].t().expand(3, classes, width))
    loss = head(output_of(inputs["E"]), batch_of(inputs["y"]))
    assert loss.total.item() == pytest.approx(values["ArcFace m=28.6deg s=64"], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("MultiSimilarity a2 b50 base.5", MultiSimilarity(epsilon=None)),
        ("SupCon T=.1", SupCon(0.1)),
    ],
)
def test_contrastive_heads_give_the_values_of_pytorch_metric_learning(reference, name, head):
    inputs, values = reference
    loss = head(output_of(inputs["E"]), batch_of(inputs["y"]))
    assert loss.total.item() == pytest.approx(values[name], rel=1e-9)


def test_supcon_equals_a_loop():
    raw, labels = random_case()
    labels[0] = 99  # a picture without a positive does not count
    z, count, expected = torch.nn.functional.normalize(raw, dim=1), 0, 0.0
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            denominator = sum(torch.exp(z[i] @ z[j] / 0.2) for j in others)
            shares = [torch.log(torch.exp(z[i] @ z[j] / 0.2) / denominator) for j in positives]
            expected, count = expected - sum(shares) / len(shares), count + 1
    loss = SupCon(0.2)(output_of(raw), batch_of(labels)).total
    expected = expected / count
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, raw), torch.autograd.grad(expected, raw))


def test_supcon_by_id_takes_only_views_of_the_same_picture_for_positives():
    raw, labels = random_case()
    views = torch.arange(len(labels)) // 2
    by_id, by_label = batch_of(labels), batch_of(views)
    by_id.ids = views
    expected = SupCon(0.2)(output_of(raw), by_label).total
    assert SupCon(0.2, by="id")(output_of(raw), by_id).total == expected
    assert SupCon(0.2)(output_of(raw), by_id).total != expected


def test_multi_similarity_with_mining_equals_a_loop():
    raw, labels = random_case()
    z, expected = torch.nn.functional.normalize(raw, dim=1), 0.0
    cosines = z @ z.t()
    for i in range(len(z)):
        positives = [j for j in range(len(z)) if j != i and labels[j] == labels[i]]
        negatives = [j for j in range(len(z)) if labels[j] != labels[i]]
        weakest = min(cosines[i, j].item() for j in positives)
        strongest = max(cosines[i, j].item() for j in negatives)
        pull = [torch.exp(-2 * (cosines[i, j] - 0.5)) for j in positives if cosines[i, j] - 0.1 < strongest]
        push = [torch.exp(50 * (cosines[i, j] - 0.5)) for j in negatives if cosines[i, j] + 0.1 > weakest]
        expected = expected + torch.log(1 + sum(pull, raw.new_zeros(()))) / 2
        expected = expected + torch.log(1 + sum(push, raw.new_zeros(()))) / 50
    loss = MultiSimilarity()(output_of(raw), batch_of(labels)).total
    expected = expected / len(z)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, raw), torch.autograd.grad(expected, raw))


@pytest.mark.parametrize("head", [SupCon(), MultiSimilarity(), MultiSimilarity(epsilon=None)])
def test_a_batch_without_any_positive_pair_has_a_finite_gradient(head):
    raw, _ = random_case(dtype=torch.float32)
    loss = head(output_of(raw), batch_of(torch.arange(len(raw))))
    loss.total.backward()
    assert loss.total.isfinite() and raw.grad.isfinite().all()


def test_contrastive_heads_survive_a_single_class():
    raw, labels = random_case(dtype=torch.float32)
    for head in (SupCon(), MultiSimilarity()):
        loss = head(output_of(raw), batch_of(torch.zeros_like(labels)))
        (gradient,) = torch.autograd.grad(loss.total, raw)
        assert loss.total.isfinite() and gradient.isfinite().all()


def test_softmax_equals_a_loop_and_names_a_label_out_of_range():
    raw, labels = random_case()
    head = Softmax(label_smoothing=0.1, num_classes=4, embed_dim=6).double()
    expected = 0.0
    for row, label in zip(head.linear(raw), labels, strict=True):
        log_p = row - torch.log(torch.exp(row).sum())
        expected = expected - (0.9 * log_p[label] + 0.1 * log_p.mean()) / len(raw)
    torch.testing.assert_close(head(output_of(raw), batch_of(labels)).total, expected)
    with pytest.raises(UserError, match=r"labels: 0..4 received; accepted: 0..3"):
        head(output_of(raw), batch_of(labels + (labels == 3)))


def test_weighted_heads_add_up_and_keep_their_names():
    raw, labels = random_case()
    arcface, supcon = ArcFace(num_classes=4, embed_dim=6).double(), SupCon()
    both = Weighted({"arcface": arcface, "supcon": supcon}, {"supcon": 0.5})
    loss = both(output_of(raw), batch_of(labels))
    parts = [head(output_of(raw), batch_of(labels)).total for head in (arcface, supcon)]
    torch.testing.assert_close(loss.total, parts[0] + 0.5 * parts[1])
    assert {"loss", "accuracy", "arcface/loss", "supcon/loss"} <= set(loss.scalars)
    assert set(both.state_dict()) == {"heads.arcface.weight"}
    with pytest.raises(UserError, match=r"head.weights: triplet; accepted: supcon"):
        Weighted({"supcon": supcon}, {"triplet": 1.0})


def _gradient_on_a_rank(rank, address, results):
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    raw, labels = random_case()
    mine = raw.detach()[rank * 6 : rank * 6 + 6].requires_grad_()
    gradients = []
    for head in (SupCon(), MultiSimilarity()):
        loss = head(output_of(mine), batch_of(labels[rank * 6 : rank * 6 + 6]))
        gradients.append(torch.autograd.grad(loss.total, mine)[0].tolist())
    results.put((rank, gradients))
    distributed.destroy_process_group()


def test_two_ranks_see_the_whole_batch(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    arguments = (f"file://{tmp_path}/meeting", results)
    ranks = [context.Process(target=_gradient_on_a_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(results.get() for _ in ranks)
    for process in ranks:
        process.join()
    raw, labels = random_case()
    for number, head in enumerate((SupCon(), MultiSimilarity())):
        (whole,) = torch.autograd.grad(head(output_of(raw), batch_of(labels)).total, raw)
        parts = torch.tensor(found[0][number] + found[1][number], dtype=torch.float64)
        torch.testing.assert_close(parts / 2, whole)  # DDP divides by the ranks
