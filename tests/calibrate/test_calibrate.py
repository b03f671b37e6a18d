"""Thresholds at a false-match rate, and the open set, against loops over all pairs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from guie import measuring
from guie.calibrate import pairs, thresholds
from guie.calibrate.open_set import auroc, identification, open_set
from guie.calibrate.thresholds import Thresholds, calibrate
from guie.errors import UserError
from guie.protocols.part import Part
from guie.protocols.retrieval import Retrieval
from guie.search.exact import Exact
from guie.types import Embeddings, Pairs

STEP = 1 / pairs.STEPS


def embeddings(classes=12, each=6, dim=8, spread=0.7, domains=1, seed=0, **more):
    """Vectors of any length around a centre for each class; the classes take turns over the domains."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centres = draw.normal(size=(classes, dim))
    vectors = centres[labels] + spread * draw.normal(size=(len(labels), dim))
    return Embeddings(
        vectors.astype(np.float32),
        np.array([f"{i}.jpg" for i in range(len(labels))], dtype=object),
        np.array([f"c{label}" for label in labels], dtype=object),
        np.array([f"d{label % domains}" for label in labels], dtype=object),
        np.array(["test"] * len(labels), dtype=object),
        "space",
        **more,
    )


def cosines(part, rows=None):
    """Return {(query, item): cosine} of all pairs but a row with itself, in float64."""
    unit = part.vectors / np.linalg.norm(part.vectors, axis=1, keepdims=True)
    rows = range(len(unit)) if rows is None else rows
    return {(i, j): float(unit[i] @ unit[j]) for i, j in itertools.product(rows, rows) if i != j}


def split_by_label(part, found):
    genuine = [value for (i, j), value in found.items() if part.labels[i] == part.labels[j]]
    impostor = [value for (i, j), value in found.items() if part.labels[i] != part.labels[j]]
    return np.array(genuine), np.array(impostor)


def rows_of(part, **kwargs):
    found, reports = calibrate({"set": part}, {"set": Retrieval()}, **kwargs)
    return {row["domain"]: row for row in found}, {row["domain"]: row for row in reports}


def test_a_threshold_is_the_lowest_that_lets_no_more_than_the_rate_of_impostors_pass():
    part = embeddings()
    row = rows_of(part, rates=(0.1, 0.01, 0.001))[0][""]
    genuine, impostor = split_by_label(part, cosines(part))
    assert (row["genuine"], row["impostor"]) == (len(genuine), len(impostor)) == (360, 4752)
    for point in row["at"]:
        rate, threshold = point["false_match_rate"], point["threshold"]
        assert (impostor >= threshold).mean() <= rate < (impostor >= threshold - 2 * STEP).mean()
        assert point["true_match_rate"] == pytest.approx((genuine >= threshold).mean(), abs=1 / 360)
        low, high = point["threshold_interval"]
        assert low <= threshold <= high
        assert point["enough"] is (rate * len(impostor) >= 30)


def test_the_curve_is_the_share_of_pairs_at_least_so_similar():
    part = embeddings()
    curve = rows_of(part)[0][""]["curve"]
    genuine, impostor = split_by_label(part, cosines(part))
    assert curve["similarity"] == sorted(curve["similarity"]) and len(curve["similarity"]) <= 65
    assert curve["false_match_rate"][0] == curve["true_match_rate"][0] == 1
    assert curve["false_match_rate"][-1] == curve["true_match_rate"][-1] == 0
    for level, false, true in zip(*curve.values(), strict=True):
        assert abs(false - (impostor >= level).mean()) < 2 / len(impostor)
        assert abs(true - (genuine >= level).mean()) < 2 / len(genuine)


def test_a_domain_is_calibrated_within_its_own_gallery():
    part = embeddings(domains=2)
    found = rows_of(part, rates=(0.01,))[0]
    assert list(found) == ["", "d0", "d1"]
    for domain in ("d0", "d1"):
        rows = np.flatnonzero(part.domains == domain)
        _, impostor = split_by_label(part, cosines(part, rows))
        threshold = found[domain]["at"][0]["threshold"]
        assert found[domain]["impostor"] == len(impostor)
        assert (impostor >= threshold).mean() <= 0.01 < (impostor >= threshold - 2 * STEP).mean()


def test_stated_pairs_are_genuine_junk_is_neither_and_labels_count_no_more():
    stated = {
        "query": ["0.jpg", "0.jpg", "0.jpg", "0.jpg", "0.jpg"],
        "item": ["7.jpg", "7.jpg", "8.jpg", "gone.jpg", "0.jpg"],
        "relation": ["junk", "ok", "junk", "ok", "ok"],
        "usage": [""] * 5,
    }
    truth = Pairs(**{name: np.array(column, dtype=object) for name, column in stated.items()})
    part = embeddings(classes=2, each=5, truth=truth)
    found, reports = rows_of(part)
    assert (found[""]["genuine"], found[""]["impostor"]) == (1, 10 * 9 - 2)
    assert (reports[""]["known"], reports[""]["unknown"], reports[""]["unknown_are"]) == (1, 9, "stated")


@pytest.mark.parametrize("column", ["class_ids", "landmarks"])
def test_of_several_labels_any_shared_one_makes_a_pair_genuine(column):
    sets = [{1}, {1, 2}, {2}, {3}, {3, 1}, {2, 1}]
    texts = [" ".join(map(str, sorted(one))) for one in sets]
    first = [text.split()[0] for text in texts]
    part = embeddings(classes=6, each=1)
    part.labels[:] = [f"x/{name}" if column == "class_ids" else name for name in first]
    part.further[column] = np.array(texts, dtype=object)
    rows = np.arange(6)
    found = pairs.group(Part("set", part, Exact()), rows, rows).related(0, 6)
    genuine = {(q, i) for q, i, is_so in zip(*(c.tolist() for c in found), strict=True) if is_so}
    assert len(found.query) == len(genuine) + 6
    assert genuine == {(q, i) for q in range(6) for i in range(6) if q != i and sets[q] & sets[i]}


def test_too_few_impostors_give_no_threshold_rather_than_a_guess():
    row = rows_of(embeddings(classes=3, each=3), rates=(0.1, 0.01))[0][""]
    assert row["impostor"] == 54
    assert [point["false_match_rate"] for point in row["at"]] == [0.1]
    assert row["at"][0]["enough"] is False


def test_impostors_that_are_all_alike_leave_no_threshold_that_a_pair_could_reach():
    part = embeddings(classes=40, each=2)
    part.vectors[:] = 1
    row = rows_of(part, rates=(0.01,))[0][""]
    assert row["at"][0]["threshold"] > 1 and row["at"][0]["true_match_rate"] == 0


def test_many_queries_are_a_sample_that_is_said_and_all_of_their_pairs_count(monkeypatch):
    part = embeddings(classes=20, each=10)
    monkeypatch.setattr(pairs, "PAIRS", 1)
    monkeypatch.setattr(pairs, "FEWEST", 50)
    monkeypatch.setattr(pairs, "TILE", 1)
    row = rows_of(part)[0][""]
    assert (row["queries"], row["queries_in_all"]) == (50, 200)
    assert (row["genuine"], row["impostor"]) == (50 * 9, 50 * 190)


def test_the_tiles_change_nothing(monkeypatch):
    part = embeddings(domains=2)
    whole, report = rows_of(part)
    monkeypatch.setattr(pairs, "TILE", 1)
    tiled, again = rows_of(part)
    for domain in ("", "d0", "d1"):
        for one, other in zip(whole[domain]["at"], tiled[domain]["at"], strict=True):
            assert one["threshold"] == pytest.approx(other["threshold"], abs=2 * STEP)
        assert report[domain]["AUROC"] == pytest.approx(again[domain]["AUROC"], abs=1e-3)


def test_the_threshold_of_the_sample_keeps_its_rate_on_other_classes_of_the_same_kind():
    ours, others = (embeddings(classes=60, each=8, dim=16, seed=seed) for seed in (1, 2))
    point = rows_of(ours, rates=(0.01,))[0][""]["at"][0]
    _, impostor = split_by_label(others, cosines(others))
    assert (impostor >= point["threshold"]).mean() == pytest.approx(0.01, abs=0.005)


def test_is_it_the_same_thing_is_answered_by_number(tmp_path):
    part = embeddings(domains=2)
    found, _ = calibrate({"set": part}, {"set": Retrieval()})
    path = Thresholds("space", found).save(tmp_path)
    read = thresholds.load(tmp_path)
    assert read == thresholds.load(path) == Thresholds("space", found)
    genuine, impostor = split_by_label(part, cosines(part))
    for similarity in (-0.2, 0.5, 0.7, 0.9):
        decision = read.same_thing(similarity, false_match_rate=0.01)
        assert decision.same is (similarity >= found[0]["at"][0]["threshold"])
        assert decision.false_match_rate == pytest.approx((impostor >= similarity).mean(), abs=0.02)
        assert decision.true_match_rate == pytest.approx((genuine >= similarity).mean(), abs=0.03)
    own = read.same_thing(0.6, "d1", false_match_rate=0.01)
    assert own.decided_by == "d1" and own.threshold == found[2]["at"][0]["threshold"]
    assert read.same_thing(0.6, "set/d1", false_match_rate=0.01)[:5] == own[:5]
    with pytest.raises(UserError, match=r"domain: 'd3'; accepted: d0, d1, set, set/d0, set/d1"):
        read.same_thing(0.6, "d3")
    with pytest.raises(UserError, match=r"false_match_rate: 0.5 in d0; accepted: 0.01, 0.001"):
        read.same_thing(0.6, "d0", false_match_rate=0.5)


def test_thresholds_of_another_data_set_stay_those_of_another_space_do_not(tmp_path):
    found = rows_of(embeddings())[0][""]
    for space, name in (("a", "x"), ("a", "y"), ("b", "z")):
        Thresholds(space, [found | {"dataset": name}]).save(tmp_path)
        names = list(thresholds.load(tmp_path).names)
        assert names == {"x": ["x"], "y": ["x", "y"], "z": ["z"]}[name]
    (tmp_path / "thresholds.json").write_text("{}")
    with pytest.raises(UserError, match=r"thresholds: .*cannot be read .*accepted: what guie-eval"):
        thresholds.load(tmp_path)


def test_auroc_is_the_share_of_pairs_in_order():
    draw = np.random.default_rng(0)
    known, unknown = draw.integers(0, 6, 30), draw.integers(0, 5, 40)
    wins = sum((a > b) + (a == b) / 2 for a in known for b in unknown)
    assert auroc(known, unknown) == pytest.approx(wins / 1200)


def test_identification_accepts_no_more_unknown_things_than_the_rate():
    draw = np.random.default_rng(0)
    right, unknown = np.round(draw.normal(1, 1, 50), 1), np.round(draw.normal(0, 1, 40), 1)
    for rate in (0.0, 0.05, 0.1, 0.5):
        share, threshold = identification(right, unknown, rate)
        allowed = [t for t in np.unique(unknown) if (unknown > t).mean() <= rate]
        assert threshold == min(allowed)
        assert share == np.mean([score > threshold for score in right])


def test_queries_without_their_thing_in_the_gallery_are_the_unknown_ones():
    best_genuine = np.array([0.9, 0.5, -np.inf, -np.inf], dtype=np.float32)
    best_impostor = np.array([0.3, 0.6, 0.4, 0.7], dtype=np.float32)
    report = open_set(best_genuine, best_impostor, rates=(0.5,))
    assert (report["known"], report["unknown"], report["unknown_are"]) == (2, 2, "stated")
    assert report["AUROC"] == 0.75  # 0.9 and 0.6 against 0.4 and 0.7
    assert report["at"][0]["DIR"] == 0.5 and report["at"][0]["threshold"] == pytest.approx(0.4)


def test_without_such_queries_each_class_is_left_out_in_turn():
    part = embeddings()
    report = rows_of(part)[1][""]
    found = cosines(part)
    best = [{True: -2.0, False: -2.0} for _ in part.labels]
    for (i, j), value in found.items():
        same = bool(part.labels[i] == part.labels[j])
        best[i][same] = max(best[i][same], value)
    assert report["unknown_are"] == "left out" and report["known"] == report["unknown"] == len(best)
    tops = [max(pair.values()) for pair in best]
    wins = sum(top > pair[False] for top in tops for pair in best)
    ties = sum(top == pair[False] for top in tops for pair in best)
    assert report["AUROC"] == pytest.approx((wins + ties / 2) / len(best) ** 2, abs=1e-3)
    for point in report["at"]:
        allowed = int(point["FPIR"] * len(best))
        threshold = sorted((pair[False] for pair in best), reverse=True)[allowed]
        right = [pair[True] > pair[False] and pair[True] > threshold for pair in best]
        assert point["DIR"] == pytest.approx(np.mean(right)) and point["threshold"] == pytest.approx(
            threshold
        )


def test_a_data_set_where_nothing_is_known_has_no_open_set():
    assert open_set(np.full(3, -np.inf), np.array([0.1, 0.2, 0.3])) == {}


def test_a_row_is_not_compared_with_itself():
    part = embeddings(classes=4, each=2)
    rows = np.arange(8)
    found = pairs.group(Part("set", part, Exact()), rows, rows).related(2, 5)
    assert sorted(zip(*(column.tolist() for column in found), strict=True)) == [
        (0, 2, False),
        (0, 3, True),
        (1, 2, True),
        (1, 3, False),
        (2, 4, False),
        (2, 5, True),
    ]


def test_guie_eval_tells_both_where_it_is_asked_and_keeps_the_thresholds(tmp_path):
    cfg = {"thresholds": True, "compression": False, "postprocess": {}, "fitted": None, "seed": 0}
    part = {"set": embeddings()}
    measured = measuring.Measured(cfg, {"set": Retrieval()}, Exact(), tmp_path)
    _, facts = measured.on(part, {})
    found, reports = calibrate(part, {"set": Retrieval()})
    assert facts["thresholds"] == found and facts["open_set"] == reports and "compression" not in facts
    measuring.keep_thresholds(facts, tmp_path)
    assert thresholds.load(tmp_path) == Thresholds("space", found)


def test_thresholds_are_of_the_vectors_that_a_file_with_the_steps_gives(tmp_path):
    maps = {"prefix": {"_target_": "guie.postprocess.maps.Prefix", "dim": 3}}
    cfg = {"thresholds": True, "compression": False, "postprocess": maps, "fitted": None, "seed": 0}
    part = embeddings()
    cut = part.vectors[:, :3] / np.linalg.norm(part.vectors[:, :3], axis=1, keepdims=True)
    protocols = {"set": Retrieval()}
    _, facts = measuring.Measured(cfg, protocols, Exact(), tmp_path).on({"set": part}, {})
    assert facts["thresholds"] == calibrate({"set": replace(part, vectors=cut)}, protocols)[0]
    assert facts["thresholds_space_id"] == facts["space_id"] != facts["vectors_space_id"]
    measuring.keep_thresholds(facts, tmp_path)
    assert thresholds.load(tmp_path).space_id == facts["space_id"]
    cfg["postprocess"] = {"dba": {"_target_": "guie.postprocess.expansion.DBA"}}
    _, facts = measuring.Measured(cfg, protocols, Exact(), tmp_path).on({"set": part}, {})
    assert facts["thresholds"] == calibrate({"set": part}, protocols)[0]
    assert facts["thresholds_space_id"] == facts["vectors_space_id"] != facts["space_id"]
