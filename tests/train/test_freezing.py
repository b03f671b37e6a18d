"""What learns when: weights, statistics, rates and graphs."""

import pytest
import torch
from test_average import Weights
from tiny import TinyEmbedder, batches, settings, task, train
from torch import nn

from guie.errors import UserError
from guie.models.backbones import Timm
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import GeM
from guie.train.distributed import Hardware, World
from guie.train.engine import Engine
from guie.train.freezing import Freezer, frozen_parts
from guie.train.hooks import Hook
from guie.train.optim import adamw
from guie.train.task import Run
from guie.types import Loss


def moved(before, after, part):
    return {name for name in before if name.startswith(part) and not torch.equal(before[name], after[name])}


class Rates(Hook):
    def __init__(self, made):
        self.made, self.seen = made, []

    def tick(self, step):
        groups = self.made.optimizer.param_groups
        self.seen.append({group["name"].split(".")[0]: group["lr"] for group in groups})


def test_the_backbone_learns_from_its_part_of_training_on_with_a_warm_up_of_its_own():
    made = task(norm=True)
    start = {name: value.clone() for name, value in made.embedder.state_dict().items()}
    weights, rates = Weights(made), Rates(made)
    options = settings(schedule="constant", warmup=0.0, unfreeze_at=0.5, unfreeze_warmup=0.25)
    train(made, options, hooks=[weights, rates])
    assert not moved(start, weights.seen[5], "backbone.")  # statistics, too
    assert moved(start, weights.seen[5], "neck.") == {"neck.1.weight", "neck.1.bias"}
    assert len(moved(weights.seen[5], weights.seen[6], "backbone.")) == 6
    assert [seen["backbone"] / seen["embedder"] for seen in rates.seen[6:]] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 1, 1]
    )


def test_a_frozen_backbone_builds_no_graph():
    made = task()
    engine = Engine(made, settings(unfreeze_at=0.5), Hardware(), World(), Run())
    seen = []
    made.embedder.backbone.register_forward_hook(lambda m, given, found: seen.append(found.requires_grad))
    for batch in batches()(0, 7):
        engine.advance(batch)
    assert seen == [False] * 6 + [True]


def test_the_head_is_locked_for_the_whole_run_or_once_the_backbone_learns():
    for options, last_move in (({}, 0), ({"unfreeze_at": 0.5}, 6)):
        made = task()
        engine = Engine(made, settings(freeze_head=True, **options), Hardware(), World(), Run())
        moves = []
        for batch in batches()(0, 12):
            before = made.head.weight.detach().clone()
            engine.advance(batch)
            moves.append(not torch.equal(before, made.head.weight))
        assert moves == [step < last_move for step in range(12)]


def resnet():
    torch.manual_seed(0)
    backbone = Timm("resnet18", pretrained=False, image_px=32, options={"drop_path_rate": 0.5})
    return Embedder(backbone, GeM(), Linear(6, in_dim=backbone.out_dim))


class Pull(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, output, batch):
        return Loss((output.z @ self.weight).mean(), {})


def test_the_first_layers_keep_weights_and_statistics_and_the_rest_learns():
    made = task(embedder=resnet(), head=Pull())
    made.optimizer = adamw(lr=0.01, embedder=made.embedder, head=made.head)
    before = {name: value.clone() for name, value in made.embedder.state_dict().items()}
    pictures = next(batches()(0, 1))
    pictures.images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    engine = Engine(made, settings(freeze_until="layer3"), Hardware(), World(), Run())
    engine.advance(pictures)
    after = made.embedder.state_dict()
    changed = moved(before, after, "backbone.")
    assert {name.split(".")[2] for name in changed} == {"layer3", "layer4"}
    assert "backbone.model.layer3.0.bn1.running_mean" in changed
    assert not made.embedder.backbone.model.layer2[0].training  # no stochastic depth in what is fixed
    assert made.embedder.backbone.model.layer3[0].training and made.embedder.backbone.training


def test_a_pattern_in_no_name_and_contradictions_are_named():
    with pytest.raises(UserError, match=r"trainer\.freeze_until: 'layer9' is in no name of the backbone"):
        Freezer(TinyEmbedder(), nn.Identity(), settings(freeze_until="layer9"), [], False)
    with pytest.raises(UserError, match=r"trainer\.unfreeze_at: 0\.5; accepted: 0 \(off\), or freeze_ba"):
        settings(unfreeze_at=0.5, freeze_backbone=True).check()
    with pytest.raises(UserError, match=r"trainer\.uniform_from: 3; accepted: null, or ema_decay=0"):
        settings(uniform_from=3, ema_decay=0.9).check()


def test_what_was_frozen_before_the_optimiser_was_made_stays_frozen():
    made = task()
    made.embedder.backbone[0].bias.requires_grad_(False)
    made.optimizer = adamw(embedder=made.embedder, head=made.head)
    bias = made.embedder.backbone[0].bias.detach().clone()
    train(made, settings(unfreeze_at=0.3))
    assert torch.equal(made.embedder.backbone[0].bias, bias)


def test_frozen_parts_are_a_function_of_the_step():
    options = settings(unfreeze_at=0.5, freeze_head=True)
    assert [sorted(frozen_parts(options, step, 4)) for step in range(4)] == [["backbone"]] * 2 + [
        ["head"]
    ] * 2
    assert frozen_parts(settings(freeze_backbone=True), 3, 4) == {"backbone"}
