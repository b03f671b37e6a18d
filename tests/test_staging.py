"""Stages as they are composed and planned, and what one takes over from the one before."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from guie import assembly, checkpoint, runfolder, staging, starting
from guie.build import build
from guie.config.compose import composed, directory
from guie.errors import UserError
from guie.heads.classifier import Softmax
from guie.heads.combine import Weighted
from guie.heads.contrastive import SupCon
from guie.heads.margin import ArcFace, SubCenterArcFace
from guie.heads.memory import CrossBatchMemory
from guie.models.backbones import Timm
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import CLS, GeM
from guie.train import warm_start
from guie.train.warm_start import Classes, WarmStart
from guie.types import Batch, Preprocess

PRESETS = sorted(path.stem for path in (directory() / "exp").glob("*.yaml"))
STAGED = """
# @package _global_
defaults:
  - override /head: arcface
preset: staged
optim: {lr: 0.5}
stages:
  small:
  large:
    init: 2
    head: subcenter_arcface
    head.k: 2
    backbone: {image_px: 48}
    trainer: {epochs: 7}
    dataset: [toy, folder]
    dataset.folder.root: "/a b"
    eval_on: {toy: {instances: 5}}
"""


@pytest.fixture
def compose(tmp_path):
    """Return a call that composes a preset of two stages with further arguments."""
    (tmp_path / "exp").mkdir()

    def composed_with(*overrides, text=STAGED):
        (tmp_path / "exp" / "staged.yaml").write_text(text)
        return composed("train", [f"hydra.searchpath=[file://{tmp_path}]", "+exp=staged", *overrides])

    return composed_with


def test_a_stage_is_the_config_of_the_run_with_its_changes(compose):
    cfg = compose()
    small, large = cfg["staged"].values()
    run = {key: value for key, value in cfg.items() if key != "staged"}
    assert {key.split(".")[0] for key in runfolder.changed_keys(run, small)} == {"stages"}
    assert large["head"]["_target_"].endswith("SubCenterArcFace") and large["head"]["k"] == 2
    assert list(large["dataset"]) == ["toy", "folder"] and large["dataset"]["folder"]["root"] == "/a b"
    assert (large["backbone"]["image_px"], large["trainer"]["epochs"]) == (48, 7)
    assert large["eval_on"]["toy"]["instances"] == 5
    assert large["optim"]["lr"] == 0.5 and large["stages"] is None and "init" not in large


def test_the_command_line_is_stronger_than_a_stage_and_strongest_for_one_stage(compose):
    cfg = compose("trainer.epochs=3", "stages.small.trainer.epochs=9", "stages.large.init=best")
    assert [stage["trainer"]["epochs"] for stage in cfg["staged"].values()] == [9, 3]
    assert cfg["stages"]["large"]["init"] == "best" and cfg["stages"]["small"] == {"trainer.epochs": 9}


def test_stages_of_the_command_line_are_stronger_than_the_rest_of_it():
    stages = "stages={a: {}, b: {seed: 3, neck: linear, neck.embed_dim: 8}}"
    a, b = composed("train", ["seed=2", stages, "stages.a.trainer.epochs=9"])["staged"].values()
    assert (a["seed"], b["seed"], a["trainer"]["epochs"]) == (2, 3, 9)
    assert b["neck"]["_target_"].endswith("Linear") and b["neck"]["embed_dim"] == 8


def test_a_preset_of_stages_can_be_run_in_one(compose):
    assert "staged" not in compose("stages=null")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.large.optim.lrr=1", r"^stages\.large\.optim\.lrr: unknown key; did you mean 'lr'\?$"),
        ("stages.large.head=arcfase", r"^stages\.large\.head: there is no 'arcfase'; accepted: .*arcface"),
        ("stages.large.dataset=[sopp]", r"^stages\.large\.dataset: there is no 'sopp'"),
        ("stages.large.nonsense=1", r"^stages\.large\.nonsense: unknown key"),
        ("stages.huge.seed=1", r"^stages\.huge: there is no such stage; accepted: small, large$"),
        ("stages.large.run_dir=x", r"^stages\.large\.run_dir: belongs to the whole run"),
        (
            "stages.large.init=12",
            r"^stages\.large\.init: 12; accepted: last, best, .*stage small \(up to 10\)$",
        ),
        ("stages.small.init=1", r"^stages\.small\.init: 1; nothing was before it; accepted: ckpt=PATH$"),
        ("only=huge", r"^only: 'huge'; accepted: small, large$"),
        ("+stages={'a/b': {}}", r"^.*a/b"),
    ],
)
def test_a_mistake_in_a_stage_is_one_line_that_names_it(compose, override, message):
    with pytest.raises(UserError, match=message) as caught:
        compose(override)
    assert "\n" not in str(caught.value)


def test_two_stages_of_one_name_are_refused(compose):
    with pytest.raises(UserError, match=r"staged\.yaml, line 9: found duplicate key small") as caught:
        compose(text=STAGED.replace("  large:", "  small:"))
    assert "\n" not in str(caught.value)


def miniature(cfg):
    """Return the config with a small untrained backbone of timm: tokens where the pooling wants them."""
    tokens = cfg["pool"]["_target_"].endswith(("CLS", "TokenMean"))
    small = {"name": "vit_tiny_patch16_224", "options": {"depth": 1}} if tokens else {"name": "resnet10t"}
    target = "guie.models.backbones.Timm"
    return {**cfg, "backbone": {"_target_": target, "pretrained": False, "image_px": 64, **small}}


def stages_of(name):
    cfg = composed("train", [f"+exp={name}"])
    return cfg.get("staged", {name: cfg}).values()


@pytest.mark.parametrize("name", PRESETS)
def test_every_stage_of_every_preset_steps_on_a_miniature(name):
    seen = set()
    for cfg in stages_of(name):
        build(cfg["trainer"], where="trainer").check()
        parts = repr([cfg[part] for part in ("pool", "neck", "head", "optim")])
        if parts in seen:
            continue
        seen.add(parts)
        step_on_random_pictures(miniature(cfg))


def step_on_random_pictures(cfg):
    embedder = assembly.embedder(cfg)
    domains = {"class_domains": np.zeros(4, np.int64), "domain_names": ["a"]}
    facts = {"num_classes": 4, "class_counts": np.full(4, 2), **domains}
    widths = {"embed_dim": embedder.neck.embed_dim, "feature_dim": embedder.backbone.out_dim}
    head = build(cfg["head"], where="head", **widths, **facts)
    optimizer = build(cfg["optim"], where="optim", embedder=embedder, head=head)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, *embedder.preprocess.size_px), generator=generator, dtype=torch.uint8)
    rows = torch.arange(8)
    loss = head(embedder(images), Batch(images, rows // 2, rows * 0, rows // 2)).total
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss) and any(p.grad is not None for p in embedder.neck.parameters())


def finished(folder, steps, steps_per_epoch=10, cfg=None, best=None):
    """Write what a stage that has run leaves: config, state, checkpoints after `steps`."""
    store = checkpoint.Store(folder / "checkpoints", keep=9)
    for step in steps:
        meta = {"steps_per_epoch": steps_per_epoch}
        store.save(checkpoint.State(step, {"embedder": {}, "head": {}}, meta=meta))
    if best:
        checkpoint.point(folder / "checkpoints", "best", folder / "checkpoints" / f"step_{best:06d}", {})
    runfolder.write_config(folder, cfg or {})
    runfolder.RunFolder(folder).mark("finished")


def test_a_stage_starts_from_a_step_an_epoch_the_best_or_the_last(tmp_path):
    finished(tmp_path, [7, 82, 90], best=7)
    found = {
        init: staging.initial(tmp_path, init, "x").name for init in ("best", "last", 8.2, 9, "step_000007")
    }
    assert found["best"] == found["step_000007"] == "step_000007"
    assert (found["last"], found[9], found[8.2]) == ("step_000090", "step_000090", "step_000082")


def test_a_checkpoint_that_was_not_kept_is_refused_with_those_that_were(tmp_path):
    finished(tmp_path, [82, 90])
    with pytest.raises(UserError, match=r"^stages.b.init: 5 is not .*step_000082 \(epoch 8.2\), step_000090"):
        staging.initial(tmp_path, 5, "stages.b.init")
    with pytest.raises(UserError, match=r"accepted: none yet$"):
        staging.initial(tmp_path / "none", "last", "stages.b.init")


def test_a_chosen_checkpoint_outlives_newer_ones(tmp_path):
    store = checkpoint.Store(tmp_path, keep=2, keep_steps=frozenset([3]))
    for step in range(1, 8):
        store.save(checkpoint.State(step, {"embedder": {}}))
    assert [checkpoint.step_of(path) for path in checkpoint.steps(tmp_path)] == [3, 6, 7]


def test_a_folder_of_stages_is_its_last_stage_with_a_checkpoint(tmp_path):
    for name in ("1-a", "2-b", "10-j"):
        finished(tmp_path / name, [4])
    (tmp_path / "11-k").mkdir()
    assert checkpoint.locate(tmp_path, "last").parent.parent.name == "10-j"


def plan(folder, **changes):
    base = {"optim": {"lr": 1.0}, "trainer": {"epochs": 3}, "ckpt": None}
    stages = [staging.Stage(name, folder / f"{i}-{name}", dict(base)) for i, name in enumerate("abc", 1)]
    for name, changed in changes.items():
        stages["abc".index(name)].cfg.update(changed)
    return stages


@pytest.fixture
def two_of_three(tmp_path):
    for stage in plan(tmp_path)[:2]:
        ckpt = str(tmp_path / "1-a" / "checkpoints" / "step_000004") if stage.name == "b" else None
        finished(stage.folder, [4], cfg={**stage.cfg, "ckpt": ckpt})
    return tmp_path


def test_a_stage_that_has_not_begun_may_change(two_of_three):
    staging.refuse_changes(two_of_three, plan(two_of_three, c={"optim": {"lr": 2.0}}))
    staging.refuse_changes(two_of_three, plan(two_of_three, b={"trainer": {"epochs": 5}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": {"optim": {"lr": 2.0}}}, r"^stages\.a: optim\.lr: was 1\.0, now 2\.0; accepted"),
        ({"b": {"optim": {"lr": 2.0}}}, r"^stages\.b: optim\.lr: was 1\.0, now 2\.0; accepted"),
        ({"a": {"trainer": {"epochs": 5}}}, r"^stages\.a\.trainer\.epochs: changed, but b has begun"),
    ],
)
def test_a_changed_key_of_a_stage_that_has_begun_is_named(two_of_three, changes, message):
    with pytest.raises(UserError, match=message):
        staging.refuse_changes(two_of_three, plan(two_of_three, **changes))


def test_other_stages_than_those_that_have_begun_are_refused(two_of_three):
    with pytest.raises(UserError, match=r"holds 1-a, 2-b; accepted: a new folder, or the same stages first"):
        staging.refuse_changes(two_of_three, plan(two_of_three)[1:])


def test_a_folder_of_stages_may_move(two_of_three):
    moved = two_of_three.with_name("moved")
    two_of_three.rename(moved)
    staging.refuse_changes(moved, plan(moved))


def arcface(num_classes=4, embed_dim=5, seed=0):
    torch.manual_seed(seed)
    return ArcFace(num_classes=num_classes, embed_dim=embed_dim)


def subcentres(num_classes=4, embed_dim=5, seed=0):
    torch.manual_seed(seed)
    return SubCenterArcFace(k=3, num_classes=num_classes, embed_dim=embed_dim)


def weighted(num_classes=4, embed_dim=5, seed=0):
    return Weighted({"arcface": arcface(num_classes, embed_dim, seed), "supcon": SupCon()})


def named(names):
    return [{"label": name, "full": f"set/{name}"} for name in names]


THEN, NOW = ["a", "b", "c", "d"], ["d", "x", "b", "y", "z"]
MEANS = torch.tensor([[1.0, 2, 2, 0, 0], [0, 0, 0, 3, 4], [torch.nan] * 5])


def taken(make, how=None, then=THEN, now=NOW, means=MEANS):
    """Return a former head, a new one that took from it, and what was not taken."""
    former, head = make(len(then), seed=1), make(len(now), seed=2)
    classes = warm_start.matched(named(then), now, [f"set/{name}" for name in now])
    anew = warm_start.take_head(head, former.state_dict(), classes, how or WarmStart(), lambda new: means)
    return former, head, anew


@pytest.mark.parametrize(
    ("make", "name"), [(arcface, "weight"), (subcentres, "weight"), (weighted, "heads.arcface.weight")]
)
def test_known_classes_keep_their_rows_and_new_ones_start_at_their_means(make, name):
    former, head, anew = taken(make)
    was, rows = former.get_parameter(name).detach(), head.get_parameter(name).detach()
    assert anew == []
    assert torch.equal(rows[..., 0, :], was[..., 3, :]) and torch.equal(rows[..., 2, :], was[..., 1, :])
    length = np.mean([np.linalg.norm(row) for row in was.reshape(-1, 5).double().numpy()])
    for place, mean in ((1, MEANS[0]), (3, MEANS[1])):
        expected = mean.double() / np.linalg.norm(mean) * length
        assert torch.allclose(rows[..., place, :].double(), expected.expand(*was.shape[:-2], 5), atol=1e-6)
    no_picture = functional.normalize(was.double().mean(-2), dim=-1) * length
    assert torch.allclose(rows[..., 4, :].double(), no_picture, atol=1e-6)


def test_new_classes_may_start_at_the_mean_of_all_former_rows_or_at_random():
    former, head, _ = taken(arcface, WarmStart(new_classes="known_mean"), means=None)
    mean = functional.normalize(former.weight.mean(0), dim=0) * former.weight.norm(dim=1).mean()
    assert torch.allclose(head.weight[[1, 3, 4]], mean.expand(3, 5), atol=1e-6)
    _, head, _ = taken(arcface, WarmStart(new_classes="random"), means=None)
    assert torch.equal(head.weight[[1, 3, 4]], arcface(5, seed=2).weight[[1, 3, 4]])


def test_the_same_classes_in_another_order_take_their_rows_along():
    former, head, _ = taken(arcface, now=["d", "c", "b", "a"])
    assert torch.equal(head.weight, former.weight.flip(0))
    assert not torch.equal(head.weight, former.weight)


def test_classes_that_the_data_has_no_more_are_left_behind_and_counted():
    former, head, _ = taken(arcface, now=["c"])
    assert torch.equal(head.weight, former.weight[2:3])
    classes = warm_start.matched(named(THEN), ["c", "x"], ["set/c", "set/x"])
    assert str(classes) == "1 classes kept, 1 new, 3 gone"


def test_the_bias_of_a_new_class_is_the_mean_of_the_former():
    former, head, _ = taken(lambda classes, seed: Softmax(num_classes=classes, embed_dim=5))
    assert torch.equal(head.linear.bias[[0, 2]], former.linear.bias[[3, 1]])
    assert torch.allclose(head.linear.bias[1], former.linear.bias.mean())


def test_a_label_of_one_data_set_is_found_among_those_of_several_and_back():
    now = ["other/a", "set/b", "set/e"]
    assert warm_start.matched(named(THEN), now, now).source.tolist() == [-1, 1, -1]
    mixed = [{"label": name, "full": name} for name in now]
    assert warm_start.matched(mixed, ["a", "b"], ["set/a", "set/b"]).source.tolist() == [-1, 1]


def test_another_width_begins_anew_and_a_memory_does_too():
    former, head = arcface(4, 5, 1), arcface(4, 6, 2)
    same = Classes(np.arange(4), 4)
    before = head.weight.clone()
    assert warm_start.take_head(head, former.state_dict(), same, WarmStart(), None) == ["weight"]
    assert torch.equal(head.weight, before)
    memory = CrossBatchMemory(SupCon(), size=3, embed_dim=5)
    filled = {name: torch.ones_like(value) for name, value in memory.state_dict().items()}
    not_taken = warm_start.take_head(memory, filled, same, WarmStart(), None)
    assert not_taken == ["columns", "num_stored", "vectors"] and memory.num_stored == 0


def test_the_shard_of_a_rank_is_its_part_of_the_whole():
    _, whole, _ = taken(arcface)
    parts = []
    for start, stop in ((0, 2), (2, 5)):
        head = arcface(stop - start, seed=3)
        head.weight.shard = SimpleNamespace(start=start, stop=stop, total=5)
        classes = warm_start.matched(named(THEN), NOW, NOW)
        warm_start.take_head(head, arcface(seed=1).state_dict(), classes, WarmStart(), lambda new: MEANS)
        parts.append(head.weight)
    assert torch.equal(torch.cat(parts), whole.weight)


def test_class_means_equal_a_loop_and_a_class_without_pictures_has_none():
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(30, 4)).astype(np.float32), rng.choice(["a", "b"], 30)
    sums, counts = warm_start.class_sums(vectors, labels, ["b", "none", "a"])
    found = sums / counts[:, None]
    for row, label in ((0, "b"), (2, "a")):
        mine = [vector for vector, other in zip(vectors, labels, strict=True) if other == label]
        assert np.allclose(found[row], sum(mine) / len(mine), atol=1e-6)
    assert found[1].isnan().all()


def test_pictures_for_a_mean_are_spread_over_the_class():
    labels = np.array([2, 0, 2, 1, 2, 2, 0, 2, 2])
    assert warm_start.spread(labels, np.array([0, 2]), 3).tolist() == [0, 1, 4, 6, 7]
    assert warm_start.spread(labels, np.array([5]), 3).tolist() == []


class Plain(nn.Module):
    """A backbone of one convolution."""

    out_dim, kind, prefix_tokens, preprocess = 6, "map", 0, Preprocess()

    def __init__(self, width=6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, x):
        return self.conv(x)


def plain(embed_dim=5, p=3.0, width=6):
    return Embedder(Plain(width), GeM(p), Linear(embed_dim, in_dim=6))


def test_an_embedder_takes_all_that_fits_and_names_the_rest():
    former = plain()
    same, narrow = plain(p=1.0), plain(embed_dim=3)
    assert warm_start.take_embedder(same, former.state_dict()) == []
    assert torch.equal(same.neck.linear.weight, former.neck.linear.weight)
    assert same.pool.p.item() == 1.0  # a setting
    assert warm_start.take_embedder(narrow, former.state_dict()) == ["neck"]
    assert torch.equal(narrow.backbone.conv.weight, former.backbone.conv.weight)


@pytest.mark.parametrize(
    ("anew", "labels", "head", "said"),
    [
        ([], THEN, "keep", r"head: 2 classes kept, 3 new, 2 gone; not taken: optimiser$"),
        ([], THEN, "drop", r"head: begins anew \(warm_start\.head=drop\)$"),
        ([], None, "keep", r"head: begins anew, no head with a labels\.parquet in .*$"),
        (
            ["neck"],
            THEN,
            "keep",
            r"neck: begins anew, .*; head: begins anew, its rows belong to another neck$",
        ),
    ],
)
def test_what_was_taken_is_said_in_one_line(tmp_path, anew, labels, head, said):
    if labels:
        runfolder.write_labels(tmp_path, labels, full=labels)
    cfg = {"warm_start": {"_target_": "guie.train.warm_start.WarmStart", "head": head}}
    state = checkpoint.State(7, {"head": arcface(seed=1).state_dict()})
    former, mine = starting.Former(tmp_path, state, anew), arcface(5, seed=2)
    before = mine.weight.clone()
    words = starting.take_head(cfg, former, mine, {"names": NOW, "full": NOW}, lambda new: MEANS)
    assert re.search(said, words) and words.startswith(f"started from step 7 of {tmp_path}; ")
    assert torch.equal(mine.weight, before) == ("2 classes kept" not in words)


def test_another_backbone_is_refused():
    with pytest.raises(
        UserError, match=r"embedder\.backbone\.conv\.bias: the checkpoint has \(6,\), the model \(7,\)"
    ):
        warm_start.take_embedder(plain(width=7), plain().state_dict())


def vit(image_px):
    torch.manual_seed(image_px)
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    backbone = Timm("vit_tiny_patch16_224", pretrained=False, image_px=image_px, options=options)
    return Embedder(backbone, CLS(), Linear(5, in_dim=24))


def test_position_embeddings_of_another_size_are_resampled_as_timm_does():
    from timm.models.vision_transformer import checkpoint_filter_fn

    former, larger = vit(32), vit(80)
    expected = checkpoint_filter_fn(former.backbone.model.state_dict(), larger.backbone.model)["pos_embed"]
    assert warm_start.take_embedder(larger, former.state_dict()) == []
    assert torch.equal(larger.backbone.model.pos_embed, expected)
    assert larger(torch.zeros(1, 3, 80, 80)).z.shape == (1, 5)


def test_position_embeddings_of_open_clip_are_resampled_as_it_does():
    from open_clip.model import resize_pos_embed
    from open_clip.transformer import VisionTransformer

    shape = {"patch_size": 16, "width": 8, "layers": 1, "heads": 2, "mlp_ratio": 2.0, "output_dim": 4}
    former, larger = (VisionTransformer(image_size=size, **shape) for size in (32, 48))
    state = {f"visual.{name}": value for name, value in former.state_dict().items()}
    resize_pos_embed(state, SimpleNamespace(visual=larger))
    found = warm_start.resampled(larger, former.state_dict())
    assert torch.equal(found["positional_embedding"], state["visual.positional_embedding"])
    assert not torch.equal(found["positional_embedding"], larger.positional_embedding)
