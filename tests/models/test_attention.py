import math

import pytest
import torch

from guie.errors import UserError
from guie.models.attention import SpatialAttention
from guie.models.backbones import Timm


def test_attention_weighs_each_position_by_exp_of_the_sigmoid_of_five_convolutions():
    torch.manual_seed(0)
    attention = SpatialAttention(2, width=3).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    convolutions = [module for module in attention.score if hasattr(module, "weight")]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(2, 3), (3, 3), (3, 3), (3, 3), (3, 1)]
    score = x
    for place, convolution in enumerate(convolutions):
        score = looped(score, convolution)
        score = score.clamp_min(0) if place < 4 else score
    for row in range(4):
        for column in range(4):
            weight = math.exp(1 / (1 + math.exp(-score[0, 0, row, column].item())))
            for channel in range(2):
                expected = x[0, channel, row, column].item() * weight
                assert attention(x)[0, channel, row, column].item() == pytest.approx(expected)


def looped(x, convolution):
    """Return a 3x3 convolution with a margin of zeros, position by position."""
    _, _, height, width = x.shape
    padded = torch.zeros(1, x.shape[1], height + 2, width + 2, dtype=x.dtype)
    padded[:, :, 1:-1, 1:-1] = x
    found = torch.zeros(1, convolution.out_channels, height, width, dtype=x.dtype)
    for row in range(height):
        for column in range(width):
            window = padded[0, :, row : row + 3, column : column + 3]
            found[0, :, row, column] = (convolution.weight * window).sum((1, 2, 3)) + convolution.bias
    return found


def test_the_gradient_of_attention_is_right():
    torch.manual_seed(0)
    attention = SpatialAttention(2, width=2).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (x,))


def test_attention_stands_behind_layers_1_to_3_and_leaves_the_models_names():
    plain, attentive = Timm("resnet10t", False, 32), Timm("resnet10t", False, 32, attention=True)
    names, more = plain.state_dict().keys(), attentive.state_dict().keys()
    added = {name.rsplit(".score", 1)[0] for name in more - names}
    assert added == {"model.layer1.1", "model.layer2.1", "model.layer3.1"}
    assert names <= more
    missing = attentive.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert all(".score." in name for name in missing)
    x = torch.randn(2, 3, 32, 32)
    plain, attentive = plain.eval().model, attentive.eval().model
    maps = plain.maxpool(plain.act1(plain.bn1(plain.conv1(x))))
    for layer in range(1, 5):
        maps = getattr(plain, f"layer{layer}")(maps)
        if layer < 4:
            maps = getattr(attentive, f"layer{layer}")[1](maps)
    torch.testing.assert_close(attentive.forward_features(x), maps)


def test_attention_works_with_several_stages_too():
    backbone = Timm("resnet10t", False, 32, stages=[1, 2, 3, 4], attention=True)
    assert isinstance(backbone.model.layer3[-1], SpatialAttention)
    assert [found.shape[1] for found in backbone(torch.randn(2, 3, 32, 32))] == [64, 128, 256, 512]


def test_attention_without_layers_is_refused():
    with pytest.raises(UserError, match=r"backbone.attention: true with 'convnext_atto'; accepted: a ResNet"):
        Timm("convnext_atto", False, 32, attention=True)
