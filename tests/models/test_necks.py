"""Necks against formulas: two layers, the mean over dropout masks, and the prefix that is kept."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from guie.embed.space import space_id
from guie.errors import UserError
from guie.models.embedder import Embedder
from guie.models.necks import FCBN, MLP, BNLinear, Linear, MultiSampleDropout
from guie.models.pooling import Average
from guie.models.refit import refit
from guie.types import Preprocess


class Grey(nn.Module):
    """A backbone that gives its picture."""

    kind, prefix_tokens, out_dim = "map", 0, 3
    preprocess = Preprocess((4, 4), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def forward(self, x):
        return x


def embedder(neck):
    return Embedder(Grey(), Average(), neck)


def images():
    return torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize(
    ("activation", "by_hand"),
    [
        ("tanh", math.tanh),
        ("relu", lambda value: max(value, 0.0)),
        ("gelu", lambda value: value / 2 * (1 + math.erf(value / math.sqrt(2)))),
    ],
)
def test_mlp_is_linear_activation_linear(activation, by_hand):
    torch.manual_seed(0)
    neck = MLP(2, hidden_dim=4, activation=activation, in_dim=3).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    first, second = neck.hidden, neck.linear
    hidden = [
        by_hand(sum(w * v for w, v in zip(row, x[0].tolist(), strict=True)) + bias)
        for row, bias in zip(first.weight.tolist(), first.bias.tolist(), strict=True)
    ]
    for place, (row, bias) in enumerate(zip(second.weight.tolist(), second.bias.tolist(), strict=True)):
        expected = sum(w * v for w, v in zip(row, hidden, strict=True)) + bias
        assert neck(x)[0, place].item() == pytest.approx(expected)


def test_the_hidden_layer_is_as_wide_as_the_feature_unless_told():
    assert MLP(2, in_dim=5).hidden.weight.shape == (5, 5)
    with pytest.raises(UserError, match=r"neck.activation: 'sine' received; accepted: gelu, relu, tanh"):
        MLP(2, activation="sine", in_dim=5)


def test_multi_sample_dropout_is_the_mean_of_the_outputs_under_each_mask():
    torch.manual_seed(0)
    neck = MultiSampleDropout(4, dropout=0.3, samples=7, in_dim=6).double().train()
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.manual_seed(3)
    found = neck(x)
    torch.manual_seed(3)
    masks = functional.dropout(torch.ones(7, 5, 6, dtype=torch.float64), 0.3)
    outputs = [neck.linear(x * mask) for mask in masks]
    torch.testing.assert_close(found, sum(outputs) / 7)
    assert not torch.equal(masks[0], masks[1])


def test_multi_sample_dropout_is_the_plain_layer_in_evaluation():
    neck = MultiSampleDropout(4, in_dim=6).eval()
    x = torch.randn(5, 6)
    assert torch.equal(neck(x), neck.linear(x))
    neck.assign(torch.eye(6)[:4], torch.arange(4.0))
    torch.testing.assert_close(neck(x), x[:, :4] + torch.arange(4.0))
    with pytest.raises(UserError, match=r"neck.samples: 0 received"):
        MultiSampleDropout(4, samples=0, in_dim=6)


NECKS = {
    "linear": lambda keep: Linear(4, keep=keep, in_dim=3),
    "bn_linear": lambda keep: BNLinear(4, keep=keep, in_dim=3),
    "fc_bn": lambda keep: FCBN(4, keep=keep, in_dim=3),
    "mlp": lambda keep: MLP(4, keep=keep, in_dim=3),
    "multi_sample_dropout": lambda keep: MultiSampleDropout(4, keep=keep, in_dim=3),
}


@pytest.mark.parametrize("name", NECKS)
def test_of_every_neck_the_first_numbers_can_be_kept(name):
    model = embedder(NECKS[name](2)).eval()
    output = model(images())
    raw = output.raw.double().detach().numpy()
    assert raw.shape == (6, 4) and model.embed_dim == 2
    expected = raw[:, :2] / np.sqrt((raw[:, :2] ** 2).sum(1, keepdims=True))
    np.testing.assert_allclose(output.z.detach().numpy(), expected, atol=1e-6)
    torch.testing.assert_close(model.embed(images()), output.z)


def test_training_sees_all_numbers():
    assert embedder(Linear(4, keep=2, in_dim=3)).train()(images()).z.shape == (6, 4)


def test_what_is_kept_is_part_of_the_space_and_can_be_chosen_afterwards():
    def model(keep):
        torch.manual_seed(0)
        return embedder(Linear(4, keep=keep, in_dim=3)).eval()

    whole, two, chosen = model(None), model(2), model(None)
    chosen.keep_first(2)
    assert len({space_id(whole), space_id(two), space_id(model(3))}) == 3
    assert space_id(chosen) == space_id(two)
    torch.testing.assert_close(chosen(images()).z, two(images()).z)
    chosen.keep_first(None)
    assert space_id(chosen) == space_id(whole)
    again = model(2)
    again.load_state_dict(two.state_dict())
    assert "neck.kept" in two.state_dict() and "neck.kept" not in whole.state_dict()


@pytest.mark.parametrize("keep", [0, 5])
def test_keeping_more_than_there_is_is_refused(keep):
    with pytest.raises(UserError, match=rf"neck.keep: {keep} received; accepted: 1 to 4, or null"):
        embedder(Linear(4, keep=keep, in_dim=3))


def test_a_refitted_neck_keeps_the_strongest_directions():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 20)
    centres = np.zeros((8, 3))
    centres[:, 1] = np.arange(8)  # classes differ in the second number alone
    features = centres[labels] + 0.1 * random.standard_normal((160, 3))
    model = embedder(Linear(3, keep=1, in_dim=3)).double().eval()
    refit(model.neck, features, labels, 0.1)
    raw = model.neck(torch.tensor(features)).detach().numpy()
    assert abs(np.corrcoef(raw[:, 0], labels)[0, 1]) > 0.99
