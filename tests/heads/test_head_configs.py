"""Every head of these YAMLs, from the command line's words to a loss that falls."""

from functools import cache

import numpy as np
import pytest
import torch
from one_batch import batch_of, output_of
from torch import nn

from guie.build import build
from guie.config.compose import composed
from guie.errors import UserError

CLASS_DOMAINS = np.array([0, 1, 2, 0, 1, 2])
FACTS = {
    "num_classes": 6,
    "feature_dim": 12,
    "class_counts": np.array([30, 8, 2, 1, 100, 4]),
    "class_domains": CLASS_DOMAINS,
    "domain_names": ["apparel", "landmark", "toys"],
}
SIZE = "{size: {_target_: guie.heads.margin_by.BySize}, epoch: {_target_: guie.heads.margin_by.ByEpoch}}"
BY_DOMAIN = "head.per_domain={_target_: guie.heads.reduction.PerDomain}"
CHOICES = [
    ["head=am_softmax"],
    ["head=combined_margin"],
    ["head=adacos"],
    ["head=adacos_fixed"],
    ["head=l_softmax"],
    ["head=arcface_dynamic"],
    ["head=arcface_growing"],
    ["head=subcenter_arcface_dynamic"],
    ["head=classifier_tta"],
    ["head=domain_classifier"],
    ["head=domain_arcface"],
    ["head=domain_arcface", "head.mode=tile", "neck=domain_tiles", "neck.domains=3"],
    ["head=domain_arcface", "head.mode=separate", "neck=domain_separate", "neck.domains=3"],
    ["head=domain_arcface_classifier", "head.weights={domain: 0.5}"],
    ["head=cosface", f"head.margin_by={SIZE}", "head.focal=2.0", "head.label_smoothing=0.1", BY_DOMAIN],
    ["head=softmax", "head.focal=2.0", BY_DOMAIN],
]


@cache
def config(*words):
    return composed("train", ["neck.embed_dim=16", *words])


def parts(cfg):
    torch.manual_seed(0)
    neck = build(cfg["neck"], where="neck", in_dim=FACTS["feature_dim"])
    return neck, build(cfg["head"], where="head", embed_dim=neck.embed_dim, **FACTS)


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_a_choice_builds_learns_and_reloads(choice):
    neck, head = parts(config(*choice))
    labels = torch.arange(24) % 6
    batch = batch_of(labels, torch.from_numpy(CLASS_DOMAINS)[labels])
    feature = torch.randn(24, 12)
    optimizer = torch.optim.Adam([*neck.parameters(), *head.parameters()], 1e-2)
    losses = []
    for step in range(8):
        for part in head.modules():
            if hasattr(part, "at_step"):
                part.at_step(0, 8, 8)
        loss = head(output_of(neck(feature), feature), batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
        assert loss.scalars["loss"] == loss.total, step
        assert 0 <= loss.scalars["accuracy"] <= 1
    assert losses[-1] < 0.95 * losses[0]
    again = parts(config(*choice))[1]
    again.load_state_dict(head.state_dict())
    output = output_of(neck(feature), feature)
    assert again.eval()(output, batch).total == head.eval()(output, batch).total


@pytest.mark.parametrize(
    "name", ["arcface_dynamic", "combined_margin", "adacos", "l_softmax", "classifier_tta"]
)
def test_losses_per_domain_are_logged_only_where_wanted(name):
    plain = config(f"head={name}")
    labels = torch.arange(6)
    output = output_of(torch.randn(6, 16), torch.randn(6, 12))
    batch = batch_of(labels, torch.from_numpy(CLASS_DOMAINS)[labels])
    assert not [key for key in parts(plain)[1](output, batch).scalars if "/" in key]
    wanted = {
        **plain,
        "head": {**plain["head"], "per_domain": {"_target_": "guie.heads.reduction.PerDomain"}},
    }
    scalars = parts(wanted)[1](output, batch).scalars
    assert {"loss/apparel", "loss/landmark", "loss/toys"} <= set(scalars)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("arcface_dynamic", "size.power", 0.3),
        ("subcenter_arcface_dynamic", "size.floor", 0.1),
        ("arcface_growing", "epoch.epochs", 10),
    ],
)
def test_the_keys_of_what_changes_a_margin_are_set_as_any_other(name, key, value):
    part, key = key.split(".")
    changed = config(f"head={name}", f"head.margin_by.{part}.{key}={value}")
    assert changed["head"]["margin_by"][part][key] == value
    assert getattr(parts(config(f"head={name}"))[1].margins.by, part)
    assert config(f"head={name}", "head.margin_by=null")["head"]["margin_by"] is None


def test_a_tower_s_gate_has_the_keys_of_one_linear_layer():
    _, head = parts(config("head=classifier_tta"))
    assert isinstance(head, nn.Module)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "weight": (6, 12),
        "bias": (6,),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["head.margin_by.size.powr=0.5"], "head.margin_by.size.powr: unknown key; did you mean 'power'"),
        (["head.margin_by.size.power=much"], "head.margin_by.size.power: Value 'much'"),
        (["+head.margin_by.size.class_counts=3"], "head.margin_by.size.class_counts: a fact of the data"),
        (
            ["head=domain_arcface", "head.mode=both"],
            "head.mode: 'both' is not known; accepted: unified, tile",
        ),
        (["neck=domain_separate"], "neck.domains: a value is required"),
    ],
)
def test_a_mistake_stops_while_the_config_is_read(words, message):
    with pytest.raises(UserError, match=message):
        composed("train", ["head=arcface_dynamic", *words])
