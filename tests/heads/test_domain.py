"""Heads and necks with a part for each domain; the classifier of domains."""

import sys

import numpy as np
import pytest
import torch
from one_batch import batch_of, loop_losses, output_of
from torch import nn

from guie.errors import UserError
from guie.export.torchscript import torchscript_allowed
from guie.heads.domain import DomainArcFace, DomainClassifier
from guie.heads.fused import Angular
from guie.models.domain_neck import DomainSeparate, DomainTiles
from guie.types import part_widths

NAMES = ["apparel", "landmark", "toys"]
CLASS_DOMAINS = np.array([0, 1, 0, 2, 1, 1, 2])
WIDTH, FEATURES = 8, 5
FACTS = {"class_domains": CLASS_DOMAINS, "domain_names": NAMES, "embed_dim": WIDTH}


def random_batch(labels=(0, 1, 2, 3, 4, 5, 6, 1, 3, 2)):
    labels = torch.tensor(labels)
    return batch_of(labels, torch.from_numpy(CLASS_DOMAINS)[labels])


def double(**values):
    torch.manual_seed(0)
    return DomainArcFace(**values, **FACTS).double()


def in_domain(head, batch, parts):
    """Return the losses by picture, each against the classes of its domain alone, by loops in float64."""
    rule, losses = head.rule, []
    for i, label in enumerate(batch.labels.tolist()):
        domain = int(CLASS_DOMAINS[label])
        own = np.flatnonzero(CLASS_DOMAINS == domain).tolist()
        rows = head.weights[domain][0]

        def margin(cosine, _):
            return Angular(rule.margin.margin)(cosine)[0]

        place = torch.tensor([own.index(label)])
        losses.append(
            loop_losses(parts[domain][i : i + 1], rows, place, margin, rule.scale, rule.smoothing)[0]
        )
    return torch.stack(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_picture_trains_its_tile_alone_against_the_classes_of_its_domain(smoothing):
    head, batch = double(mode="tile", label_smoothing=smoothing), random_batch()
    assert [tuple(weight.shape) for weight in head.weights] == [(1, 2, 3), (1, 3, 3), (1, 2, 2)]
    raw = torch.randn(10, WIDTH, dtype=torch.float64, requires_grad=True)
    loss = head(output_of(raw), batch)
    expected = in_domain(head, batch, raw.split([3, 3, 2], 1)).mean()
    inputs = (raw, *head.weights)
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=0)
    found = torch.autograd.grad(loss.total, inputs)
    torch.testing.assert_close(found, torch.autograd.grad(expected, inputs), rtol=1e-7, atol=1e-9)
    moved = found[0] != 0
    tiles = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    assert torch.equal(moved, batch.domains[:, None] == tiles[None])


def test_separate_takes_each_picture_s_own_projection_and_trains_the_gate():
    head, batch = double(mode="separate", gate_weight=0.5), random_batch()
    raw = torch.randn(10, 3 + 3 * 5, dtype=torch.float64, requires_grad=True)
    loss = head(output_of(raw), batch)
    gate, parts = raw[:, :3], raw[:, 3:].split(5, 1)
    told = nn.functional.cross_entropy(gate, batch.domains)
    torch.testing.assert_close(loss.total, in_domain(head, batch, parts).mean() + 0.5 * told)
    assert loss.scalars["loss"] == loss.total and loss.scalars["gate_loss"] == told
    (gradient,) = torch.autograd.grad(loss.total, raw)
    own = torch.cat([torch.ones(10, 3), nn.functional.one_hot(batch.domains).repeat_interleave(5, 1)], 1)
    assert torch.equal(gradient != 0, own.bool())


def test_unified_is_sub_centre_arcface_over_all_classes():
    from guie.heads.margin import SubCenterArcFace

    head, batch = double(k=2), random_batch()
    plain = SubCenterArcFace(2, margin=0.3, num_classes=7, embed_dim=WIDTH).double()
    plain.weight.data.copy_(head.weights[0])
    output = output_of(torch.randn(10, WIDTH, dtype=torch.float64))
    ours, theirs = head(output, batch), plain(output, batch)
    torch.testing.assert_close(ours.total, theirs.total)
    assert ours.scalars["accuracy"] == theirs.scalars["accuracy"]
    torch.testing.assert_close(ours.scalars["target_cosine"], theirs.scalars["target_cosine"])


def test_the_loss_of_each_domain_is_logged_also_of_one_that_is_absent():
    head, batch = double(mode="tile"), random_batch((0, 2, 1))
    raw = torch.randn(3, WIDTH, dtype=torch.float64)
    scalars = head(output_of(raw), batch).scalars
    losses = in_domain(head, batch, raw.split([3, 3, 2], 1))
    found = {name: value for name, value in scalars.items() if name.startswith("loss/")}
    assert list(found) == ["loss/apparel", "loss/landmark", "loss/toys"]
    torch.testing.assert_close(
        found["loss/apparel"], torch.stack([losses[:2].sum() / 3, losses.new_tensor(2 / 3)])
    )
    assert found["loss/toys"].tolist() == [0, 0]


def test_the_weights_of_an_absent_domain_have_a_gradient_of_zero_as_ranks_need():
    head = double(mode="tile")
    raw = torch.randn(2, WIDTH, dtype=torch.float64, requires_grad=True)
    head(output_of(raw), random_batch((0, 2))).total.backward()
    assert all(weight.grad is not None for weight in head.weights)
    assert not head.weights[2].grad.any()


def test_the_domain_classifier_is_cross_entropy_on_the_feature():
    head = DomainClassifier(0.1, feature_dim=FEATURES, domain_names=NAMES).double()
    feature, batch = torch.randn(10, FEATURES, dtype=torch.float64), random_batch()
    loss = head(output_of(torch.zeros(10, WIDTH), feature), batch)
    logits = feature @ head.linear.weight.t() + head.linear.bias
    expected = nn.functional.cross_entropy(logits, batch.domains, label_smoothing=0.1)
    torch.testing.assert_close(loss.total, expected)
    assert loss.scalars["accuracy"] == (logits.argmax(1) == batch.domains).float().mean()
    assert {"loss/apparel", "loss/landmark", "loss/toys"} <= set(loss.scalars)


def test_tiles_share_the_width_as_system_b_does():
    assert part_widths("tile", 64, 3) == [22, 21, 21]
    assert part_widths("tile", 64, 8) == [8] * 8
    neck = DomainTiles(3, 64, in_dim=FEATURES).train()
    tiles = neck(torch.randn(2, FEATURES)).split([22, 21, 21], 1)
    for tile in tiles:
        torch.testing.assert_close(tile.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("mode", ["tile", "separate"])
def test_neck_and_head_cut_the_embedding_by_one_function(mode, monkeypatch):
    neck_of = {"tile": DomainTiles, "separate": DomainSeparate}[mode]
    for module in (sys.modules[neck_of.__module__], sys.modules[DomainArcFace.__module__]):
        monkeypatch.setattr(module, "part_widths", lambda *given: [4, 1, 2] if given == (mode, 8, 3) else [])
    neck = neck_of(3, WIDTH, in_dim=FEATURES)
    assert [projection[-1].out_features for projection in neck.projections] == [4, 1, 2]
    assert [weight.shape[2] for weight in DomainArcFace(mode, **FACTS).weights] == [4, 1, 2]


def test_tiles_are_weighted_by_their_domain_s_probability_in_evaluation():
    neck = DomainTiles(3, 9, gate_range=0.4, in_dim=FEATURES).eval()
    x = torch.randn(4, FEATURES)
    lengths = torch.stack([tile.norm(dim=1) for tile in neck(x).split(3, 1)], 1)
    torch.testing.assert_close(lengths, 0.6 + 0.4 * neck.gate(x).softmax(1))
    assert neck.train()(x).shape == (4, 12)
    torch.testing.assert_close(neck(x)[:, :3], neck.gate(x))


@pytest.mark.parametrize("hidden", [False, True])
def test_separate_spaces_hold_the_likeliest_domain_and_its_own_projection(hidden):
    neck = DomainSeparate(3, WIDTH, hidden, in_dim=FEATURES).eval()
    x = torch.randn(6, FEATURES)
    found = neck(x)
    for row, picture in zip(found, x, strict=True):
        domain = int(neck.gate(picture).argmax())
        own = neck.projections[domain](picture)
        torch.testing.assert_close(row[:3], 3.0 * nn.functional.one_hot(torch.tensor(domain), 3).float())
        torch.testing.assert_close(row[3:], own / own.norm())
    soft = DomainSeparate(3, WIDTH, hidden, soft=True, in_dim=FEATURES).eval()
    soft.load_state_dict(neck.state_dict())
    torch.testing.assert_close(soft(x)[:, :3], 3.0 * neck.gate(x).softmax(1))
    torch.testing.assert_close(soft(x)[:, 3:], found[:, 3:])


@pytest.mark.parametrize(
    "neck", [DomainTiles(3, 9, gate_range=0.4, in_dim=5), DomainSeparate(3, 9, in_dim=5)]
)
def test_a_traced_neck_gives_the_same_for_other_pictures(neck):
    with torchscript_allowed():
        traced = torch.jit.trace(neck.eval(), torch.randn(2, FEATURES))
    x = torch.randn(7, FEATURES)
    torch.testing.assert_close(traced(x), neck(x))


@pytest.mark.parametrize(
    ("mode", "neck"),
    [
        ("unified", lambda: nn.Linear(FEATURES, WIDTH)),
        ("tile", lambda: DomainTiles(3, WIDTH, in_dim=FEATURES)),
        ("tile", lambda: DomainTiles(3, WIDTH, True, 0.5, in_dim=FEATURES)),
        ("separate", lambda: DomainSeparate(3, WIDTH, in_dim=FEATURES)),
    ],
)
def test_neck_and_head_learn_together(mode, neck):
    torch.manual_seed(0)
    neck, head, batch = neck(), DomainArcFace(mode, **FACTS), random_batch()
    feature = torch.randn(10, FEATURES)
    optimizer = torch.optim.Adam([*neck.parameters(), *head.parameters()], 0.03)
    losses = []
    for _ in range(20):
        loss = head(output_of(neck(feature), feature), batch)
        optimizer.zero_grad()
        loss.total.backward()
        assert all(p.grad is not None for p in [*neck.parameters(), *head.parameters()])
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[-1] < 0.5 * losses[0]
    assert neck.eval()(feature).shape == (10, WIDTH)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: DomainArcFace("both", **FACTS),
            "head.mode: 'both' received; accepted: unified, tile, separate",
        ),
        (
            lambda: DomainArcFace("tile", **{**FACTS, "embed_dim": 3}),
            r"head.mode: tile with 3 domains; accepted: below 3 \(embed_dim\)",
        ),
        (
            lambda: double(mode="separate")(output_of(torch.randn(10, WIDTH)), random_batch()),
            r"head.mode: separate with 8 numbers from the neck; accepted: 18 \(a neck for this mode, "
            r"neck.domains=3\)",
        ),
        (
            lambda: double(mode="tile")(output_of(torch.randn(10, WIDTH + 2)), random_batch()),
            "head.mode: tile with 10 numbers from the neck; accepted: 8 or 11",
        ),
        (lambda: DomainTiles(65, in_dim=4), "neck.domains: 65 received; accepted: 1 to 64"),
        (lambda: DomainTiles(2, gate_range=2.0, in_dim=4), "neck.gate_range: 2.0 received; accepted: 0"),
        (lambda: DomainSeparate(64, in_dim=4), "neck.domains: 64 received; accepted: 1 to 63"),
        (
            lambda: DomainSeparate(2, gate_scale=0.0, in_dim=4),
            "neck.gate_scale: 0.0 received; accepted: above 0",
        ),
    ],
)
def test_a_mistake_is_one_line_with_what_is_accepted(build, message):
    with pytest.raises(UserError, match=message):
        build()
