"""Weights cut over ranks by FSDP: one process in all but memory; any number of ranks reads a checkpoint."""

from collections import Counter
from functools import partial

import pytest
import torch
import torch.distributed.fsdp  # before forking: importing it takes a second
from killed import killed_and_straight
from ranks import logs, run_ranks, start_ranks, wait
from test_sharded import largest_difference, tensors
from tiny import CLASSES, STEPS_PER_EPOCH, TinyEmbedder, TinyHead, batches, settings
from torch import nn

from guie import checkpoint
from guie.embed.space import space_id
from guie.errors import UserError
from guie.heads.combine import Weighted
from guie.heads.sharded import PartialFC
from guie.train import gradients
from guie.train.distributed import Hardware, World
from guie.train.engine import Engine
from guie.train.fsdp import _prepare, blocks, check
from guie.train.loop import fit
from guie.train.optim import adamw, sgd
from guie.train.sam import sam
from guie.train.task import Run, Task

WIDTH = 7  # odd: the ranks' parts differ


class Block(nn.Module):
    """x + mlp(norm(x)) as in a transformer."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x + self.scale * self.down(torch.tanh(self.up(self.norm(x))))


class Tower(nn.Module):
    """With `checkpointing` its blocks are computed again in the backward pass."""

    def __init__(self, checkpointing=False):
        super().__init__()
        self.stem = nn.Linear(48, WIDTH)
        self.pos_embed = nn.Parameter(torch.zeros(WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.checkpointing = checkpointing

    def forward(self, x):
        x = self.stem(x.flatten(1)) + self.pos_embed
        for block in self.blocks:
            again = self.checkpointing and self.training
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x


class TowerEmbedder(TinyEmbedder):
    """The miniature with blocks; its neck holds a batch norm."""

    def __init__(self, checkpointing=False):
        super().__init__()
        self.backbone = Tower(checkpointing)
        self.neck = nn.Sequential(nn.Dropout(0.0), nn.Linear(WIDTH, 6, bias=False), nn.BatchNorm1d(6))


def partial_fc():
    return PartialFC(scale=10.0, num_classes=CLASSES, embed_dim=6)


def both_heads():
    return Weighted({"pfc": partial_fc(), "plain": TinyHead()}, {"pfc": 0.3})


def sgd_in_front_of_sam(**parts):
    return sam(sgd(**parts), rho=0.1, adaptive=True)


def adamw_by_depth(**parts):
    return adamw(layer_decay=0.7, **parts)


def fused_adamw(**parts):
    return adamw(fused=True, **parts)


def sgd_of_many(**parts):
    optimizer = sgd(**parts)
    for group in optimizer.param_groups:
        group["foreach"] = True  # what optim.settle does on a GPU
    return optimizer


LATE = {"unfreeze_at": 0.4, "unfreeze_warmup": 0.2, "freeze_head": True}
AVERAGED, CLIPPED = {"clip_norm": 0.5, "ema_decay": 0.9}, {"clip_norm": 0.5}
CASES = {"adamw, clipped, averaged": (TowerEmbedder, TinyHead, adamw, AVERAGED)}
MORE = {
    "sgd, clipped, averaged": (TowerEmbedder, TinyHead, sgd, AVERAGED),
    # Biases before the norm have no gradient but rounding, which Adam would blow up.
    "synchronised batch norm": (TowerEmbedder, TinyHead, sgd, {"sync_bn": True}),
    "accumulated, uniform average": (TowerEmbedder, TinyHead, adamw, {"accumulate": 2, "uniform_from": 5}),
    "checkpointing": (lambda: TowerEmbedder(True), TinyHead, sgd, {}),
    "layers learn at rates of their own": (TowerEmbedder, TinyHead, adamw_by_depth, {}),
    "backbone later, then no head": (TowerEmbedder, TinyHead, adamw, LATE),
    "frozen backbone": (TowerEmbedder, TinyHead, adamw, {"freeze_backbone": True}),
    "first layers frozen": (TowerEmbedder, TinyHead, sgd, {"freeze_until": r"blocks\.1"}),
    "a climb before each step": (TowerEmbedder, TinyHead, sgd_in_front_of_sam, CLIPPED),
    "beside class weights cut by rows": (TowerEmbedder, both_heads, adamw, CLIPPED),
    "only class weights cut by rows": (TowerEmbedder, partial_fc, sgd_in_front_of_sam, {}),
    "one kernel for all": (TowerEmbedder, TinyHead, fused_adamw, {}),
    "many tensors at once": (TowerEmbedder, TinyHead, sgd_of_many, {}),
    "no blocks": (TinyEmbedder, TinyHead, adamw, CLIPPED),
}
PLAIN = "adamw, clipped, averaged"


def trained(case, folder, world=None, *, shard="fsdp", hooks=(), resume=None, evaluate=None, **changes):
    world = world or World()
    make_embedder, make_head, make_optimizer, options = (CASES | MORE)[case]
    torch.manual_seed(0)
    embedder, head = make_embedder().double(), make_head().double()
    if shard == "fsdp" and world.rank:  # as with DDP, rank 0 says where to begin
        with torch.no_grad():
            embedder.neck[1].weight.zero_()
    optimizer = make_optimizer(lr=0.02, embedder=embedder, head=head)
    made = Task(embedder, head, optimizer, batches(0, world), STEPS_PER_EPOCH, evaluate)
    # The statistics of half a batch are others.
    norm = {"freeze_bn": not options.get("sync_bn")}
    chosen = settings(**{"epochs": 5, "keep": 20, **norm, **options, **changes})
    store = None if folder is None else checkpoint.Store(folder, chosen.keep)
    describe = lambda weights: {"space_id": space_id(embedder, weights)}  # noqa: E731
    run = Run(store=store, hooks=hooks, resume=resume, describe=describe)
    fit(made, chosen, Hardware(shard=shard), world, run)
    return made


def ranks_and_one_process_agree(cases, folder, ranks=2, shards=("fsdp",)):
    def all_of_them(world):
        for case in cases:
            for shard in shards:
                made = trained(case, folder / case / shard, world, shard=shard)
                assert all(hasattr(p, "to_local") for p in made.embedder.parameters()) == (shard == "fsdp")

    assert run_ranks(ranks, all_of_them, folder / "ranks") == [0] * ranks, logs(folder / "ranks")
    for case in cases:
        trained(case, folder / case / "one")
        for shard in shards:
            assert largest_difference(folder / case / "one", folder / case / shard) < 1e-9, (case, shard)


def test_two_ranks_with_half_of_every_weight_equal_one_process(tmp_path):
    """Weights, their average, the optimiser's state and what is logged, after 20 steps."""
    ranks_and_one_process_agree(CASES, tmp_path)


@pytest.mark.slow
def test_two_ranks_equal_one_process_and_ddp_in_every_case(tmp_path):
    ranks_and_one_process_agree(CASES | MORE, tmp_path, shards=("fsdp", "none"))


@pytest.mark.slow
def test_the_comparison_can_fail_where_each_rank_clips_by_its_own_part(tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "whole_norms", lambda norms, parameters: list(norms))
    with pytest.raises(AssertionError, match=r"assert .* < 1e-09"):
        ranks_and_one_process_agree(CASES, tmp_path)


@pytest.mark.slow
def test_four_ranks_of_which_some_hold_nothing_of_the_smallest_weights_equal_one_process(tmp_path):
    cases = [PLAIN, "accumulated, uniform average", "a climb before each step"]
    ranks_and_one_process_agree({name: (CASES | MORE)[name] for name in cases}, tmp_path, ranks=4)


@pytest.mark.slow
def test_ranks_killed_in_mid_epoch_end_in_the_same_bits(tmp_path):
    killed, straight = killed_and_straight(tmp_path, partial(trained, PLAIN))
    resumed_ones, straight_ones = tensors(killed), tensors(straight)
    assert all(torch.equal(resumed_ones[name], straight_ones[name]) for name in straight_ones)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((2, "fsdp"), (1, "none")),
        ((1, "none"), (2, "fsdp")),
        ((2, "fsdp"), (2, "none")),
        ((2, "none"), (4, "fsdp")),
    ],
)
def test_a_checkpoint_is_continued_by_other_ranks_with_and_without_fsdp(tmp_path, first, second):
    def begin(world):
        trained(PLAIN, tmp_path / "all", world, shard=first[1], save_steps=6)

    def end(world):
        state = checkpoint.read(tmp_path / "all" / "step_000006")
        trained(PLAIN, tmp_path / "end", world, shard=second[1], resume=state)

    for place, work in ((first, begin), (second, end)):
        folder = tmp_path / f"ranks{place[0]}{place[1]}"
        assert run_ranks(place[0], work, folder) == [0] * place[0], logs(folder)
    trained(PLAIN, tmp_path / "one")
    assert largest_difference(tmp_path / "one", tmp_path / "end") < 1e-9


@pytest.mark.slow
def test_evaluation_sees_the_averaged_weights_whole_on_rank_0_and_the_space_is_that_of_one_process(tmp_path):
    def measured(folder, world):
        seen = []

        def evaluate(embedder, step):
            def measure():
                images = torch.arange(2 * 3 * 16, dtype=torch.float64).reshape(2, 3, 4, 4)
                assert not embedder.training
                torch.save(embedder(images).z, folder / f"{step}.pt")
                seen.append(space_id(embedder))
                embedder.neck[2].running_var.fill_(9)  # as a refit does; it is lent

            world.on_main(measure)
            return {"mP@5": 1.0}

        folder.mkdir(exist_ok=True)
        trained(PLAIN, folder, world, evaluate=evaluate, eval_every=2, max_steps=16)
        if world.is_main:
            assert checkpoint.read(folder, "last").meta["space_id"] == seen[-1]

    two = lambda world: measured(tmp_path / "two", world)  # noqa: E731
    pids = start_ranks(2, two, tmp_path / "ranks")
    assert [wait(pid) for pid in pids] == [0, 0], logs(tmp_path / "ranks")
    measured(tmp_path / "one", World())
    for step in (8, 16):
        one, other = (torch.load(tmp_path / name / f"{step}.pt") for name in ("one", "two"))
        torch.testing.assert_close(other, one, rtol=0, atol=1e-9)
    one, two = (checkpoint.read(tmp_path / name, "last").parts["ema"] for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-9


@pytest.mark.slow
def test_in_bf16_matrices_of_blocks_are_gathered_in_half_and_gradients_are_those_of_autocast(tmp_path):
    def one_step(world, shard):
        torch.manual_seed(0)
        embedder, head = TowerEmbedder(), TinyHead()
        task = Task(embedder, head, sgd(lr=0.1, embedder=embedder, head=head), batches(0, world), 4)
        engine = Engine(task, settings(), Hardware(shard=shard, precision="bf16"), world, Run())
        found, last = [], embedder.backbone.blocks[2]
        hook = last.register_forward_pre_hook(
            lambda block, args: found.extend([block.up.weight, block.scale, args[0]])
        )
        engine.gradients(next(task.batches(0, 1)))
        hook.remove()
        gradients = {n: p.grad for n, p in engine.trained.named_parameters()}
        assert {g.dtype for g in gradients.values()} == {torch.float32}
        return [value.dtype for value in found], gradients

    def compared(world):
        types, cut = one_step(world, "fsdp")
        ddp_types, whole = one_step(world, "none")
        assert types == [torch.bfloat16, torch.float32, torch.float32]
        assert ddp_types == [torch.float32] * 3
        for name, gradient in whole.items():
            torch.testing.assert_close(cut[name].full_tensor(), gradient, rtol=0.02, atol=1e-4)

    assert run_ranks(2, compared, tmp_path) == [0, 0], logs(tmp_path)


def test_blocks_are_the_innermost_lists_of_one_class():
    stage = lambda num: nn.Sequential(*(Block() for _ in range(num)))  # noqa: E731
    network = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([stage(3), stage(1), nn.Sequential(stage(2))]))
    assert Counter(type(block) for block in blocks(network)) == {Block: 5, nn.Sequential: 1}
    assert blocks(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))) == []
    assert blocks(nn.Sequential(Block(), nn.Linear(2, 2))) == []


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        (Hardware(shard="fsdp", compile=True), "hw.compile: true with hw.shard=fsdp; accepted: false"),
        (Hardware(shard="fsdp", precision="fp16"), "hw.precision: 'fp16' with hw.shard=fsdp; accepted: auto"),
    ],
)
def test_what_does_not_go_with_it_is_named(hardware, message):
    with pytest.raises(UserError, match=message):
        check(hardware)


def test_a_weight_that_is_one_number_is_refused_by_name():
    with pytest.raises(
        UserError, match=r"hw\.shard: fsdp cannot cut head\.t, a single number; accepted: none"
    ):
        _prepare({"head.t": nn.Parameter(torch.tensor(1.0))}, iter(()))
