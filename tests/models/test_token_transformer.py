import math

import pytest
import torch
from torch import nn

from guie.errors import UserError
from guie.models.backbones import Timm
from guie.models.token_transformer import TokenTransformer
from guie.types import Preprocess


class Tokens(nn.Module):
    """A backbone of a class token, a register and three patches."""

    kind, prefix_tokens, out_dim, preprocess = "tokens", 2, 4, Preprocess()

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.linear(x))


def norm(x, layer):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def attention(x, layer, heads):
    """Return what a self-attention layer gives for x (T, C), head by head."""
    queries, keys, values = (x @ layer.in_proj_weight.T + layer.in_proj_bias).chunk(3, dim=1)
    width = x.shape[1] // heads
    found = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        weights = (queries[:, part] @ keys[:, part].T / math.sqrt(width)).exp()
        found.append(weights / weights.sum(1, keepdim=True) @ values[:, part])
    return torch.cat(found, 1) @ layer.out_proj.weight.T + layer.out_proj.bias


def test_it_is_norm_blocks_norm_then_class_token_and_mean_of_patches():
    torch.manual_seed(0)
    model = TokenTransformer(Tokens(), layers=2, heads=2).double()
    pictures = torch.randn(3, 5, 4, dtype=torch.float64)
    for number, tokens in enumerate(model.backbone.linear(pictures)):
        x = norm(tokens, model.before)
        for block in model.blocks:
            x = x + attention(norm(x, block.ln_1), block.attn, 2)
            hidden = norm(x, block.ln_2) @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
            hidden = hidden / 2 * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + hidden @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
        x = norm(x, model.after)
        torch.testing.assert_close(model(pictures)[number], torch.cat([x[0], x[2:].mean(0)]))


def test_the_inner_backbone_neither_learns_nor_drops():
    model = TokenTransformer(Tokens(), heads=2).train()
    pictures = torch.randn(3, 5, 4)
    torch.testing.assert_close(model(pictures), model(pictures))
    model(pictures).sum().backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())


def test_a_backbone_without_a_class_token_and_odd_heads_are_refused():
    with pytest.raises(
        UserError, match=r"backbone.backbone: gives a map; accepted: tokens with a class token"
    ):
        TokenTransformer(Timm("resnet10t", False, 32))
    with pytest.raises(UserError, match=r"2, 3 received; accepted: from 0, a divisor of 4"):
        TokenTransformer(Tokens(), heads=3)
