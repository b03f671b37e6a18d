"""The gate of views: which looks the classes of a classifier mean, by name; what it refuses; its key."""

import json

import pytest
import torch

from guie.build import build
from guie.config.compose import composed
from guie.errors import UserError
from guie.types import Preprocess
from guie.views import Classifier, Cut, Gate, Group, Views, Whole

NAMES = ["cars", "toys", "dishes"]
# A picture's feature is the class that it shows.
CLASSIFIER = Classifier(NAMES, torch.eye(3), torch.zeros(3), "key", "features")
LOOKS = {"all": Whole(), "left": Cut(0.5, "top_left"), "right": Cut(0.5, "top_right")}


def gate(otherwise=("all",), classifier=CLASSIFIER, **rest):
    return Gate(list(otherwise), **{"by": "all", **rest}, classifier=classifier)


def chosen(views, label):
    return views.gating.choice(torch.eye(3)[[NAMES.index(label)]])[0].tolist()


def test_each_class_gets_the_looks_of_its_group_and_others_the_rest():
    groups = {"a": Group(["toys"], ["all", "right"]), "b": None, "c": Group(["cars"], ["left"])}
    views = Views(LOOKS, gate=gate(groups=groups))
    assert chosen(views, "toys") == [True, False, True]
    assert chosen(views, "cars") == [False, True, False]
    assert chosen(views, "dishes") == [True, False, False]


def test_a_look_is_taken_at_every_scale_and_mirrored_and_the_classifier_sees_the_first():
    groups = {"a": Group(["toys"], ["left"])}
    views = Views(LOOKS, scales=(0.5, 1.0), flip=True, gate=gate(by="left", groups=groups, square=["right"]))
    assert chosen(views, "toys") == [False] * 4 + [True] * 4 + [False] * 4
    assert chosen(views, "cars") == [True] * 4 + [False] * 8
    assert views.gating.first == 4 and views.gating.square == (8, 9, 10, 11)
    first = views.of(Preprocess(size_px=(8, 8)))[views.gating.first]
    assert first.look is LOOKS["left"] and first.preprocess.size_px == (4, 4) and not first.mirrored


def test_only_pictures_as_high_as_wide_are_square_and_none_where_no_looks_are_named_for_them():
    with_square = Views(LOOKS, gate=gate(square=["left"])).gating
    assert with_square.is_square(7, 7) and not with_square.is_square(7, 8)
    assert not Views(LOOKS, gate=gate()).gating.is_square(7, 7)
    assert with_square.possible(square=True) == (1,)


def test_what_no_picture_gets_is_not_looked_at_but_what_the_classifier_reads_is():
    gating = Views(LOOKS, gate=gate(otherwise=["right"])).gating
    assert gating.possible(square=False) == (0, 2)
    assert chosen(Views(LOOKS, gate=gate(otherwise=["right"])), "cars") == [False, False, True]


def test_one_name_needs_no_brackets():
    plain = Gate("left", {"a": Group("toys", "right")}, by="all", square="left", classifier=CLASSIFIER)
    listed = gate(["left"], groups={"a": Group(["toys"], ["right"])}, square=["left"])
    assert Views(LOOKS, gate=plain).key == Views(LOOKS, gate=listed).key


def test_the_key_changes_with_every_setting_and_the_classifier_but_not_with_names():
    groups = {"a": Group(["toys"], ["right"])}
    gates = [
        gate(),
        gate(["left"]),
        gate(by="left"),
        gate(square=["left"]),
        gate(square=["all"]),
        gate(groups=groups),
        gate(groups={"a": Group(["cars"], ["right"])}),
        gate(classifier=CLASSIFIER._replace(key="other")),
    ]
    keys = {Views(LOOKS, gate=one).key for one in gates} | {Views(LOOKS).key}
    assert len(keys) == len(gates) + 1
    renamed = {"x": LOOKS["all"], "y": LOOKS["left"], "z": LOOKS["right"]}
    same = Gate(["x"], {"q": Group(["toys"], ["z"])}, by="x", classifier=CLASSIFIER)
    assert Views(renamed, gate=same).key == Views(LOOKS, gate=gate(groups=groups)).key


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: gate(classifier=None), r"ckpt_cls: not given; accepted: a run of head=classifier_tta"),
        (
            lambda: Views(LOOKS, gate=gate(["mid"])),
            r"views\.gate\.otherwise: 'mid'; accepted: all, left, right",
        ),
        (lambda: Views(LOOKS, gate=gate([])), r"views\.gate\.otherwise: 'nothing'; accepted: all, left"),
        (
            lambda: Views(LOOKS, gate=gate(by="whole")),
            r"views\.gate\.by: 'whole'; accepted: all, left, right",
        ),
        (lambda: Views(LOOKS, gate=gate(square=["x"])), r"views\.gate\.square: 'x'; accepted: all, left"),
        (
            lambda: Views(LOOKS, gate=gate(groups={"a": Group(["tois"], ["all"])})),
            r"views\.gate\.groups\.a\.classes: 'tois'; accepted: cars, toys, dishes",
        ),
        (
            lambda: Views(LOOKS, gate=gate(groups={"a": Group(["toys"], ["mid"])})),
            r"views\.gate\.groups\.a\.looks: 'mid'; accepted: all, left, right",
        ),
        (
            lambda: Views(
                LOOKS, gate=gate(groups={"a": Group(["toys"], ["all"]), "b": Group(["toys"], ["left"])})
            ),
            r"views\.gate\.groups\.b\.classes: 'toys' is in a, too; accepted: one group each",
        ),
    ],
)
def test_mistakes_name_their_key(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_of_many_classes_the_first_are_told():
    many = Classifier([f"c{i}" for i in range(500)], torch.zeros(500, 3), torch.zeros(500), "key", "features")
    with pytest.raises(UserError, match=r"'x'; accepted: c0, .*, c19 and 480 more$"):
        Views(LOOKS, gate=gate(groups={"a": Group(["x"], ["all"])}, classifier=many))


def test_groups_are_changed_from_the_command_line():
    words = ["dataset=toy", "views=classifier_tta", "views.gate.groups.things.classes=[toys]"]
    words += ["+views.gate.groups.cars={_target_: guie.views.Group, classes: [cars], looks: [padded]}"]
    node = composed("embed", words)["views"]
    views = build(node, where="views", classifier=CLASSIFIER)
    assert list(views.looks) == ["whole", "middle", "padded", "centre"]
    assert chosen(views, "toys") == [True, True, True, False]
    assert chosen(views, "cars") == [False, False, True, False]
    assert chosen(views, "dishes") == [True, True, False, False]
    assert views.gating.square == (3,) and views.summed == "raw"
    told = json.loads(json.dumps(views.told()))
    assert told["gate"]["groups"]["cars"] == {"classes": ["cars"], "looks": ["padded"]}
    assert told["gate"]["square"] == ["centre"] and told["gate"]["otherwise"] == ["whole", "middle"]
    assert (told["crop"], told["summed"], told["flip"]) == ("stretch", "raw", False)
    assert list(told["looks"]) == list(views.looks) and "share=0.9" in told["looks"]["centre"]
    with pytest.raises(UserError, match=r"views\.gate\.groups\.things\.clases: unknown key; did you mean"):
        composed("embed", ["dataset=toy", "views=classifier_tta", "views.gate.groups.things.clases=[toys]"])
