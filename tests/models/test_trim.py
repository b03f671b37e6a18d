import pytest
import torch

from guie.models.trim import Trim


def drawing(top, left, side, ground=-1.0, size=64):
    picture = torch.full((1, 3, size, size), ground)
    pattern = torch.linspace(0, 1, side).expand(side, side) + torch.linspace(0, 1, side)[:, None]
    picture[..., top : top + side, left : left + side] = pattern + 0.5
    return picture


@pytest.mark.parametrize("ground", [-1.0, 3.0])
def test_a_thing_on_a_plain_ground_looks_the_same_wherever_and_however_small_it_is(ground):
    trim = Trim()
    large, small = trim(drawing(4, 4, 56, ground)), trim(drawing(30, 9, 28, ground))
    inside = (..., slice(6, 58), slice(6, 58))  # the edge of the thing is blurred by resampling
    assert (large[inside] - small[inside]).abs().max() < 0.1
    assert (drawing(4, 4, 56, ground) - drawing(30, 9, 28, ground)).abs().max() > 1


def test_a_picture_without_a_plain_margin_stays_as_it_is():
    picture = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 4
    torch.testing.assert_close(Trim()(picture), picture, atol=1e-4, rtol=0)


def test_an_empty_picture_stays_empty_and_the_ground_keeps_its_colour():
    assert torch.equal(Trim()(torch.full((1, 3, 8, 8), 0.3)), torch.full((1, 3, 8, 8), 0.3))
    trimmed = Trim(margin=0.2)(drawing(20, 20, 10))
    assert torch.allclose(trimmed[0, :, 0, 0], torch.tensor(-1.0))
