import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim import SGD, AdamW, lr_scheduler

from guie.train.schedule import Schedule
from guie.train.settings import Settings


def optimizer(lr=1.0, kind=SGD, **options):
    return kind([torch.nn.Parameter(torch.zeros(1))], lr=lr, **options)


def rates_of(scheduler, count):
    """Return the rates that a scheduler of torch sets at its steps 0 .. count - 1."""
    found = []
    for _ in range(count):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def factors(count, **options):
    schedule = Schedule(count, **options)
    return [schedule.factor(step) for step in range(count)]


def test_warm_up_rises_linearly_to_one():
    assert factors(100, warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors(100, warmup_steps=4, warmup_from=0.2)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_is_the_formula_and_torchs():
    for step, found in enumerate(factors(100, warmup_steps=10, final=0.1)[10:]):
        assert found == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * step / 90)) / 2)
    torchs = lr_scheduler.CosineAnnealingLR(optimizer(), 100, eta_min=0.1)
    assert factors(100, final=0.1) == pytest.approx(rates_of(torchs, 100))


def test_linear_and_constant():
    assert factors(5, shape="linear")[:5] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert set(factors(4, shape="constant")) == {1.0}


def test_poly_exponential_and_step_are_torchs():
    poly = lr_scheduler.PolynomialLR(optimizer(), 40, power=0.7)
    assert factors(40, shape="poly", power=0.7) == pytest.approx(rates_of(poly, 40))
    exponential = lr_scheduler.ExponentialLR(optimizer(), 0.9)
    assert factors(40, shape="exponential", gamma=0.9) == pytest.approx(rates_of(exponential, 40))
    stepped = lr_scheduler.MultiStepLR(optimizer(), [3, 6], gamma=0.5)
    each_step = factors(40, steps_per_epoch=4, shape="step", milestones=(3, 6), gamma=0.5)
    assert each_step == pytest.approx([rate for rate in rates_of(stepped, 10) for _ in range(4)])


@pytest.mark.parametrize("per_epoch", [True, False])
def test_an_exponential_fall_may_keep_the_value_of_the_epochs_beginning(per_epoch):
    found = factors(8, steps_per_epoch=4, shape="exponential", gamma=0.5, per_epoch=per_epoch)
    assert found[4] == 0.5
    assert (found[7] == 0.5) == per_epoch


@pytest.mark.parametrize(("kind", "key"), [(SGD, "momentum"), (AdamW, "betas")])
def test_one_cycle_is_torchs_momentum_included(kind, key):
    made = optimizer(kind=kind, **({"momentum": 0.9} if kind is SGD else {}))
    torchs = lr_scheduler.OneCycleLR(made, max_lr=2.0, total_steps=100, pct_start=0.3)
    ours = Schedule(100, shape="one_cycle", warmup_steps=30, final=1 / 25 / 1e4, momentum_range=(0.85, 0.95))
    for step in range(100):
        group = made.param_groups[0]
        momentum = group[key][0] if key == "betas" else group[key]
        assert 2.0 * ours.factor(step) == pytest.approx(group["lr"], abs=1e-12)
        assert ours.momentum(step) == pytest.approx(momentum)
        made.step()
        if step < 99:
            torchs.step()


def test_system_a_is_timms_cosine_by_epochs_with_its_prefix():
    """Warm-up of 3 epochs from 1e-6, then a cosine as long as all epochs, which their end cuts off."""
    epochs, steps_per_epoch, lr = 20, 7, 1e-2
    timms = CosineLRScheduler(
        optimizer(lr), t_initial=epochs, lr_min=lr * 1e-4, warmup_t=3, warmup_lr_init=1e-6, warmup_prefix=True
    )
    settings = Settings(
        epochs=epochs, warmup_epochs=3, warmup_from=1e-4, warmup_prefix=True, final_lr=1e-4, per_epoch=True
    )
    pace = settings.check().pace(steps_per_epoch)
    for epoch in range(epochs):
        expected = timms._get_lr(epoch)[0]
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            assert lr * pace.factor(step) == pytest.approx(expected, rel=1e-12)


def test_system_d_falls_linearly_once_an_epoch():
    pace = Settings(epochs=5, schedule="linear", warmup=0, per_epoch=True).check().pace(3)
    assert [pace.factor(step) for step in range(15)] == pytest.approx(
        [1 - epoch / 5 for epoch in range(5) for _ in range(3)]
    )


def test_a_run_of_one_step_learns():
    for shape in ("cosine", "linear", "one_cycle"):
        assert Schedule(1, shape=shape).factor(0) == 1.0
