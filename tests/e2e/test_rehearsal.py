"""dry_run: its numbers are those of the real thing, and nothing is left behind."""

import numpy as np
import pytest
import torch
from commands import TINY, console

from guie import assembly, checkpoint, rehearsal, training
from guie.build import build
from guie.config.compose import composed
from guie.errors import UserError
from guie.train.distributed import World
from guie.train.model import TrainedModel
from guie.types import Batch, Output

VIT = ["backbone=vit_small_dinov2", "backbone.name=vit_tiny_patch16_224", "backbone.image_px=64", "pool=cls"]
FROZEN = ["trainer.freeze_backbone=true"]


def costs_of(drawn, *words, size=8):
    cfg = composed("train", [*TINY, f"data_root={drawn}", "device=cpu", *words])
    cfg = {**cfg, "backbone": assembly.without_weights(cfg["backbone"])}
    data = training.open_data(cfg, World())
    return cfg, data.rows, rehearsal.measured(cfg, data.rows, assembly.sampler(cfg, data.rows), size)


@pytest.mark.parametrize(
    ("words", "precision", "slack"),
    [([], "fp32", 0), (VIT, "bf16", 512), (FROZEN, "fp32", 0)],
    ids=["convolutions", "tokens", "frozen"],
)
def test_what_is_kept_for_the_backward_pass_is_what_a_real_pass_keeps(drawn, words, precision, slack):
    cfg, rows, costs = costs_of(drawn, *words, f"hw.precision={precision}")
    embedder = assembly.embedder(cfg).train()
    if words is FROZEN:
        embedder.freeze_backbone()
    head = assembly.head(cfg, embedder, rows, rows.num_classes)
    trained = TrainedModel(embedder, head, None, False).train()
    row = torch.from_numpy(assembly.sampler(cfg, rows).batch(0)[:8])
    pictures = torch.zeros(8, 3, *embedder.preprocess.size_px, dtype=torch.uint8)
    kept = rehearsal.Kept(iter([*embedder.parameters(), *embedder.buffers(), pictures]))
    with kept.counting(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = embedder(pictures)
    raw, feature = output.raw.detach().requires_grad_(), output.feature.detach().float()
    of_head = rehearsal.Kept(iter([*head.parameters(), raw, feature]))
    with of_head.counting():
        z = torch.nn.functional.normalize(raw, dim=1)
        trained.loss(
            Output(feature, None, raw, z), Batch(pictures, torch.from_numpy(rows.labels)[row], row, row)
        )
    # under autocast the two keep a scalar or two differently
    expected = kept.num_bytes + of_head.num_bytes
    assert costs.memory["activations"] == pytest.approx(expected, rel=0, abs=slack)
    assert of_head.num_bytes > 0


@pytest.mark.parametrize("words", [["optim=sam_adamw"], ["optim=sgd", *FROZEN]])
def test_parameters_and_optimiser_state_are_those_of_a_real_step(drawn, words):
    cfg, rows, costs = costs_of(drawn, *words)
    embedder = assembly.embedder(cfg)
    head = assembly.head(cfg, embedder, rows, rows.num_classes)
    if FROZEN[0] in words:
        embedder.freeze_backbone()
    optimizer = build(cfg["optim"], where="optim", embedder=embedder, head=head)
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in learning:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()["state"].values()
    tensors = [value for entry in state for value in entry.values() if isinstance(value, torch.Tensor)]
    assert costs.memory["optimiser"] == sum(value.numel() * value.element_size() for value in tensors)
    assert costs.memory["gradients"] == 4 * sum(p.numel() for p in learning)
    assert sum(learn for learn, _ in costs.parameters.values()) == sum(p.numel() for p in learning)
    whole = sum(p.numel() for p in [*embedder.parameters(), *head.parameters()])
    assert sum(map(sum, costs.parameters.values())) == whole


def test_the_checkpoint_is_as_large_as_was_said(tiny_run, drawn):
    _, _, costs = costs_of(drawn)
    folder = checkpoint.locate(tiny_run.folder, "last")
    real = sum(path.stat().st_size for path in folder.iterdir())
    assert real == pytest.approx(costs.checkpoint, rel=0.03)


def test_a_dry_run_says_it_all_and_leaves_nothing(drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*TINY, f"data_root={drawn}", "device=cpu", "backbone=resnet50", "launch.processes=2"]
    code, lines = console(monkeypatch, capsys, "train", *words, "trainer.dry_run=true", "run_dir=x")
    assert (code, lines) == (0, [])  # what it says goes to standard output
    assert list(tmp_path.iterdir()) == []


def test_the_lines_hold_counts_of_data_steps_and_sizes(drawn):
    cfg = composed("train", [*TINY, f"data_root={drawn}", "device=cpu", "trainer.accumulate=2"])
    said = rehearsal.described(cfg, 2)
    rows = training.open_data(cfg, World()).rows
    counts = np.bincount(rows.labels)
    assert f"{len(rows)} of {rows.num_classes} classes ({counts.min()} to {counts.max()} each" in said
    assert all(f"{name}: " in said for name in rows.domain_names)
    assert "toy: 24 pictures of 6 classes in 6 domains; 24 ask, 24 answer" in said
    assert "steps       8: 2 epochs of 4" in said
    assert "batch       16 = 2 ranks x 2 micro-batches x 4" in said
    assert "MiB per rank at least, estimated" in said and "the last 2 and the best are kept" in said


def test_what_would_end_a_run_at_its_first_step_ends_the_dry_run(drawn):
    cfg = composed("train", [*TINY, f"data_root={drawn}", "device=cpu"])
    with pytest.raises(UserError, match=r"trainer\.batch_size: 16 over 3 ranks x 1 .*a multiple of 3"):
        rehearsal.described(cfg, 3)


FACES = ["head=partial_fc", "optim=adamw"]


def test_class_weights_cut_over_ranks_count_by_this_ranks_share(drawn):
    whole = costs_of(drawn, *FACES)[2]
    cfg, rows, alone = costs_of(drawn, "head=arcface", "optim=adamw")
    assert whole.memory == alone.memory
    with rehearsal.last_of(4):
        _, _, share = costs_of(drawn, *FACES)
    ours = -(-rows.num_classes // 4)
    elsewhere = (rows.num_classes - ours) * cfg["neck"]["embed_dim"] * 4
    for name, times in (("weights", 1), ("gradients", 1), ("optimiser", 2)):
        assert whole.memory[name] - share.memory[name] == times * elsewhere, name
    assert (share.parameters, share.checkpoint) == (whole.parameters, whole.checkpoint)


def test_cut_by_fsdp_too_class_weights_are_not_divided_twice(drawn):
    with rehearsal.last_of(4):
        _, _, share = costs_of(drawn, *FACES)
    of_embedder = share.memory["weights"] - share.own["weights"]
    assert share.own["weights"] > 0
    assert rehearsal.cut(share, 4).memory["weights"] == -(-of_embedder // 4) + share.own["weights"]


def test_pairs_are_counted_with_those_of_all_ranks(drawn):
    alone = costs_of(drawn, "head=supcon")[2].memory["activations"]
    with rehearsal.last_of(4):
        four = costs_of(drawn, "head=supcon")[2].memory["activations"]
    matrix = 8 * 8 * 4
    assert four - alone >= 15 * matrix  # 32 x 32 instead of 8 x 8, at least once


@pytest.mark.parametrize(
    ("words", "ranks", "message"),
    [
        (
            ["head=supcon_memory", "head.size=8"],
            1,
            r"head\.size: 8 received; accepted: at least the batch of 16",
        ),
        (["head=supcon_memory", "head.size=31"], 2, r"accepted: at least the batch of 32"),
        (["head=supcon_memory", "head.size=32"], 2, None),
        (["head=partial_fc"], 1000, r"classes cannot be cut over 1000 ranks"),
        (
            ["neck=domain_separate", "neck.domains=3", "head=domain_arcface", "head.mode=separate"],
            1,
            r"head\.mode: ",
        ),
        (["neck=domain_separate", "neck.domains=6", "head=domain_arcface", "head.mode=separate"], 1, None),
        ([*VIT, "head=distill_feature", "head.teacher.image_px=32"], 1, None),
        (["backbone=multi_stage"], 1, None),
    ],
)
def test_what_the_head_refuses_ends_the_dry_run_and_nothing_else_does(drawn, words, ranks, message):
    given = [*TINY, f"data_root={drawn}", "device=cpu", f"trainer.batch_size={16 * ranks}", *words]
    cfg = composed("train", given)
    if message is None:
        assert "MiB per rank" in rehearsal.described(cfg, ranks)
        return
    with pytest.raises(UserError, match=message):
        rehearsal.described(cfg, ranks)


def test_torchs_generator_is_left_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with rehearsal.unfilled():
        torch.nn.Linear(4, 4)
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)


def test_cut_over_ranks_weights_are_shared_and_activations_are_not():
    memory = {"weights": 10, "gradients": 6, "optimiser": 21, "average": 0, "activations": 7, "batch": 1}
    costs = rehearsal.cut(rehearsal.Costs({}, memory, 41, ""), 2)
    assert costs.memory == {**memory, "weights": 5, "gradients": 3, "optimiser": 11}
    assert costs.checkpoint == 41
