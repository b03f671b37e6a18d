"""Poolings against loops in float64: maxima, sums, regions, exponents of training and evaluation."""

import math

import pytest
import torch
from torch import nn

from guie.embed.space import space_id
from guie.errors import UserError
from guie.models.embedder import Embedder
from guie.models.necks import Identity
from guie.models.pooling import MAC, RMAC, Average, GeM, PerStage, SPoC
from guie.types import Preprocess


class Stages(nn.Module):
    """A backbone of two maps of different depth."""

    kind, prefix_tokens, out_dim, stages = "map", 0, 5, [0, 1]
    preprocess = Preprocess((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 2, 2), nn.Conv2d(2, 3, 2, 2)

    def forward(self, x):
        first = self.first(x).relu()
        return [first, self.second(first).relu()]


def feature_map(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_mac_and_spoc_are_the_maximum_and_the_sum_of_a_loop():
    x = feature_map(2, 3, 4, 5)
    for b in range(2):
        for c in range(3):
            values = x[b, c].flatten().tolist()
            assert MAC()(x)[b, c].item() == max(values)
            assert SPoC()(x)[b, c].item() == pytest.approx(sum(values))


def test_the_sum_has_the_direction_of_the_average_and_grows_with_the_map():
    x = feature_map(2, 3, 4, 5)
    torch.testing.assert_close(SPoC()(x), 20 * Average()(x))
    unit = nn.functional.normalize
    torch.testing.assert_close(unit(SPoC()(x), dim=1), unit(Average()(x), dim=1))


def test_maximum_and_sum_of_tokens_leave_out_the_prefix_and_pass_vectors():
    tokens = feature_map(2, 5, 3)
    torch.testing.assert_close(MAC()(tokens, 2), tokens[:, 2:].amax(1))
    torch.testing.assert_close(SPoC()(tokens, 2), tokens[:, 2:].sum(1))
    for pool in (MAC(), SPoC(), RMAC()):
        torch.testing.assert_close(pool(tokens[:, 0]), tokens[:, 0])
    assert MAC()(tokens.half()).dtype == SPoC()(tokens.half()).dtype == torch.float32


def regions(height, width, levels):
    """Return (top, left, side) as the paper tells it: squares of 2 min / (l + 1), uniformly, 40 % overlap."""
    short, long = min(height, width), max(height, width)
    extra = 0
    if long > short:
        overlaps = {extra: 1 - (long - short) / extra / short for extra in range(1, 7)}
        extra = min(overlaps, key=lambda extra: abs(overlaps[extra] - 0.4))
    found = []
    for level in range(1, levels + 1):
        side = math.floor(2 * short / (level + 1))
        counts = {True: level, False: level + extra}
        rows, columns = counts[height <= width], counts[height > width] if height != width else level
        for row in range(rows):
            top = math.floor(row * (height - side) / (rows - 1)) if rows > 1 else 0
            for column in range(columns):
                left = math.floor(column * (width - side) / (columns - 1)) if columns > 1 else 0
                found.append((top, left, side))
    return found


@pytest.mark.parametrize("size", [(7, 7), (6, 11), (11, 6), (2, 9)])
def test_rmac_sums_unit_maxima_of_the_papers_regions(size):
    x = feature_map(2, 3, *size)
    for b in range(2):
        total = [0.0, 0.0, 0.0]
        for top, left, side in regions(*size, levels=3):
            part = x[b, :, top : top + side, left : left + side]
            maxima = [max(part[c].flatten().tolist()) for c in range(3)]
            length = math.sqrt(sum(value**2 for value in maxima))
            total = [t + value / length for t, value in zip(total, maxima, strict=True)]
        assert RMAC()(x)[b].tolist() == pytest.approx(total)


def test_a_square_map_has_1_4_and_9_regions():
    assert [len(RMAC(levels)._regions(12, 12)) for levels in (1, 2, 3)] == [1, 5, 14]


def test_rmac_of_tokens_is_refused():
    with pytest.raises(UserError, match="pool: rmac received, but the backbone gives tokens"):
        RMAC()(feature_map(2, 5, 3), 1)


@pytest.mark.parametrize(("p", "eval_p"), [(1.0, 4.0), (3.0, 1.0), (2.5, 3.0)])
def test_gem_has_one_exponent_in_training_and_another_in_evaluation(p, eval_p):
    x = feature_map(2, 3, 4, 5)
    pool = GeM(p, eval_p=eval_p).double()
    for training, power in ((True, p), (False, eval_p)):
        found = pool.train(training)(x)
        powers = [max(value, 1e-6) ** power for value in x[1, 2].flatten().tolist()]
        assert found[1, 2].item() == pytest.approx((sum(powers) / 20) ** (1 / power))


def test_the_clamp_of_gem_is_its_least_value():
    x = torch.full((1, 1, 2, 2), -5.0, dtype=torch.float64)
    assert GeM(1.0, eps=0.25)(x).item() == 0.25


def test_a_mistake_names_the_keys():
    with pytest.raises(UserError, match=r"eval_p: 3.0, 1e-06, 0 received; accepted: above 0"):
        GeM(eval_p=0)
    with pytest.raises(UserError, match=r"pool.eval_p: 2.0 received with pool.learnable=true"):
        GeM(learnable=True, eval_p=2.0)
    with pytest.raises(UserError, match=r"pool.levels: 0 received"):
        RMAC(0)


def test_each_stage_has_its_own_exponent_and_gradient():
    torch.manual_seed(0)
    model = Embedder(Stages(), GeM(learnable=True, per_stage=True), Identity(in_dim=5)).double()
    assert isinstance(model.pool, PerStage) and len(model.pool) == 2
    with torch.no_grad():
        model.pool[0].p.fill_(2.0)
        model.pool[1].p.fill_(4.0)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 255
    feature = model.features(images)
    first, second = model.backbone(images / 255)
    torch.testing.assert_close(feature[:, :2], first.clamp_min(1e-6).pow(2).mean((2, 3)).pow(1 / 2))
    torch.testing.assert_close(feature[:, 2:], second.clamp_min(1e-6).pow(4).mean((2, 3)).pow(1 / 4))
    feature.sum().backward()
    assert model.pool[0].p.grad.item() != model.pool[1].p.grad.item()


def test_without_per_stage_the_stages_share_one_exponent():
    model = Embedder(Stages(), GeM(learnable=True), Identity(in_dim=5))
    assert [name for name, _ in model.pool.named_parameters()] == ["p"]


def test_spaces_of_other_exponents_in_evaluation_have_other_names():
    def name(pool):
        torch.manual_seed(0)
        return space_id(Embedder(Stages(), pool, Identity(in_dim=5)))

    assert len({name(pool) for pool in (GeM(), GeM(eval_p=1.0), GeM(eval_p=2.0), MAC(), SPoC())}) == 5
