"""Two ranks do what one process does with the whole batch."""

import pytest
import torch
from ranks import logs, run_ranks
from tiny import CLASSES, sam_adamw, settings, task, train
from torch import nn

from guie import checkpoint
from guie.errors import UserError
from guie.heads.gate import Gate
from guie.train.distributed import World, cpu_has_bf16, pick_device, precision
from guie.train.optim import adamw
from guie.train.synced_bn import SyncedBatchNorm, synchronise


def weights_after_20_steps(folder, world=None, *, norm=False, optim=adamw, on_feature=False, **changes):
    world = world or World()
    made = task(0, world, dtype=torch.float64, norm=norm, optim=optim)
    if on_feature:  # the neck is there and gets no gradient
        made.head = Gate(num_classes=CLASSES, feature_dim=16).double()
        made.optimizer = optim(lr=0.01, embedder=made.embedder, head=made.head)
    train(made, settings(epochs=5, keep=1, **changes), folder=folder, world=world)


def largest_difference(a, b):
    one, two = (checkpoint.read(folder, "last") for folder in (a, b))
    assert one.step == two.step == 20
    return max(
        float((one.parts[part][name].double() - two.parts[part][name].double()).abs().max())
        for part in one.parts
        for name in one.parts[part]
    )


CASES = {
    "plain": {},
    "frozen batch norm": {"norm": True, "freeze_bn": True},
    "synchronised batch norm": {"norm": True, "sync_bn": True},
    "accumulated, clipped, averaged": {"accumulate": 2, "clip_norm": 0.1, "ema_decay": 0.9},
    "a head on the feature, accumulated": {"on_feature": True, "accumulate": 2},
    "SAM accumulated, uniform average": {"optim": sam_adamw, "accumulate": 2, "uniform_from": 5},
    "backbone later, then no head": {
        "unfreeze_at": 0.4,
        "unfreeze_warmup": 0.2,
        "freeze_head": True,
    },
}


def test_two_ranks_equal_one_process_with_the_whole_batch(tmp_path):
    def all_cases(world):
        for name, changes in CASES.items():
            weights_after_20_steps(tmp_path / name / "two", world, **changes)

    assert run_ranks(2, all_cases, tmp_path / "ranks") == [0, 0], logs(tmp_path / "ranks")
    for name, changes in CASES.items():
        weights_after_20_steps(tmp_path / name / "one", **changes)
        assert largest_difference(tmp_path / name / "one", tmp_path / name / "two") < 1e-9, name


def test_the_comparison_can_fail_with_batch_statistics_of_each_rank(tmp_path):
    def apart(world):
        weights_after_20_steps(tmp_path / "two", world, norm=True)

    assert run_ranks(2, apart, tmp_path / "ranks") == [0, 0], logs(tmp_path / "ranks")
    weights_after_20_steps(tmp_path / "one", norm=True)
    assert largest_difference(tmp_path / "one", tmp_path / "two") > 1e-6


def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path):
    weights_after_20_steps(tmp_path / "whole")
    weights_after_20_steps(tmp_path / "pieces", accumulate=3)
    assert largest_difference(tmp_path / "whole", tmp_path / "pieces") < 1e-9


def test_an_error_on_rank_0_is_raised_on_every_rank(tmp_path):
    def fails(world):
        def refuse():
            raise UserError("run_dir: taken")

        with pytest.raises(UserError, match="run_dir: taken"):
            world.on_main(refuse)

    assert run_ranks(2, fails, tmp_path) == [0, 0], logs(tmp_path)


def test_synchronising_keeps_weights_names_and_what_follows_the_norm():
    class Fused(nn.BatchNorm2d):
        def __init__(self, width):
            super().__init__(width)
            self.drop, self.act = nn.Identity(), nn.ReLU()

        def forward(self, x):
            return self.act(self.drop(super().forward(x)))

    module = nn.Sequential(nn.Conv2d(3, 4, 1), Fused(4)).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    names, before = list(module.state_dict()), module(x)
    synchronise(module)
    assert isinstance(module[1], SyncedBatchNorm)
    assert list(module.state_dict()) == names
    torch.testing.assert_close(module(x), before)


def test_synchronising_keeps_the_hooks_of_a_norm_and_a_norm_that_two_share():
    shared, called = nn.BatchNorm1d(3), []
    shared.register_forward_pre_hook(lambda module, args: called.append("before"))
    shared.register_forward_hook(lambda module, args, output: called.append("after"))
    shared.register_full_backward_hook(lambda module, of_input, of_output: called.append("backward"))
    module = nn.Sequential(shared, nn.Linear(3, 3), shared).eval()
    synchronise(module)
    module(torch.randn(2, 3, requires_grad=True)).sum().backward()
    assert called == ["before", "after"] * 2 + ["backward"] * 2
    assert module[0] is module[2]


def test_devices_and_precisions_are_named():
    assert pick_device("cpu").type == "cpu"
    assert precision("auto", torch.device("cpu")) is None
    assert precision("bf16", torch.device("cpu")) is torch.bfloat16
    with pytest.raises(UserError, match="device: 'tpu'; accepted: auto, cpu, cuda"):
        pick_device("tpu")
    with pytest.raises(UserError, match=r"hw\.precision: 'fp8'; accepted: auto, native, fp32"):
        precision("fp8", torch.device("cpu"))


def test_native_precision_asks_the_processor(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("flags : fpu avx2 avx512_bf16 sse\n")
    assert cpu_has_bf16(info)
    info.write_text("flags : fpu avx2 sse\n")
    assert not cpu_has_bf16(info)
    assert not cpu_has_bf16(tmp_path / "absent")
    assert precision("auto", torch.device("cpu")) is None
    assert precision("native", torch.device("cpu")) is (torch.bfloat16 if cpu_has_bf16() else None)
