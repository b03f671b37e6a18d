import numpy as np
import pytest
import torch

from guie.errors import UserError
from guie.models.convnet import Centre, ConvNet


def ink_centre(picture):
    mass = np.abs(picture - picture[0, 0])
    places = (np.arange(len(picture)) + 0.5) / len(picture) * 2 - 1
    return (mass.sum(0) @ places) / mass.sum(), (mass.sum(1) @ places) / mass.sum()


@pytest.mark.parametrize(("ground", "ink"), [(1.0, 0.0), (-1.0, 1.0)])
def test_the_centre_of_mass_of_the_ink_comes_to_the_middle(ground, ink):
    drawing = np.full((24, 24), ground)
    drawing[4:9, 12:15] = ink
    moved = Centre()(torch.tensor(drawing)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(ink_centre(moved), (0, 0), atol=1e-6)
    assert abs(moved[0, 0]) == 0  # the ground is zero
    assert np.abs(moved).sum() == pytest.approx(np.abs(drawing - ground).sum())


def test_an_empty_picture_stays_empty():
    assert torch.equal(Centre()(torch.full((1, 1, 8, 8), 0.3)), torch.zeros(1, 1, 8, 8))


def test_a_shifted_drawing_has_the_same_feature():
    torch.manual_seed(0)
    net = ConvNet(image_px=48).eval()
    drawing = torch.ones(1, 3, 48, 48)
    drawing[..., 10:20, 12:30] = -1
    with torch.no_grad():
        error = (net(drawing) - net(drawing.roll((3, -4), (2, 3)))).abs().max()
    assert error < 1e-4


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"backbone.image_px: 50; accepted: a multiple of 24"):
        ConvNet(image_px=50)
