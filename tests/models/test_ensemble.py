"""An ensemble against its members, each run alone on pictures that it prepared itself."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from guie.embed.space import space_id
from guie.errors import UserError
from guie.models.backbones import Timm
from guie.models.embedder import Embedder
from guie.models.ensemble import Ensemble
from guie.models.necks import Identity
from guie.models.pooling import CLS, MAC, Average, GeM
from guie.types import Preprocess


class Toy(nn.Module):
    """A backbone of one convolution with statistics, size and kind of its own."""

    prefix_tokens = 0

    def __init__(self, out_dim, px, mean, std, kind="map"):
        super().__init__()
        self.out_dim, self.kind = out_dim, kind
        self.preprocess = Preprocess((px, px), (mean, mean, mean), (std, std, std), crop="center")
        self.conv = nn.Conv2d(3, out_dim, 4, 4)

    def forward(self, x):
        assert x.shape[2:] == self.preprocess.size_px
        found = self.conv(x)
        return found if self.kind == "map" else found.mean((2, 3))


def toys(second_width=3):
    torch.manual_seed(0)
    return {"a": Toy(5, 16, 0.5, 0.2), "b": Toy(second_width, 8, 0.1, 0.5, "vector")}


def pictures(px=16):
    return torch.rand(4, 3, px, px, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def alone(member, x, pool=None):
    """Return the unit vectors (B, C) of one member by what its Preprocess says, in numpy."""
    spec = member.preprocess
    if x.shape[2:] != spec.size_px:
        x = functional.interpolate(x, spec.size_px, mode="bicubic", antialias=True)
    normal = (x - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    found = member(normal.double())
    vector = (found if pool is None else pool(found, 0)).detach().numpy()
    return vector / np.sqrt((vector**2).sum(1, keepdims=True))


def test_members_stand_one_behind_the_other_each_of_unit_length_times_its_weight():
    members = toys()
    ensemble = Ensemble(members, {"a": GeM(2.0)}, {"b": 0.5}).double()
    found = ensemble(pictures()).detach().numpy()
    expected = np.hstack(
        [alone(members["a"], pictures(), GeM(2.0).double()), 0.5 * alone(members["b"], pictures())]
    )
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert (ensemble.out_dim, ensemble.kind) == (8, "vector")


def test_the_mean_of_equal_widths():
    members = toys(second_width=5)
    ensemble = Ensemble(members, {"a": Average()}, mode="mean").double()
    expected = (alone(members["a"], pictures(), Average()) + alone(members["b"], pictures())) / 2
    np.testing.assert_allclose(ensemble(pictures()).detach().numpy(), expected, atol=1e-7)
    assert ensemble.out_dim == 5


def test_pictures_come_once_at_the_largest_size_and_in_0_to_1():
    spec = Ensemble(toys(), {"a": GeM()}).preprocess
    assert (spec.size_px, spec.mean, spec.std, spec.crop) == ((16, 16), (0, 0, 0), (1, 1, 1), "center")
    assert Ensemble(toys(), {"a": GeM()}, crop="pad").preprocess.crop == "pad"


def test_uint8_pictures_through_the_embedder_are_what_each_member_would_see():
    members = toys()
    model = Embedder(Ensemble(members, {"a": Average()}), GeM(), Identity(in_dim=8)).double()
    images = (pictures() * 255).round().to(torch.uint8)
    x = images / 255.0
    expected = np.hstack([alone(members["a"], x, Average()), alone(members["b"], x)])
    np.testing.assert_allclose(model.features(images).detach().numpy(), expected, atol=1e-6)


def test_the_normalisation_comes_back_with_the_weights():
    source = Ensemble(toys(), {"a": GeM()})
    other = {"a": Toy(5, 16, 0.0, 1.0), "b": Toy(3, 8, 0.0, 1.0, "vector")}  # built without the hub's tag
    again = Ensemble(other, {"a": GeM()})
    again.load_state_dict(source.state_dict())
    x = pictures().float()
    torch.testing.assert_close(again(x), source(x))


def test_a_frozen_ensemble_neither_learns_nor_moves_and_weights_are_part_of_the_space():
    def model(weight):
        torch.manual_seed(0)
        members = {"a": Timm("resnet10t", False, 32), "b": Timm("resnet10t", False, 32)}
        ensemble = Ensemble(members, {"a": Average(), "b": GeM()}, {"a": weight})
        return Embedder(ensemble, GeM(), Identity(in_dim=1024))

    frozen = model(1.0)
    frozen.freeze_backbone()
    frozen.train()
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    assert not frozen(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).z.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert space_id(frozen) == space_id(model(1.0)) != space_id(model(0.5))


def test_other_poolings_and_ways_to_join_are_other_spaces():
    def name(pool, mode="concat"):
        model = Ensemble(toys(second_width=5), {"a": pool}, mode=mode)
        return space_id(Embedder(model, GeM(), Identity(in_dim=model.out_dim)))

    assert len({name(Average()), name(MAC()), name(MAC(), "mean")}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": {}}, "backbone.members: none received"),
        ({"members": toys()}, "backbone.pools.a: none for the map of 'a'; accepted: a pool"),
        (
            {"members": toys(), "pools": {"a": GeM(), "c": CLS()}},
            "backbone.pools.c: no such member; accepted: a, b",
        ),
        (
            {"members": toys(), "pools": {"a": GeM()}, "weights": {"z": 1.0}},
            "backbone.weights.z: no such member; accepted: a, b",
        ),
        (
            {"members": toys(), "pools": {"a": GeM()}, "mode": "mean"},
            "backbone.mode: mean of widths a 5, b 3; accepted: equal widths, or concat",
        ),
        ({"members": toys(), "pools": {"a": GeM()}, "mode": "sum"}, "backbone.mode: 'sum' received"),
    ],
)
def test_a_mistake_is_one_line_with_the_cure(arguments, message):
    with pytest.raises(UserError, match=message):
        Ensemble(**arguments)
