"""The adapter: losses of pytorch-metric-learning by name, and every mistake in one line."""

import sys

import pytest
import torch
from head_cases import batch_of, output_of, random_case, reference_case

from guie.build import build
from guie.config.compose import composed
from guie.errors import UserError
from guie.heads import pml
from guie.heads.pml import Pml

FACTS = {"num_classes": 4, "embed_dim": 6}
OPTIONS = {"RankedListLoss": {"margin": 0.4, "Tn": 2.0}}


@pytest.fixture(autouse=True)
def library():
    return pytest.importorskip("pytorch_metric_learning")


@pytest.mark.filterwarnings("ignore")  # the library's own, of numpy's and torch's older ways
def test_every_listed_loss_is_built_and_stepped_twice():
    listed = pml._classes("losses")
    assert len(listed) > 25
    for name in listed:
        torch.manual_seed(0)
        head = Pml(name, OPTIONS.get(name), **FACTS)
        raw, labels = random_case(pictures=16)
        raw = raw.detach().float().requires_grad_()
        optimizer = torch.optim.SGD([raw, *head.parameters()], lr=0.01)
        for _ in range(2):
            loss = head(output_of(raw), batch_of(labels))
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            assert loss.total.isfinite() and raw.grad.isfinite().all(), name


def test_it_gives_the_loss_of_the_library_with_its_options_distance_reducer_and_miner():
    from pytorch_metric_learning import distances, losses, miners, reducers

    raw, labels = random_case()
    head = Pml(
        "TripletMarginLoss",
        {"margin": 0.3, "distance": {"name": "LpDistance", "p": 1}, "reducer": "MeanReducer"},
        "BatchHardMiner",
        {"distance": "CosineSimilarity"},
        **FACTS,
    )
    theirs = losses.TripletMarginLoss(0.3, distance=distances.LpDistance(p=1), reducer=reducers.MeanReducer())
    mined = miners.BatchHardMiner(distance=distances.CosineSimilarity())(raw, labels)
    loss = head(output_of(raw), batch_of(labels)).total
    expected = theirs(raw, labels, mined)
    assert loss == expected
    assert torch.equal(torch.autograd.grad(loss, raw)[0], torch.autograd.grad(expected, raw)[0])


def test_it_gives_the_values_of_the_shared_reference(shared):
    inputs, values = reference_case(shared)
    width, classes = inputs["W"].shape
    facts = {"num_classes": classes, "embed_dim": width}
    circle = Pml("CircleLoss", {"m": 0.4, "gamma": 80}, **facts)
    ntxent = Pml("NTXentLoss", {"temperature": 0.07}, **facts)
    arcface = Pml("ArcFaceLoss", {"margin": 28.6, "scale": 64}, **facts).double()
    arcface.inner.W.data.copy_(inputs["W"])
    heads = {"Circle m.4 g80": circle, "NTXent T=.07": ntxent, "ArcFace m=28.6deg s=64": arcface}
    for name, head in heads.items():
        loss = head(output_of(inputs["E"]), batch_of(inputs["y"])).total
        assert loss.item() == pytest.approx(values[name], rel=1e-9), name


def test_class_weights_are_the_heads_own_and_labels_are_checked():
    head = Pml("CosFaceLoss", **FACTS)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {"inner.W": (6, 4)}
    raw, labels = random_case(classes=6)
    with pytest.raises(UserError, match=r"labels: 0..5 received; accepted: 0..3"):
        head(output_of(raw), batch_of(labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("TripletLoss",), r"head\.loss: 'TripletLoss' received; did you mean '.*'\? accepted: AngularLoss"),
        (("CrossBatchMemory",), r"head\.loss: 'CrossBatchMemory' received"),
        (("os.system",), r"head\.loss: 'os.system' received"),
        (("CircleLoss", {"margin": 1}), r"head: CircleLoss has no option 'margin'; .*accepted: .*gamma, m,"),
        (("ArcFaceLoss", {"num_classes": 7}), r"head: ArcFaceLoss has no option 'num_classes'"),
        (("RankedListLoss",), r"head: RankedListLoss refuses \{\}: .*Tn.*; see its documentation"),
        (("NTXentLoss", None, "Hard"), r"head\.miner: 'Hard' received; .*accepted: AngularMiner"),
        (("NTXentLoss", {"distance": "L3"}), r"head\.options\.distance: 'L3' received; .*LpDistance"),
        (("NTXentLoss", {"distance": {"p": 1}}), r"head\.options\.distance: 'None' received"),
    ],
)
def test_a_name_or_option_that_the_library_lacks_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Pml(*arguments, **FACTS)


def test_without_the_library_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(UserError, match=r"pip install 'guie\[pml\]'"):
        Pml("CircleLoss", **FACTS)


def test_it_is_chosen_by_config():
    node = composed("train", ["head=pml", "head.loss=ProxyAnchorLoss", "head.options={alpha: 16}"])["head"]
    head = build(node, where="head", feature_dim=9, **FACTS)
    assert head.inner.alpha == 16 and head.inner.proxies.shape == (4, 6)
