"""Matryoshka against heads on prefixes cut by hand, in float64; its node built with each prefix's facts."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from guie.build import build
from guie.config.compose import composed
from guie.errors import UserError
from guie.heads.classifier import Softmax
from guie.heads.contrastive import SupCon
from guie.heads.margin import ArcFace
from guie.heads.matryoshka import Matryoshka, prefix
from guie.types import Batch, Output

CLASSES, DIM = 4, 8
FACTS = {
    "num_classes": CLASSES,
    "embed_dim": DIM,
    "feature_dim": 6,
    "class_counts": np.full(CLASSES, 3),
    "class_domains": np.zeros(CLASSES, np.int64),
    "domain_names": ["things"],
}


def arcface(embed_dim):
    return ArcFace(margin=0.3, scale=8.0, num_classes=CLASSES, embed_dim=embed_dim)


def head(inner=arcface, **values):
    torch.manual_seed(0)
    return Matryoshka(inner, **{"dims": [2, 4, 8], **values}, embed_dim=DIM).double()


def output():
    raw = torch.randn(6, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw.requires_grad_(True)
    return Output(raw, None, raw, nn.functional.normalize(raw, dim=1))


def batch():
    labels = torch.arange(6) % CLASSES
    return Batch(torch.zeros(6), labels, labels, labels)


def arcface_by_hand(raw, weight, margin=0.3, scale=8.0):
    """Return the mean loss of raw (B, d) against weight (C, d), number by number."""
    total = 0.0
    for x, label in zip(raw.tolist(), batch().labels.tolist(), strict=True):
        logits = []
        for place, w in enumerate(weight.tolist()):
            cosine = sum(a * b for a, b in zip(x, w, strict=True)) / math.hypot(*x) / math.hypot(*w)
            if place == label:
                angle = math.acos(cosine)
                inside = angle + margin <= math.pi
                cosine = math.cos(angle + margin) if inside else cosine - margin * math.sin(margin)
            logits.append(scale * cosine)
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
    return total / len(raw)


def test_the_loss_is_the_weighted_sum_of_the_prefixes_losses():
    wrapped = head(weights=[0.5, 1.0, 2.0])
    found, given = wrapped(output(), batch()), output()
    expected = sum(
        weight * arcface_by_hand(given.raw[:, :dim], wrapped.heads[str(dim)].weight)
        for dim, weight in ((2, 0.5), (4, 1.0), (8, 2.0))
    )
    assert found.total.item() == pytest.approx(expected, rel=1e-9)
    assert found.scalars["2/loss"].item() == pytest.approx(
        arcface_by_hand(given.raw[:, :2], wrapped.heads["2"].weight)
    )
    assert found.scalars["accuracy"] == found.scalars["8/accuracy"]


def test_tied_prefixes_share_one_matrix():
    wrapped, given = head(tied=True), output()
    (weight,) = wrapped.parameters()
    assert weight.shape == (CLASSES, DIM)
    expected = sum(arcface_by_hand(given.raw[:, :dim], weight[:, :dim]) for dim in (2, 4, 8))
    assert wrapped(given, batch()).total.item() == pytest.approx(expected, rel=1e-9)


def test_tied_gradients_are_those_of_the_prefixes_added_up():
    wrapped, given = head(tied=True), output()
    (weight,) = wrapped.parameters()
    wrapped(given, batch()).total.backward()
    expected_weight, expected_raw = torch.zeros_like(weight), torch.zeros_like(given.raw)
    for dim in (2, 4, 8):
        inner, cut = arcface(dim).double(), output()
        with torch.no_grad():
            inner.weight.copy_(weight[:, :dim])
        inner(prefix(cut, dim), batch()).total.backward()
        expected_weight[:, :dim] += inner.weight.grad
        expected_raw += cut.raw.grad
    torch.testing.assert_close(weight.grad, expected_weight)
    torch.testing.assert_close(given.raw.grad, expected_raw)


@pytest.mark.parametrize("tied", [False, True])
def test_the_gradient_is_right(tied):
    wrapped, raw = head(tied=tied), output().raw

    def loss(raw):
        given = Output(raw, None, raw, nn.functional.normalize(raw, dim=1))
        return wrapped(given, batch()).total

    assert torch.autograd.gradcheck(loss, (raw,))


def test_a_prefix_is_of_unit_length_and_a_head_of_pairs_reads_it():
    given = output()
    torch.testing.assert_close(prefix(given, 3).z.norm(dim=1), torch.ones(6, dtype=torch.float64))
    for tied in (False, True):
        found = head(lambda embed_dim: SupCon(), tied=tied)(given, batch())
        expected = sum(SupCon()(prefix(given, dim), batch()).total for dim in (2, 4, 8))
        torch.testing.assert_close(found.total, expected)


def test_a_bias_is_not_cut_though_it_is_as_long_as_the_embedding():
    wrapped = head(lambda embed_dim: Softmax(num_classes=DIM, embed_dim=embed_dim), tied=True)
    inner, given = wrapped.heads[str(DIM)].linear, output()
    logits = [given.raw[:, :dim] @ inner.weight[:, :dim].T + inner.bias for dim in (2, 4, 8)]
    expected = sum(nn.functional.cross_entropy(one, batch().labels) for one in logits)
    torch.testing.assert_close(wrapped(given, batch()).total, expected)


def test_widths_are_the_halves_down_to_64_unless_told():
    made = [Matryoshka(arcface, embed_dim=width).dims for width in (512, 192, 96, 100)]
    assert made == [[64, 128, 256, 512], [96, 192], [96], [100]]


def test_the_state_dict_reloads():
    for tied in (False, True):
        wrapped, given = head(tied=tied), output()
        again = copy.deepcopy(wrapped)
        nn.init.normal_(next(again.parameters()))
        again.load_state_dict(wrapped.state_dict())
        assert again(given, batch()).total == wrapped(given, batch()).total


def test_a_node_is_built_for_each_prefix_with_its_width():
    inner = {"_target_": "guie.heads.margin.ArcFace", "margin": 0.2}
    node = {"_target_": "guie.heads.matryoshka.Matryoshka", "inner": inner, "dims": [2, 8]}
    wrapped = build(node, where="head", **FACTS)
    assert [wrapped.heads[name].weight.shape for name in ("2", "8")] == [(CLASSES, 2), (CLASSES, 8)]
    tied = build({**node, "tied": True}, where="head", **FACTS)
    assert [weight.shape for weight in tied.parameters()] == [(CLASSES, 8)]
    with pytest.raises(UserError, match=r"head.inner.margins: unknown key; did you mean 'margin'"):
        build({**node, "inner": {**inner, "margins": 1}}, where="head", **FACTS)
    with pytest.raises(UserError, match=r"head.inner: a value is required"):
        build({**node, "inner": "???"}, where="head", **FACTS)


def test_another_inner_head_is_one_word_on_the_command_line():
    chosen = ["head=matryoshka", "head@head.inner=cosface", "head.inner.margin=0.2", "neck.keep=32"]
    cfg = composed("train", ["dataset=toy", *chosen])
    assert cfg["head"]["inner"]["_target_"] == "guie.heads.margin.CosFace"
    assert (cfg["head"]["inner"]["margin"], cfg["neck"]["keep"]) == (0.2, 32)


class Memory(nn.Module):
    """A head that keeps embeddings."""

    def __init__(self, embed_dim):
        super().__init__()
        self.register_buffer("queue", torch.zeros(5, embed_dim))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dims": []}, r"head.dims: \[\] received; accepted: growing widths from 1 to neck.embed_dim \(8\)"),
        ({"dims": [4, 2]}, r"head.dims: \[4, 2\] received"),
        ({"dims": [4, 16]}, r"head.dims: \[4, 16\] received"),
        ({"weights": [1.0]}, r"head.weights: \[1.0\] received; accepted: 3 numbers, 0 or above"),
        ({"weights": [1.0, -1.0, 1.0]}, r"head.weights: .* received"),
        (
            {"inner": Memory, "tied": True},
            r"head.tied: true, but the inner head keeps embeddings \('queue'\); accepted: false",
        ),
    ],
)
def test_a_mistake_names_the_key(values, message):
    with pytest.raises(UserError, match=message):
        head(**values)
