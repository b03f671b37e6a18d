"""Losses of pairs and triplets against loops written from the papers and against pytorch-metric-learning."""

import numpy as np
import pytest
import torch
from head_cases import batch_of, distance, equal_with_gradients, mean, output_of, random_case, reference_case
from torch.nn.functional import normalize

from guie.build import build
from guie.config.compose import composed
from guie.errors import UserError
from guie.heads.contrastive import Contrastive, MultiSimilarity, SupCon
from guie.heads.pairs import within
from guie.heads.proxy import ProxyAnchor
from guie.heads.triplet import Triplet

HEADS = [
    Contrastive(),
    Contrastive(0.2, 1.1),
    Triplet(),
    Triplet(0.1, distance="cosine"),
    Triplet(mining="hard"),
    Triplet(mining="semi_hard"),
    Triplet(0.1, "semi_hard", "cosine"),
    SupCon(),
    MultiSimilarity(),
]


def name_of(head):
    return f"{type(head).__name__}{HEADS.index(head)}"


def pairs_of(labels):
    for i in range(len(labels)):
        positives = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        yield i, positives, [j for j in range(len(labels)) if labels[j] != labels[i]]


def contrastive_loop(raw, labels, positive_margin, negative_margin):
    z, pull, push = normalize(raw), [], []
    for i, positives, negatives in pairs_of(labels):
        pull += [torch.relu(distance(z[i], z[j]) - positive_margin) for j in positives]
        push += [torch.relu(negative_margin - distance(z[i], z[j])) for j in negatives]
    return mean([v for v in pull if v > 0]) + mean([v for v in push if v > 0])


def triplet_loop(raw, labels, margin, mining, apart):
    z, losses = normalize(raw), []
    for a, positives, negatives in pairs_of(labels):
        d = {j: apart(z[a], z[j]) for j in positives + negatives}
        if mining == "all":
            losses += [torch.relu(d[p] - d[n] + margin) for p in positives for n in negatives]
        elif mining == "hard" and positives and negatives:
            farthest, nearest = max(d[p] for p in positives), min(d[n] for n in negatives)
            losses.append(torch.relu(farthest - nearest + margin))
        elif mining == "semi_hard":
            for p in positives:
                farther = [d[n] for n in negatives if d[n] > d[p]]
                losses += [torch.relu(d[p] - min(farther) + margin)] if farther else []
    return mean(losses if mining == "hard" else [v for v in losses if v > 0])


@pytest.mark.parametrize("margins", [(0.0, 1.0), (0.3, 1.4)])
def test_contrastive_equals_a_loop(margins):
    raw, labels = random_case()
    labels[0] = 99  # a picture without a positive
    loss = Contrastive(*margins)(output_of(raw), batch_of(labels)).total
    equal_with_gradients(loss, contrastive_loop(raw, labels, *margins), raw)


@pytest.mark.parametrize("mining", ["all", "hard", "semi_hard"])
@pytest.mark.parametrize("apart", ["euclidean", "cosine"])
@pytest.mark.parametrize("margin", [0.05, 0.6])
def test_triplet_equals_a_loop(mining, apart, margin):
    raw, labels = random_case()
    labels[0] = 99
    between = distance if apart == "euclidean" else lambda a, b: 1 - (a * b).sum()
    loss = Triplet(margin, mining, apart)(output_of(raw), batch_of(labels)).total
    equal_with_gradients(loss, triplet_loop(raw, labels, margin, mining, between), raw)


def test_proxy_anchor_equals_a_loop():
    raw, labels = random_case(classes=3)
    head = ProxyAnchor(0.1, 8.0, num_classes=5, embed_dim=6).double()
    z, proxies, pull, push = normalize(raw), normalize(head.weight), [], []
    for c in range(5):
        own = [torch.exp(-8 * (z[i] @ proxies[c] - 0.1)) for i in range(len(z)) if labels[i] == c]
        others = [torch.exp(8 * (z[i] @ proxies[c] + 0.1)) for i in range(len(z)) if labels[i] != c]
        pull += [torch.log(1 + sum(own))] if own else []
        push.append(torch.log(1 + sum(others)))
    loss = head(output_of(raw), batch_of(labels)).total
    equal_with_gradients(loss, mean(pull) + mean(push), raw, head.weight)


@pytest.mark.parametrize("head", HEADS, ids=name_of)
def test_gradients_are_those_of_finite_differences(head):
    raw, labels = random_case(pictures=8, classes=3)
    assert torch.autograd.gradcheck(lambda x: head(output_of(x), batch_of(labels)).total, raw)


def test_gradients_of_proxies_are_those_of_finite_differences():
    raw, labels = random_case(pictures=5, classes=3)
    head = ProxyAnchor(alpha=4.0, num_classes=4, embed_dim=6).double()

    def total(x, weight):
        return torch.func.functional_call(head, {"weight": weight}, (output_of(x), batch_of(labels))).total

    assert torch.autograd.gradcheck(total, (raw, head.weight))


def test_heads_give_the_values_of_the_shared_reference(shared):
    inputs, values = reference_case(shared)
    width, classes = inputs["W"].shape
    proxies = ProxyAnchor(num_classes=classes, embed_dim=width).double()
    proxies.weight.data.copy_(inputs["W"].t())
    heads = {
        "Contrastive pos0 neg1": Contrastive(),
        "TripletMargin 0.05 (all triplets, AvgNonZero)": Triplet(0.05),
        "ProxyAnchor m.1 a32": proxies,
    }
    for name, head in heads.items():
        loss = head(output_of(inputs["E"]), batch_of(inputs["y"])).total
        assert loss.item() == pytest.approx(values[name], rel=1e-9), name


@pytest.mark.parametrize("classes", [3, 12])
def test_heads_give_values_and_gradients_of_pytorch_metric_learning(classes):
    pml = pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses, miners, reducers

    raw, labels = random_case(classes=classes)
    hard = miners.BatchHardMiner()(raw, labels)
    cases = [
        (Contrastive(0.1, 1.2), losses.ContrastiveLoss(0.1, 1.2), None),
        (Triplet(0.3), losses.TripletMarginLoss(0.3), None),
        (Triplet(0.3, "hard"), losses.TripletMarginLoss(0.3, reducer=reducers.MeanReducer()), hard),
        (SupCon(0.2), losses.SupConLoss(0.2), None),
        (MultiSimilarity(epsilon=None), losses.MultiSimilarityLoss(), None),
    ]
    assert pml.__version__
    for head, theirs, mined in cases:
        loss = head(output_of(raw), batch_of(labels)).total
        equal_with_gradients(loss, theirs(raw, labels, mined), raw)


def test_all_triplets_take_no_more_memory_than_the_pairs():
    """200 pictures have 6.8 million triplets in 20 classes; the largest tensor kept for backward is B x B."""
    raw, labels = random_case(pictures=200, classes=20, width=8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        Triplet()(output_of(raw), batch_of(labels)).total.backward()
    assert max(kept) <= 200 * 201


@pytest.mark.parametrize("head", HEADS, ids=name_of)
@pytest.mark.parametrize("labels", [torch.arange(6), torch.zeros(6, dtype=torch.int64)], ids=["alone", "one"])
def test_a_batch_without_positives_or_without_negatives_has_a_finite_gradient(head, labels):
    raw = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = head(output_of(raw), batch_of(labels)).total
    loss.backward()
    assert loss.isfinite() and raw.grad.isfinite().all()


@pytest.mark.parametrize("head", HEADS, ids=name_of)
def test_equal_pictures_have_a_finite_gradient_and_a_broken_one_shows(head):
    raw = torch.ones(4, 3).requires_grad_()
    head(output_of(raw), batch_of(torch.tensor([0, 0, 1, 1]))).total.backward()
    assert raw.grad.isfinite().all()
    broken = raw.detach().clone()
    broken[1] = torch.nan
    assert head(output_of(broken), batch_of(torch.tensor([0, 0, 1, 1]))).total.isnan()


def test_positives_by_id_are_the_views_of_one_picture():
    raw, labels = random_case()
    views = torch.arange(len(labels)) // 2
    for kind in (Contrastive, Triplet, SupCon, MultiSimilarity):
        by_id = kind(by="id")(output_of(raw), batch_of(labels, views)).total
        assert by_id == kind()(output_of(raw), batch_of(views)).total


def test_no_picture_is_a_pair_of_itself_and_every_other_pair_is_one_of_two():
    _, labels = random_case()
    pairs = within(torch.eye(12), labels)
    assert not (pairs.positive & pairs.negative).any()
    assert torch.equal(pairs.positive | pairs.negative, ~torch.eye(12, dtype=torch.bool))


def test_half_precision_is_computed_in_float32():
    raw, labels = random_case()
    half = output_of(raw.detach().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        loss = Contrastive()(half, batch_of(labels)).total
    assert loss.dtype is torch.float32
    assert loss == Contrastive()(output_of(raw.detach().bfloat16()), batch_of(labels)).total


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Contrastive(1.0, 0.5), r"head\.positive_margin: 1\.0 received with .* 0\.5; accepted: 0 <="),
        (lambda: Contrastive(by="file"), r"head\.by: 'file' received; accepted: label, id"),
        (lambda: Triplet(3.0), r"head\.margin: 3\.0 received; accepted: 0 to 2"),
        (lambda: Triplet(mining="easy"), r"head\.mining: 'easy' received; accepted: all, hard, semi_hard"),
        (lambda: Triplet(distance="l1"), r"head\.distance: 'l1' received; accepted: euclidean, cosine"),
        (lambda: ProxyAnchor(-1.0, num_classes=2, embed_dim=2), r"head\.margin: -1\.0 received"),
        (lambda: ProxyAnchor(alpha=0, num_classes=2, embed_dim=2), r"head\.alpha: 0 received"),
    ],
)
def test_a_parameter_out_of_range_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_proxies_refuse_a_label_that_has_none():
    raw, labels = random_case()
    with pytest.raises(UserError, match=r"labels: 0..3 received; accepted: 0..2"):
        ProxyAnchor(num_classes=3, embed_dim=6).double()(output_of(raw), batch_of(labels))


FACTS = {
    "num_classes": 4,
    "embed_dim": 6,
    "feature_dim": 6,
    "class_counts": np.full(4, 3),
    "class_domains": np.zeros(4, np.int64),
    "domain_names": ["one"],
}


@pytest.mark.parametrize(
    "overrides",
    [
        ["head=contrastive"],
        ["head=triplet"],
        ["head=triplet", "head.mining=hard"],
        ["head=triplet", "head.mining=semi_hard"],
        ["head=proxy_anchor"],
        ["head=contrastive_memory", "head.head.by=label", "head.size=24"],
        ["head=multi_similarity_memory", "head.size=24"],
        ["head=supcon_memory", "head.size=24"],
        ["head=arcface_supcon_memory", "head.heads.memory.size=24"],
    ],
    ids=" ".join,
)
def test_every_config_is_built_and_parts_the_classes(overrides):
    torch.manual_seed(0)
    head = build(composed("train", overrides)["head"], **FACTS).double()
    raw, labels = random_case()
    optimizer = torch.optim.Adam([raw, *head.parameters()], lr=0.05)
    before = margin_between(raw, labels)
    for _ in range(20):
        loss = head(output_of(raw), batch_of(labels))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        assert not any(torch.as_tensor(value).requires_grad for value in loss.scalars.values())
    assert margin_between(raw, labels) > before + 0.03


def margin_between(raw, labels):
    """Return how much larger the mean cosine of positive pairs is than that of negative ones."""
    pairs = within(normalize(raw.detach()), labels)
    return (pairs.cosines[pairs.positive].mean() - pairs.cosines[pairs.negative].mean()).item()
