"""What makes a result doubtful, and that it is said: by hand-made numbers and manifests."""

import numpy as np
import pytest

from guie.datasets.manifest import from_columns
from guie.errors import UserError
from guie.safety import Shortfall, checked_leaks, leaks, shortfalls, told


def level(merged, **domains):
    """Return one level of metrics: its mP@5, and by domain (own index, merged index)."""
    entries = {name: {"mP@5": own, "merged": {"mP@5": on}} for name, (own, on) in domains.items()}
    return {"mP@5": merged, "domains": entries}


def test_what_is_below_the_frozen_backbone_is_named_down_to_the_domain():
    trained = {"a": level(0.5, food=(0.5, 0.1), logo=(0.7, 0.2))}
    frozen = {"a": level(0.4, food=(0.6, 0.0), logo=(0.7, 0.9))}
    floors = {"backbone": frozen | {"merged": frozen["a"]}, "raw_pixels": {"merged": {"mP@5": 0.9}}}
    assert shortfalls(trained | {"merged": trained["a"]}, floors) == [Shortfall("a/food", 0.5, 0.6)]


def test_of_several_data_sets_each_is_named_and_the_merged_index():
    trained = {"a": level(0.5, x=(0.5, 0.5)), "b": level(0.3, x=(0.3, 0.3)), "merged": level(0.2)}
    frozen = {"a": level(0.4, x=(0.4, 0.4)), "b": level(0.5, x=(0.5, 0.5)), "merged": level(0.3)}
    assert shortfalls(trained, {"backbone": frozen}) == [
        Shortfall("merged", 0.2, 0.3),
        Shortfall("b", 0.3, 0.5),
    ]


def test_a_domain_without_an_own_index_counts_on_the_merged_one():
    def one(food, logo):
        domains = {name: {"merged": {"mP@5": value}} for name, value in (("food", food), ("logo", logo))}
        return {"merged": {"mP@5": 0.5}, "a": {"mP@5": 0.5, "domains": domains}}

    assert shortfalls(one(0.2, 0.8), {"backbone": one(0.3, 0.8)}) == [Shortfall("a/food", 0.2, 0.3)]


def test_without_floors_and_with_equal_numbers_nothing_is_below():
    numbers = {"a": level(0.5, food=(0.5, 0.5), logo=(0.1, 0.1)), "merged": level(0.5)}
    assert shortfalls(numbers, {}) == [] == shortfalls(numbers, {"backbone": numbers})


def test_the_line_names_the_greatest_losses_and_counts_the_rest():
    found = [Shortfall(f"a/{i}", 0.5 - i / 100, 0.5) for i in range(1, 7)]
    assert told(found, most=2) == (
        "mP@5 below the frozen backbone: a/6 0.440 (frozen 0.500), a/5 0.450 (frozen 0.500) and 4 more"
    )


def rows(root, files, labels, **columns):
    return from_columns("x", root, {"file": files, "label": labels, **columns})


def found(trained, asked):
    return [(leak.kind, leak.num, leak.total, leak.examples) for leak in leaks({"t": trained}, {"e": asked})]


def test_class_disjoint_data_leaks_nothing(tmp_path):
    ours, theirs = rows(tmp_path, ["a", "b"], ["1", "2"]), rows(tmp_path, ["c", "d"], ["3", "4"])
    assert found(ours, theirs) == []


def test_shared_classes_count_below_the_same_root_alone(tmp_path):
    ours = rows(tmp_path / "one", ["a", "b"], ["cat", "dog"])
    assert found(ours, rows(tmp_path / "one", ["c", "d", "e"], ["dog", "cow", "cow"])) == [
        ("classes", 1, 2, ["dog"])
    ]
    assert found(ours, rows(tmp_path / "two", ["c", "d", "e"], ["dog", "cow", "cow"])) == []


def test_the_same_picture_is_found_whatever_root_it_is_named_from(tmp_path):
    ours = rows(tmp_path, ["in/a.jpg", "in/b.jpg"], ["1", "1"])
    theirs = rows(tmp_path / "in", ["b.jpg", "c.jpg"], ["9", "9"])
    assert found(ours, theirs) == [("pictures", 1, 2, [f"{tmp_path}/in/b.jpg"])]


def test_a_record_is_the_same_picture_only_with_the_same_entry(tmp_path):
    ours = rows(tmp_path, ["s.tar"] * 2, ["1", "1"], entry=["0", "512"])
    theirs = rows(tmp_path, ["s.tar"] * 2, ["9", "9"], entry=["512", "1024"])
    assert found(ours, theirs) == [("pictures", 1, 2, [f"{tmp_path}/s.tar"])]


def test_equal_bytes_under_another_name_are_found_where_both_were_prepared(tmp_path):
    ours = rows(tmp_path / "one", ["a", "b"], ["1", "2"], sha256=["aa", "bb"])
    theirs = rows(tmp_path / "two", ["x", "y", "z"], ["7", "8", "9"], sha256=["bb", "cc", None])
    assert found(ours, theirs) == [("bytes", 1, 3, ["x"])]
    assert found(ours, rows(tmp_path / "two", ["x"], ["7"])) == []


def test_a_picture_that_is_the_same_by_place_is_not_told_again_by_its_bytes(tmp_path):
    ours = rows(tmp_path, ["a", "b"], ["1", "2"], sha256=["aa", "bb"])
    theirs = rows(tmp_path, ["b", "c"], ["8", "9"], sha256=["bb", "aa"])
    assert found(ours, theirs) == [
        ("pictures", 1, 2, [f"{tmp_path}/b"]),
        ("bytes", 1, 2, ["c"]),
    ]


def test_leaks_are_lines_with_counts_and_examples_or_refused_or_ignored(tmp_path):
    ours = {"sop": rows(tmp_path, ["a", "b"], ["cat", "dog"])}
    theirs = {"sop": rows(tmp_path, ["c", "d", "e"], ["dog", "cow", "cow"])}
    line = "leakage: 1 of 2 classes of eval_on.sop are trained on, too (dog)"
    assert checked_leaks(ours, theirs, "warn") == [line]
    assert checked_leaks(ours, theirs, "ignore") == []
    with pytest.raises(UserError, match=r"^leakage: 1 of 2 classes .*; accepted under leakage=refuse"):
        checked_leaks(ours, theirs, "refuse")
    with pytest.raises(UserError, match="leakage: 'no'; accepted: warn, refuse, ignore"):
        checked_leaks(ours, theirs, "no")


def test_the_counts_are_those_of_sets_in_python(tmp_path):
    rng = np.random.default_rng(0)
    shas = [f"{n:x}" for n in rng.integers(0, 300, 400)]
    files = [f"{n}" for n in rng.permutation(600)[:400]]
    ours = rows(tmp_path, files[:200], ["t"] * 200, sha256=shas[:200])
    theirs = rows(tmp_path / ".", files[150:], ["e"] * 250, sha256=shas[150:])
    same = set(files[:200]) & set(files[150:])
    known = set(shas[:200])
    equal = sum(sha in known and file not in same for file, sha in zip(files[150:], shas[150:], strict=True))
    assert [entry[:3] for entry in found(ours, theirs)] == [
        ("pictures", len(same), 250),
        ("bytes", equal, 250),
    ]
