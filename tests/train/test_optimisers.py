"""Every YAML of configs/optim on a miniature: the loss falls, the checkpoint reloads."""

from pathlib import Path

import pytest
import torch
from tiny import TinyEmbedder, TinyHead, batches, settings, task, train

from guie import checkpoint
from guie.build import build
from guie.config.compose import composed, directory
from guie.train.hooks import Hook
from guie.train.optim import Rates, adamw, parameter_groups

NAMES = sorted(path.stem for path in Path(directory() / "optim").glob("*.yaml"))


class Losses(Hook):
    def __init__(self):
        self.values = []

    def record(self, values):
        self.values.append(values["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_each_optimiser_lowers_the_loss_and_its_checkpoint_reloads(tmp_path, name):
    rate = "optim.base.lr" if name.startswith("sam_") else "optim.lr"
    node = composed("train", [f"optim={name}", f"{rate}=0.005"])["optim"]

    def made():
        one = next(batches()(0, 1))
        return task(
            optim=lambda lr, **facts: build(node, where="optim", **facts),
            batches=lambda start, stop: iter([one] * (stop - start)),
        )

    losses = Losses()
    train(made(), settings(epochs=1, schedule="constant", warmup=0), folder=tmp_path, hooks=[losses])
    assert losses.values[-1] < losses.values[0]
    again = made()
    state = checkpoint.read(tmp_path, "last")
    train(again, settings(epochs=2, schedule="constant", warmup=0), hooks=[losses], resume=state)
    assert len(losses.values) == 8 and losses.values[7] < losses.values[3]


def test_names_and_shapes_decide_what_does_not_decay():
    class Vit(TinyEmbedder):
        def __init__(self):
            super().__init__(norm=True)
            self.backbone.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 4))
            self.backbone.pos_embed = torch.nn.Parameter(torch.zeros(1, 5, 4))

    groups = parameter_groups(Vit(), TinyHead(), Rates(1.0), 0.1)
    assert {group["name"]: len(group["params"]) for group in groups} == {
        "backbone": 1,
        "backbone.no_decay": 4,
        "embedder": 1,
        "embedder.no_decay": 1,
        "head": 1,
    }
    assert {group["weight_decay"] for group in groups if "no_decay" in group["name"]} == {0.0}
    made = adamw(weight_decay=0.1, embedder=Vit(), head=TinyHead())
    before = made.param_groups[0]["params"][0].detach().clone()
    for group in made.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    made.step()  # without gradient only decay moves weights
    torch.testing.assert_close(made.param_groups[0]["params"][0].detach(), before * (1 - 1e-3 * 0.1))
