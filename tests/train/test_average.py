import pytest
import torch
from tiny import settings, task, train
from torch import nn

from guie import checkpoint
from guie.train.average import Average, average_of, uniform_weight
from guie.train.hooks import Hook


class Weights(Hook):
    """Keep the weights after every step."""

    def __init__(self, made):
        self.made, self.seen = made, []

    def tick(self, step):
        state = self.made.embedder.state_dict()
        self.seen.append({name: value.clone() for name, value in state.items()})


def test_the_uniform_average_is_the_mean_of_the_weights_after_each_step_from_one_on(tmp_path):
    """System B: from step 10 on, every step."""
    made = task(dtype=torch.float64)
    weights = Weights(made)
    train(made, settings(epochs=5, uniform_from=10), folder=tmp_path, hooks=[weights])
    state = checkpoint.read(tmp_path, "last")
    for name, value in state.weights.items():
        expected = torch.stack([seen[name] for seen in weights.seen[9:]]).mean(0)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        assert not torch.equal(value, state.parts["embedder"][name])


def test_before_the_first_step_that_counts_the_average_is_what_there_is(tmp_path):
    train(task(), settings(max_steps=3, uniform_from=10), folder=tmp_path)
    state = checkpoint.read(tmp_path, "last")
    for name, value in state.weights.items():
        assert torch.equal(value, state.parts["embedder"][name])


@pytest.mark.parametrize("average", [{"ema_decay": 0.9}, {"uniform_from": 2}])
def test_only_what_stands_behind_the_backbone_may_be_averaged(tmp_path, average):
    train(task(norm=True), settings(average_backbone=False, **average), folder=tmp_path)
    state = checkpoint.read(tmp_path, "last")
    for name, value in state.weights.items():
        assert torch.equal(value, state.parts["embedder"][name]) == name.startswith("backbone."), name


def test_a_frozen_part_is_left_alone_and_averaged_from_when_it_learns():
    one, other = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double() for _ in range(2))
    other.load_state_dict(one.state_dict())
    one[0].requires_grad_(False)
    averages = [Average(module, lambda update: uniform_weight(update, 1)) for module in (one, other)]
    for step in range(6):
        one[0].requires_grad_(step >= 3)
        for module, average in zip((one, other), averages, strict=True):
            with torch.no_grad():
                module[1].weight.add_(step)
                module[0].weight.add_(step if step >= 3 else 0)
            average.update()
    for name, value in averages[0].average.items():
        torch.testing.assert_close(value, averages[1].average[name], rtol=1e-14, atol=1e-14)


def test_no_average_is_kept_where_none_is_asked_for():
    assert average_of(nn.Linear(1, 1), settings()) is None
