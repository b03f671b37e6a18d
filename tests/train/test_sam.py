"""SAM by the engine against its two passes written out, and against what could move twice."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from tiny import TinyEmbedder, TinyHead, batches, sam_adamw, settings, task, train
from torch import nn

from guie import checkpoint
from guie.build import build
from guie.config.compose import composed
from guie.errors import UserError
from guie.train.distributed import Hardware, World
from guie.train.engine import Engine
from guie.train.optim import adamw, sgd
from guie.train.sam import Sam, sam
from guie.train.task import Run
from guie.types import Loss

PLAIN = {"schedule": "constant", "warmup": 0.0}


def climbing(lr, *, embedder, head, rho=0.05, adaptive=False):
    base = sgd(lr=lr, momentum=0.0, weight_decay=0.0, embedder=embedder, head=head)
    return sam(base, rho, adaptive)


def by_hand(made, steps, lr, rho, adaptive):
    """Return the weights after `steps` of SAM over plain gradient descent, written out."""
    embedder, head = deepcopy(made.embedder), deepcopy(made.head)
    weights = [*embedder.parameters(), *head.parameters()]

    def gradients(batch):
        return torch.autograd.grad(head(embedder(batch.images), batch).total, weights)

    for batch in batches()(0, steps):
        first = gradients(batch)
        kept = [weight.detach().clone() for weight in weights]
        length = sum(
            float(((weight.abs() if adaptive else 1.0) * g).square().sum())
            for weight, g in zip(kept, first, strict=True)
        )
        with torch.no_grad():
            for weight, g in zip(weights, first, strict=True):
                weight += rho * (weight.square() if adaptive else 1.0) * g / length**0.5
        second = gradients(batch)
        with torch.no_grad():
            for weight, old, g in zip(weights, kept, second, strict=True):
                weight.copy_(old - lr * g)
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize(("adaptive", "rho"), [(False, 0.05), (True, 0.5)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_the_two_passes_written_out(adaptive, rho, accumulate):
    made = task(dtype=torch.float64, optim=partial(climbing, rho=rho, adaptive=adaptive))
    expected = by_hand(made, 12, 0.01, rho, adaptive)
    train(made, settings(accumulate=accumulate, **PLAIN))
    for weight, other in zip([*made.embedder.parameters(), *made.head.parameters()], expected, strict=True):
        torch.testing.assert_close(weight.detach(), other, rtol=0, atol=1e-12)


def test_the_comparison_can_fail_without_the_climb():
    made = task(dtype=torch.float64, optim=partial(climbing, rho=1e-9))
    expected = by_hand(made, 12, 0.01, 0.05, False)
    train(made, settings(**PLAIN))
    assert float((made.head.weight.detach() - expected[-1]).abs().max()) > 1e-6


def test_both_passes_draw_the_same_noise_and_the_next_step_another():
    made = task(dropout=0.5, optim=sam_adamw)
    masks = []
    made.embedder.neck[0].register_forward_hook(lambda module, given, found: masks.append(found == 0))
    train(made, settings(max_steps=2))
    assert len(masks) == 4
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_batch_statistics_move_once_by_the_batch_as_the_weights_themselves_see_it():
    made, plain = task(norm=True, optim=sam_adamw), task(norm=True)
    train(made, settings(max_steps=1))
    train(plain, settings(max_steps=1))
    for name, value in made.embedder.backbone.named_buffers():
        assert torch.equal(value, plain.embedder.backbone.get_buffer(name)), name


class RememberingHead(TinyHead):
    """Adds to its memory in place, and counts by another tensor, whenever it is asked."""

    def __init__(self):
        super().__init__()
        self.register_buffer("memory", torch.zeros(()))
        self.register_buffer("times", torch.zeros(()))
        self.read = []

    def forward(self, output, batch):
        self.read.append((float(self.memory), float(self.times)))
        self.memory += float(output.z.detach().abs().sum())
        self.times = self.times + 1
        return Loss(super().forward(output, batch).total, {})


def test_a_memory_is_read_alike_in_both_passes_and_grows_once():
    made = task(head=RememberingHead())
    made.optimizer = sam_adamw(0.01, embedder=made.embedder, head=made.head)
    train(made, settings(max_steps=3))
    assert [times for _, times in made.head.read] == [0, 0, 1, 1, 2, 2]
    assert made.head.read[2] == made.head.read[3] and made.head.read[1] != made.head.read[2]
    assert float(made.head.times) == 3


def fp16_engine(scale):
    made = task(dtype=torch.float32, optim=sam_adamw)
    engine = Engine(made, settings(clip_norm=1.0), Hardware(precision="fp16"), World(), Run())
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return engine


def test_an_overflow_in_the_first_pass_skips_the_whole_step_and_lowers_the_scale_once():
    engine = fp16_engine(2.0**40)
    before = deepcopy(engine.trained.state_dict())
    passes = []
    engine.trained.register_forward_hook(lambda *_: passes.append(1))
    engine.advance(next(batches()(0, 1)))
    assert engine.scaler.get_scale() == 2.0**39 and len(passes) == 1
    assert all(torch.equal(value, before[name]) for name, value in engine.trained.state_dict().items())


def test_scaled_gradients_climb_as_far_as_unscaled_ones():
    one, other = fp16_engine(1.0), fp16_engine(2.0**10)
    for batch in batches()(0, 3):
        one.advance(batch), other.advance(batch)
    torch.testing.assert_close(one.task.head.weight, other.task.head.weight, rtol=1e-3, atol=1e-3)
    assert other.scaler.get_scale() == 2.0**10


def test_weights_come_back_exactly_where_the_second_pass_fails():
    module = nn.Linear(3, 1)
    made = Sam(adamw(embedder=module, head=nn.Identity()), rho=3.0)
    before = module.weight.detach().clone()
    module(torch.ones(2, 3)).sum().backward()
    with pytest.raises(ValueError, match="no more"), made.climbed():
        assert not torch.equal(module.weight, before)
        raise ValueError("no more")
    assert torch.equal(module.weight, before)


def test_the_checkpoint_holds_the_state_of_the_base(tmp_path):
    train(task(optim=sam_adamw), settings(max_steps=2), folder=tmp_path)
    saved = checkpoint.read(tmp_path, "last").training["optimizer"]
    assert "exp_avg" in saved["state"][0]
    assert saved["param_groups"][0]["weight_decay"] == 0.05


@pytest.mark.parametrize(("name", "base"), [("sam_adamw", torch.optim.AdamW), ("sam_sgd", torch.optim.SGD)])
def test_the_configs_wrap_an_optimiser_whose_keys_can_be_set(name, base):
    cfg = composed("train", [f"optim={name}", "optim.base.lr=0.123", "optim.rho=0.2"])
    made = build(cfg["optim"], where="optim", embedder=TinyEmbedder(), head=TinyHead())
    assert type(made.base) is base and made.rho == 0.2
    assert {group["initial_lr"] for group in made.param_groups} == {0.123}
    with pytest.raises(UserError, match=r"optim\.rho: 0 received; accepted: above 0"):
        sam(made.base, rho=0)
