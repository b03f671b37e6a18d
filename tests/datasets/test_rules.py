"""Every subset rule against a plain loop, its order-stability, and its way through the config."""

import logging
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from guie.build import build
from guie.config.compose import composed
from guie.datasets import rules
from guie.datasets.hashed import hashed
from guie.datasets.manifest import from_columns
from guie.datasets.rules import apply
from guie.errors import UserError

SIZES = {"a": 3, "b": 7, "c": 7, "d": 1, "e": 12, "f": 5}


def made(sizes=None, root="/data/one", name="one", **more):
    """Return a manifest with files like b/3.jpg, rows of classes interleaved, domain x for a to c else y."""
    pairs = [(label, i) for label, n in (sizes or SIZES).items() for i in range(n)]
    pairs.sort(key=lambda pair: (pair[1], pair[0]))
    labels = [label for label, _ in pairs]
    columns = {
        "file": [f"{label}/{i}.jpg" for label, i in pairs],
        "label": labels,
        "domain": ["x" if label < "d" else "y" for label in labels],
        "super_label": [label.upper() for label in labels],
    }
    return from_columns(name, root, columns | more)


def left(manifest):
    return dict(sorted(Counter(row["label"] for row in manifest.table.to_pylist()).items()))


def splits(manifest):
    return dict(zip(manifest.files.tolist(), manifest.splits.tolist(), strict=True))


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (rules.MinImages(5), {"b": 7, "c": 7, "e": 12, "f": 5}),
        (rules.MoreThan(5), {"b": 7, "c": 7, "e": 12}),
        (rules.MoreThan(5, cap=6), {"b": 6, "c": 6, "e": 6}),
        (rules.MaxImages(5), {"a": 3, "b": 5, "c": 5, "d": 1, "e": 5, "f": 5}),
        (rules.TopClasses(2), {"b": 7, "e": 12}),
        (rules.KeepDomains(["x"]), {"a": 3, "b": 7, "c": 7}),
        (rules.DropDomains(["x"]), {"d": 1, "e": 12, "f": 5}),
        (rules.KeepLabels(["a", "d"]), {"a": 3, "d": 1}),
        (rules.ExcludeLabels(["B", "E", "F"], column="super_label"), {"a": 3, "c": 7, "d": 1}),
    ],
)
def test_what_is_left_is_what_the_rule_says_and_rows_keep_their_order(rule, wanted):
    manifest = made()
    kept = rule(manifest)
    assert left(kept) == wanted
    places = {file: i for i, file in enumerate(manifest.files)}
    assert (np.diff([places[file] for file in kept.files]) > 0).all()


def test_other_splits_pass_and_are_not_counted():
    manifest = made(split=["test" if i % 2 else "train" for i in range(35)])
    train = left(manifest.split("train"))
    kept = rules.MoreThan(3, cap=2)(manifest)
    assert left(kept.split("test")) == left(manifest.split("test"))
    assert left(kept.split("train")) == {label: 2 for label, n in train.items() if n > 3}
    assert left(rules.MaxImages(1, splits=["test"])(manifest).split("test")) == dict.fromkeys(
        left(manifest.split("test")), 1
    )


@pytest.mark.parametrize("rule", [rules.MaxImages(3), rules.MaxClasses(3), rules.DropClasses(3)])
def test_what_is_drawn_depends_on_seed_and_names_alone(rule):
    manifest = made()
    order = np.random.default_rng(0).permutation(len(manifest))
    kept = set(rule(manifest).files)
    assert kept == set(rule(manifest.select(order)).files)
    others = [set(type(rule)(3, seed=seed)(manifest).files) for seed in range(1, 6)]
    assert any(kept != other for other in others)
    assert rule(manifest).num_classes == (6 if isinstance(rule, rules.MaxImages) else 3)


def test_pictures_that_are_kept_stay_kept_when_others_come():
    few, more = made({"a": 20}), made({"a": 30, "b": 40})
    kept, now = (set(rules.MaxImages(10)(manifest).files) for manifest in (few, more))
    assert {file for file in now if file in set(few.files)} <= kept


def test_records_of_one_shard_are_told_apart_by_their_entry():
    columns = {"file": ["s.tfrec"] * 40, "entry": [str(i) for i in range(40)], "label": ["a", "b"] * 20}
    kept = rules.MaxImages(5)(from_columns("shards", "/data", columns))
    again = rules.MaxImages(5)(from_columns("shards", "/data", {k: v[::-1] for k, v in columns.items()}))
    assert left(kept) == {"a": 5, "b": 5}
    assert set(kept.table["entry"].to_pylist()) == set(again.table["entry"].to_pylist())


def test_hold_out_takes_its_share_of_the_classes_of_each_domain():
    sizes = {f"{domain}{i:03d}": 2 for domain in "az" for i in range(200 if domain == "a" else 40)}
    manifest = made(sizes)
    held = rules.HoldOutClasses(0.1)(manifest)
    test, train = held.split("test"), held.split("train")
    assert not set(test.label_names) & set(train.label_names) and len(held) == len(manifest)
    assert Counter(label[0] for label in test.label_names) == {"a": 20, "z": 4}
    assert held.files.tolist() == manifest.files.tolist()


def test_the_folds_of_held_out_classes_are_disjoint_and_make_up_the_whole():
    manifest = made({f"c{i:02d}": 2 for i in range(37)})
    folds = [
        rules.HoldOutClasses(folds=5, fold=k, seed=3)(manifest).split("test").label_names for k in range(5)
    ]
    assert sorted(label for fold in folds for label in fold) == manifest.label_names
    assert {len(fold) for fold in folds} <= {7, 8}


def test_stratified_folds_share_every_class_and_spare_small_ones():
    manifest = made({"a": 9, "b": 10, "c": 23, "d": 40})
    parts = [splits(rules.Folds(10, k)(manifest)) for k in range(10)]
    for label, n in {"a": 9, "b": 10, "c": 23, "d": 40}.items():
        files = [f"{label}/{i}.jpg" for i in range(n)]
        visits = [sum(part[file] == "val" for part in parts) for file in files]
        assert visits == [0 if n < 10 else 1] * n
        per_fold = [sum(part[file] == "val" for file in files) for part in parts]
        assert max(per_fold) - min(per_fold) <= 1


def test_the_remainders_of_the_classes_do_not_all_fall_into_the_first_folds():
    manifest = made({f"c{i:03d}": 11 for i in range(300)})
    sizes = [len(rules.Folds(10, k)(manifest).split("val")) for k in range(10)]
    assert sum(sizes) == len(manifest) and max(sizes) < 1.2 * min(sizes)


def test_a_validation_set_is_drawn_from_the_large_classes():
    found = rules.PickVal(4, min_images=7)(made())
    val = found.split("val")
    assert len(val) == 4 and set(val.label_names) <= {"b", "c", "e"}
    assert len(found.split("train")) == 31


def test_the_validation_pictures_of_a_smaller_list_are_those_of_a_larger():
    small = rules.PickVal(5)(made())
    large = rules.ValOf(small)(made(SIZES | {"g": 20, "b": 30}))
    assert set(large.split("val").files) == set(small.split("val").files) and len(large) == 78
    with pytest.raises(UserError, match=r"ValOf\.of: 0 val pictures .*, 0 of them here; accepted"):
        rules.ValOf(made())(made())
    with pytest.raises(UserError, match=r"ValOf\.of: 5 val pictures below /data/two, 5 of them here"):
        rules.ValOf(rules.PickVal(5)(made(root="/data/two")))(made())


def test_classes_of_an_evaluation_set_leave_training_but_not_the_test():
    other = made({"b": 1, "e": 2, "f": 1}, split=["query", "index", "train", "index"], name="other")
    own = ["train"] * 30 + ["test"] * 5
    kept = rules.ExcludeLabelsOf(other)(made(split=own))
    asked = set(other.split("query", "index").label_names)
    assert not asked & set(kept.split("train").label_names) and asked == {"b", "e"}
    assert len(kept.split("test")) == 5


def test_distractors_join_the_gallery_below_the_folder_that_holds_both(tmp_path):
    own = made(root=tmp_path / "one")
    own.truth = pa.table({"query": ["a/0.jpg"], "item": ["b/0.jpg"]})
    other = made({"q": 9}, root=tmp_path / "two" / "deep")
    found = rules.Distractors(other, images=4, domain="landmark")(own)
    assert found.root == tmp_path and len(found) == 35 + 4
    new = found.split("index")
    assert new.label_names == ["distractor"] and new.domain_names == ["landmark"]
    assert all(file.startswith("two/deep/q/") for file in new.files)
    assert (
        found.files[0] == "one/a/0.jpg" and found.table["super_label"].to_pylist()[-5:] == ["E"] + [None] * 4
    )
    assert found.truth.to_pylist() == [{"query": "one/a/0.jpg", "item": "one/b/0.jpg"}]
    assert rules.Distractors(other)(own).domain_names == ["x", "y"]
    with pytest.raises(UserError, match="pictures listed twice"):
        rules.Distractors(own)(own)


def test_labels_splits_and_domains_can_be_given_anew():
    manifest = made(split=["query"] * 30 + ["index"] * 5)
    assert rules.LabelFrom("super_label")(manifest).label_names == list("ABCDEF")
    assert set(rules.SetSplit("train")(manifest).splits) == {"train"}
    half = rules.SetSplit("val", of=["index"])(manifest)
    assert half.splits.tolist() == ["query"] * 30 + ["val"] * 5
    assert len(rules.KeepSplits(["val"])(half)) == 5
    assert rules.SetDomain("food")(manifest).domain_names == ["food"]


def test_rules_act_in_order_are_logged_and_may_be_switched_off(caplog):
    with caplog.at_level(logging.INFO, "guie"):
        kept = apply({"many": rules.MoreThan(4), "off": None, "few": rules.MaxImages(2)}, made())
    assert left(kept) == {"b": 2, "c": 2, "e": 2, "f": 2}
    assert caplog.messages == [
        "dataset one, rule many: 35 images of 6 classes -> 31 of 4",
        "dataset one, rule few: 31 images of 4 classes -> 8 of 4",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.MoreThan("many"), r"MoreThan\.images: 'many'; accepted: a whole number from 0"),
        (lambda: rules.MaxImages(0), r"MaxImages\.images: 0; accepted: a whole number from 1"),
        (lambda: rules.HoldOutClasses(1.2), r"HoldOutClasses\.share: 1\.2; accepted: 0 to below 1"),
        (lambda: rules.HoldOutClasses("x"), r"HoldOutClasses\.share: 'x'; accepted: 0 to below 1"),
        (lambda: rules.Folds(5, 5), r"Folds\.fold: 5; accepted: 0 to 4"),
        (lambda: rules.ExcludeLabelsOf("sop"), r"ExcludeLabelsOf\.of: 'sop'; accepted: a data set"),
        (
            lambda: rules.DropClasses(6)(made()),
            r"DropClasses\.classes: 6 of 6 classes; accepted: fewer than 6",
        ),
        (lambda: rules.KeepLabels(["q"])(made()), r"KeepLabels\.labels: unknown 'q'; accepted: a, b, c"),
        (lambda: rules.KeepLabels("a")(made()), r"KeepLabels\.labels: 'a'; accepted: a list of names"),
        (
            lambda: rules.ExcludeLabels(["a"], "kind")(made()),
            r"ExcludeLabels\.column: unknown 'kind'; accepted",
        ),
        (lambda: rules.DropDomains(["z"])(made()), r"DropDomains\.domains: unknown 'z'; accepted: x, y"),
        (lambda: rules.SetSplit("dev")(made()), r"SetSplit\.split: unknown 'dev'; accepted: index, query"),
        (lambda: rules.MinImages(splits=["dev"])(made()), r"splits \['dev'\]; accepted: a list of train"),
        (
            lambda: apply({"top": rules.MoreThan(99)}, made()),
            r"dataset one, rule top: leaves none of 35 images",
        ),
        (lambda: apply({"top": 3}, made()), r"dataset one, rule top: 3; accepted: \{_target_"),
        (lambda: apply([3], made()), r"dataset one, rules: \[3\]; accepted: name ->"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


RECIPE = """
defaults: [_mine, _self_]
mine:
  _target_: guie.datasets.folder.folder
  root: ???
  test_classes: 0
  rules:
    frequent:
      _target_: guie.datasets.rules.MoreThan
      images: 15
    unseen:
      _target_: guie.datasets.rules.ExcludeLabelsOf
      of:
        _target_: guie.datasets.folder.folder
        root: other
        split: test
"""


def recipe(folder, *overrides, text=RECIPE):
    (folder / "dataset").mkdir(exist_ok=True)
    (folder / "dataset" / "mine.yaml").write_text(text)
    return composed("train", ["dataset=mine", "dataset.mine.root=p", *overrides], [folder])


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    """Compose from a copy of the presets in which a user's data set stands."""
    import shutil

    from guie.config import compose

    configs = tmp_path / "configs"
    shutil.copytree(compose.directory(), configs)
    monkeypatch.setattr(compose, "directory", lambda: configs)
    return configs


def test_a_recipe_in_yaml_composes_takes_overrides_and_builds(own_configs, tmp_path):
    for place in [f"p/{c}/{i}.jpg" for c, n in (("a", 9), ("b", 2), ("c", 8)) for i in range(n)] + [
        "other/c/1.jpg"
    ]:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    cfg = recipe(own_configs, "dataset.mine.rules.frequent.images=5")
    node = cfg["dataset"]["mine"]
    assert node["rules"]["frequent"]["images"] == 5
    manifest = build(node, where="dataset.mine", data_root=str(tmp_path))
    assert left(manifest) == {"a": 9}
    off = recipe(
        own_configs, "dataset.mine.rules.frequent=null", "dataset.mine.rules.unseen.of.test_classes=0"
    )
    assert left(build(off["dataset"]["mine"], data_root=str(tmp_path))) == {"a": 9, "b": 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            ("images: 15", "imagse: 15"),
            r"dataset\.mine\.rules\.frequent\.imagse: unknown key; did you mean 'images'",
        ),
        (
            ("split: test", "splt: test"),
            r"dataset\.mine\.rules\.unseen\.of\.splt: unknown key; did you mean 'split'",
        ),
        (
            ("rules.MoreThan", "rules.MoreThen"),
            r"'guie\.datasets\.rules' defines no class or function 'MoreThen'",
        ),
        (
            ("split: test", "split: dev"),
            r"dataset\.mine\.rules\.unseen\.of\.split: 'dev' is not known; accepted",
        ),
    ],
)
def test_a_mistake_in_a_recipe_names_its_key(own_configs, wrong, message):
    with pytest.raises(UserError, match=message):
        recipe(own_configs, text=RECIPE.replace(*wrong))


def test_a_mistaken_override_of_a_rule_names_its_key(own_configs):
    with pytest.raises(UserError, match=r"dataset\.mine\.rules\.frequent\.image: unknown key; did you mean"):
        recipe(own_configs, "dataset.mine.rules.frequent.image=3")


def test_a_known_set_takes_a_whole_rule_from_the_command_line():
    rule = "{frequent:{_target_:guie.datasets.rules.MoreThan,images:20}}"
    cfg = composed("train", ["dataset=sop", f"dataset.sop.rules={rule}"])
    assert cfg["dataset"]["sop"]["rules"]["frequent"]["images"] == 20


def test_hashes_are_uniform_and_of_the_text_alone():
    texts = pa.array([f"train/{i:05d}.jpg" for i in range(4000)])
    keys = hashed(0, texts)
    assert len(set(keys.tolist())) == 4000
    counts, _ = np.histogram(keys / 2.0**64, bins=20, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 45  # chi square, 19 degrees of freedom: 99.9 % is 43.8
    np.testing.assert_array_equal(hashed(0, texts.slice(5, 9)), keys[5:14])
    np.testing.assert_array_equal(hashed(0, pa.chunked_array([texts[:7], texts[7:9]])), keys[:9])
    assert (hashed(1, texts) != keys).all()


def test_hashes_never_change_and_tell_near_texts_apart():
    texts = ["a", "", None, "abcdefgh", "abcdefghi", "abcdefgh\0", "é"]
    assert len(set(hashed(0, pa.array(texts)).tolist())) == len(texts)
    assert hashed(0, pa.array(["a", "abcdefghi"])).tolist() == KNOWN


KNOWN = [7611827055448525971, 9286085507735673544]
