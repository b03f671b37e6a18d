"""Class weights cut over ranks: one process in all but memory; any number of ranks cuts a checkpoint anew."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from killed import killed_and_straight
from ranks import logs, run_ranks
from tiny import DIM, STEPS_PER_EPOCH, TinyEmbedder, TinyHead, batches, settings, train

from guie import checkpoint
from guie.errors import UserError
from guie.heads.combine import Weighted
from guie.heads.margin import ArcFace
from guie.heads.margin_by import ByEpoch
from guie.heads.sharded import PartialFC
from guie.train import gradients
from guie.train.distributed import Hardware, World, replicate
from guie.train.engine import Engine
from guie.train.optim import adamw, sgd
from guie.train.sam import sam
from guie.train.sharding import sharded_names
from guie.train.task import Run, Task
from guie.types import Batch, Output

CLASSES = 11  # 2 ranks hold 5 and 6


def partial_fc(**options):
    return PartialFC(**{"scale": 10.0, **options}, num_classes=CLASSES, embed_dim=DIM)


CASES = {
    "sampled, adamw, clipped": (
        lambda: partial_fc(sample_rate=0.4, label_smoothing=0.1, focal=1.0, margin_by={"epoch": ByEpoch(3)}),
        adamw,
        {"clip_norm": 0.5},
    ),
}
MORE = {
    "every class, sgd, clipped": (partial_fc, sgd, {"clip_norm": 0.5}),
    "cosface in chunks, adamw": (lambda: partial_fc(kind="cosface", margin=0.35, chunk=2), adamw, {}),
    "sampled, sgd": (lambda: partial_fc(sample_rate=0.3, seed=5), sgd, {"clip_norm": 0.5, "ema_decay": 0.9}),
    "accumulated": (partial_fc, adamw, {"accumulate": 2, "clip_norm": 0.1}),
    "a climb before each step": (
        lambda: partial_fc(sample_rate=0.5),
        lambda **parts: sam(sgd(**parts), rho=0.1),
        {"clip_norm": 0.5},
    ),
    "beside another head": (
        lambda: Weighted({"pfc": partial_fc(sample_rate=0.5), "plain": TinyHead()}, {"pfc": 0.3}),
        adamw,
        {"clip_norm": 0.5},
    ),
}
OPTIMISED = "sampled, adamw, clipped"


def trained(case, folder, world=None, *, hooks=(), resume=None, dtype=torch.float64, **changes):
    world = world or World()
    make_head, make_optimizer, options = (CASES | MORE)[case]
    torch.manual_seed(0)
    embedder, head = TinyEmbedder().to(dtype), make_head().to(dtype)
    optimizer = make_optimizer(lr=0.02, embedder=embedder, head=head)
    spread = 1 if isinstance(head, Weighted) else 2  # classes of both blocks

    def drawn(start, stop):
        for batch in batches(0, world)(start, stop):
            yield replace(batch, labels=batch.labels * spread)

    made = Task(embedder, head, optimizer, drawn, STEPS_PER_EPOCH)
    with_options = settings(**{"epochs": 5, "keep": 20, **options, **changes})
    train(made, with_options, folder=folder, world=world, hooks=hooks, resume=resume)
    return made


def tensors(folder):
    """Return every tensor of the last checkpoint by name: weights, the optimiser's state, the window."""
    state = checkpoint.read(folder, "last")
    assert state.step == 20
    named = {}
    checkpoint._pack(state.training, named, "training")
    return named | {f"{part}.{n}": v for part, weights in state.parts.items() for n, v in weights.items()}


def largest_difference(a, b):
    one, two = tensors(a), tensors(b)
    assert one.keys() == two.keys()
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


def ranks_and_one_process_agree(cases, folder, ranks=2):
    def all_of_them(world):
        for case in cases:
            head = trained(case, folder / case / "many", world).head
            held = [len(parameter) for parameter in head.parameters() if hasattr(parameter, "shard")]
            assert held in ([CLASSES // ranks], [CLASSES // ranks + 1])

    assert run_ranks(ranks, all_of_them, folder / "ranks") == [0] * ranks, logs(folder / "ranks")
    for case in cases:
        trained(case, folder / case / "one")
        assert largest_difference(folder / case / "one", folder / case / "many") < 1e-9, case


def test_two_ranks_with_half_the_classes_each_equal_one_process(tmp_path):
    """Weights, the optimiser's state and what is logged, after 20 steps."""
    ranks_and_one_process_agree(CASES, tmp_path)


@pytest.mark.slow
def test_two_ranks_equal_one_process_for_every_optimiser_and_loss(tmp_path):
    ranks_and_one_process_agree(MORE, tmp_path)


@pytest.mark.slow
def test_four_ranks_with_blocks_of_two_and_three_equal_one_process(tmp_path):
    ranks_and_one_process_agree({**CASES, **MORE}, tmp_path, ranks=4)


@pytest.mark.slow
def test_two_ranks_stay_near_one_process_in_float32(tmp_path):
    changes = {"dtype": torch.float32, "max_steps": 10}
    one = trained(OPTIMISED, tmp_path / "one", **changes)

    def near(world):
        two = trained(OPTIMISED, tmp_path / "two", world, **changes)
        shard = two.head.shard
        torch.testing.assert_close(
            two.head.weight, one.head.weight[shard.start : shard.stop], rtol=0, atol=1e-5
        )
        for a, b in zip(one.embedder.parameters(), two.embedder.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

    assert run_ranks(2, near, tmp_path) == [0, 0], logs(tmp_path)


@pytest.mark.slow
def test_one_process_with_every_class_is_arcface(tmp_path, monkeypatch):
    trained("every class, sgd, clipped", tmp_path / "sharded")
    plain = lambda: ArcFace(scale=10.0, num_classes=CLASSES, embed_dim=DIM)  # noqa: E731
    monkeypatch.setitem(MORE, "plain", (plain, sgd, {"clip_norm": 0.5}))
    trained("plain", tmp_path / "plain")
    assert largest_difference(tmp_path / "sharded", tmp_path / "plain") == 0


@pytest.mark.slow
def test_the_comparison_can_fail_where_each_rank_clips_by_its_own_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "whole_norms", lambda norms, parameters: list(norms))
    assert run_ranks(2, lambda world: trained(OPTIMISED, tmp_path / "two", world), tmp_path / "ranks") == [
        0,
        0,
    ]
    trained(OPTIMISED, tmp_path / "one")
    assert largest_difference(tmp_path / "one", tmp_path / "two") > 1e-6


@pytest.mark.slow
def test_shards_killed_in_mid_epoch_end_in_the_same_bits(tmp_path):
    killed, straight = killed_and_straight(tmp_path, partial(trained, OPTIMISED))
    resumed_ones, straight_ones = tensors(killed), tensors(straight)
    assert all(torch.equal(resumed_ones[name], straight_ones[name]) for name in straight_ones)


@pytest.mark.parametrize(
    ("first", "second"),
    [(2, 1), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(1, 2), (2, 4), (4, 1)])],
)
def test_a_checkpoint_is_cut_anew_by_another_number_of_ranks(tmp_path, first, second):
    def begin(world):
        trained(OPTIMISED, tmp_path / "all", world, save_steps=6)

    def end(world):
        state = checkpoint.read(tmp_path / "all" / "step_000006")
        assert state.parts["head"]["weight"].shape == (CLASSES, DIM)
        trained(OPTIMISED, tmp_path / "end", world, resume=state)

    for size, work in ((first, begin), (second, end)):
        folder = tmp_path / f"ranks{size}"
        assert run_ranks(size, work, folder) == [0] * size, logs(folder)
    trained(OPTIMISED, tmp_path / "one")
    assert largest_difference(tmp_path / "one", tmp_path / "end") < 1e-9


@pytest.mark.slow
def test_a_checkpoint_of_other_classes_and_more_ranks_than_classes_are_refused_on_every_rank(tmp_path):
    def refused(world):
        state = checkpoint.read(tmp_path / "a", "last")
        state.parts["head"]["weight"] = torch.zeros(9, DIM, dtype=torch.float64)
        match = r"checkpoint: head.weight: the checkpoint has \(9, 6\), the model \(11, 6\), cut over 2 ranks"
        with pytest.raises(UserError, match=match):
            trained(OPTIMISED, None, world, resume=state)
        with pytest.raises(UserError, match="1 classes cannot be cut over 2 ranks"):
            PartialFC(num_classes=1, embed_dim=DIM)

    trained(OPTIMISED, tmp_path / "a")
    assert run_ranks(2, refused, tmp_path / "ranks") == [0, 0], logs(tmp_path / "ranks")


@pytest.mark.slow
def test_a_bad_label_on_one_rank_is_an_error_on_both_and_no_waiting(tmp_path):
    def refused(world):
        head = partial_fc()
        raw, labels = torch.randn(2, DIM), torch.tensor([1, 99 if world.rank else 2])
        with pytest.raises(UserError, match=r"labels: 1\.\.99 received; accepted: 0\.\.10"):
            head(Output(raw, None, raw, raw), Batch(labels, labels, labels, labels))

    assert run_ranks(2, refused, tmp_path) == [0, 0], logs(tmp_path)


@pytest.mark.slow
def test_both_ranks_skip_the_step_whose_gradient_overflows_on_one(tmp_path):
    def overflowing(world):
        torch.manual_seed(0)
        embedder, head = TinyEmbedder(), partial_fc()
        steps = iter(range(100))
        if world.rank == 1:
            head.weight.register_hook(lambda grad: grad * torch.inf if next(steps) == 2 else grad)
        optimizer = sgd(lr=0.02, embedder=embedder, head=head)
        singles = (replace(batch, images=batch.images.float()) for batch in batches(0, world)(0, 4))
        task = Task(embedder, head, optimizer, lambda start, stop: singles, STEPS_PER_EPOCH)
        engine = Engine(task, settings(epochs=1), Hardware("fp16"), world, Run())
        engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": 256.0})
        scales, before = [], [embedder.neck[1].weight.tolist()]
        for batch in task.batches(0, 4):
            engine.advance(batch)
            scales.append(engine.scaler.get_scale())
            before.append(embedder.neck[1].weight.tolist())
        assert scales == [256, 256, 128, 128]
        assert [a == b for a, b in pairwise(before)] == [False, False, True, False]
        assert world.gather(before)[0] == before

    assert run_ranks(2, overflowing, tmp_path) == [0, 0], logs(tmp_path)


def test_a_shard_alone_is_not_replicated_and_is_named(monkeypatch):
    head = partial_fc()
    assert sharded_names(head) == []
    head.weight.shard = head.shard
    assert sharded_names(Weighted({"a": head})) == ["heads.a.weight"]
    assert replicate(head, World(0, 2), apart=["weight"]) is head
