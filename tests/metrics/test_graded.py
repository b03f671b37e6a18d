"""mAP E/M/H and mP@k of revisited Oxford and Paris: stated values, the authors' unit cases, a slow loop."""

import json

import numpy as np
import pytest

from guie.metrics import revisited
from guie.metrics.hits import hits_from_mask, trapezoidal_average_precision
from guie.metrics.revisited import Grades

STATED = {
    "mAP E": 0.0555162680,
    "mAP M": 0.0853901948,
    "mAP H": 0.0626387277,
    "mP@1 E": 0.09090909,
    "mP@5 E": 0.05454545,
    "mP@10 E": 0.06363636,
    "mP@1 M": 0.16666666,
    "mP@5 M": 0.1,
    "mP@10 M": 0.11666666,
    "mP@1 H": 0.09090909,
    "mP@5 H": 0.05454545,
    "mP@10 H": 0.06363636,
}


def grades_of(queries):
    """Return `Grades` of a list of {grade: positions}."""
    rows = [(q, i, g) for q, grades in enumerate(queries) for g, items in grades.items() for i in items]
    query, item, grade = zip(*rows, strict=True)
    return Grades(np.array(query), np.array(item), np.array(grade, dtype=object))


@pytest.fixture(scope="module")
def case():
    r = np.random.RandomState(0)
    ids = np.argsort(-r.rand(200, 12), axis=0, kind="stable").T
    queries = []
    for _ in range(12):
        p = r.permutation(200)
        queries.append({"easy": p[:5], "hard": p[5:12], "junk": p[12:20]})
    queries[3]["easy"] = queries[7]["hard"] = []
    return ids, queries


def looped(ranking, ok, junk, ks):
    """Return (AP, {k: precision}) of one query as the protocol is written: delete junk, then count."""
    kept = [i for i in ranking if i >= 0 and i not in junk]
    places = [place for place, i in enumerate(kept) if i in ok]
    area = 0.0
    for found, place in enumerate(places):
        before = found / place if place else 1.0
        area += (before + (found + 1) / (place + 1)) / 2 / len(ok)
    last = places[-1] + 1 if len(places) == len(ok) else max(ks)
    return area, {k: sum(p < min(last, k) for p in places) / min(last, k) for k in ks}


def test_the_stated_values(case):
    ids, queries = case
    found = revisited.evaluate(ids, grades_of(queries))
    assert found == pytest.approx(STATED, abs=1e-8)


@pytest.mark.parametrize("depth", [200, 60, 11])
def test_every_query_equals_the_protocol_in_a_loop(case, depth):
    ids, queries = case
    ids = ids[:, :depth].copy()
    ids[5, -2:] = -1
    found = revisited.per_query(ids, grades_of(queries))
    for name, level in revisited.LEVELS.items():
        for q, grades in enumerate(queries):
            ok, junk = ({i for grade in chosen for i in grades[grade]} for chosen in level)
            ap, precision = looped(ids[q].tolist(), ok, junk, (1, 5, 10)) if ok else (np.nan, {})
            assert found[f"mAP {name}"][q] == pytest.approx(ap, abs=1e-12, nan_ok=True)
            for k in (1, 5, 10):
                expected = precision.get(k, np.nan)
                assert found[f"mP@{k} {name}"][q] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_a_level_without_any_query_is_not_a_number_and_no_error(case):
    ids, queries = case
    only_easy = [{"easy": grades["easy"], "hard": [], "junk": []} for grades in queries]
    found = revisited.evaluate(ids, grades_of(only_easy))
    assert np.isnan(found["mAP H"]) and found["mAP E"] == found["mAP M"]


@pytest.fixture(scope="module")
def published(shared):
    path = shared / "reference" / "public_test_vectors.json"
    return json.loads(path.read_text())["delf_revisited_op"]


@pytest.mark.parametrize("name, key", [("E", "easy"), ("M", "medium"), ("H", "hard")])
def test_levels_choose_the_published_pictures(published, name, key):
    cases = published["easy_medium_hard"]
    grades = grades_of(cases["ground_truth"])
    for part, chosen in zip(("ok", "junk"), revisited.LEVELS[name], strict=True):
        query, item = grades.of(chosen)
        for q, expected in enumerate(cases[key]):
            assert sorted(item[query == q].tolist()) == sorted(expected[part])


def positions(ranks, depth=40):
    mask = np.zeros((1, depth), dtype=bool)
    mask[0, ranks] = True
    return hits_from_mask(mask, np.array([len(ranks)]))


def test_published_ranks_without_junk(published):
    case = published["adjust_positive_ranks"]
    junk = np.zeros((1, 40), dtype=bool)
    junk[0, case["junk_ranks"]] = True
    found = revisited.without_junk(positions(case["positive_ranks"]), junk)
    assert (found.rank - 1).tolist() == case["expected"]


def test_published_average_precision_and_precision_at_ranks(published):
    case = published["average_precision"]
    found = trapezoidal_average_precision(positions(case["positive_ranks"]))
    assert found.tolist() == pytest.approx([case["expected"]], abs=1e-6)
    case = published["pr_at_ranks"]
    found = [revisited.precision_at(positions(case["positive_ranks"]), k)[0] for k in case["ranks"]]
    assert found == pytest.approx(case["precisions"])


def test_published_metrics_of_three_queries(published):
    case = published["compute_metrics"]
    truth = case["ground_truth"]
    grades = grades_of([{"easy": entry["ok"], "hard": [], "junk": entry["junk"]} for entry in truth])
    ids = np.array(case["sorted_index_ids"])
    found = revisited.per_query(ids, grades, ks=tuple(case["ranks"]))
    means = revisited.evaluate(ids, grades, ks=tuple(case["ranks"]))
    for q, expected in enumerate(case["average_precisions"]):
        expected = np.nan if expected is None else expected
        assert found["mAP E"][q] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert means["mAP E"] == pytest.approx(case["mean_average_precision"], abs=1e-6)
    precisions = [means[f"mP@{k} E"] for k in case["ranks"]]
    assert precisions == pytest.approx(case["mean_precisions"], abs=1e-6)


def test_the_authors_program_agrees(shared):
    folder = shared / "reference" / "synthetic"
    expected = json.loads((folder / "reference_outputs.json").read_text())["revisitop"]
    queries = json.loads((folder / "retrieval_gnd.json").read_text())["gnd"]
    with np.load(folder / "retrieval_fixture.npz") as fixture:
        ranks = fixture["ranks"]
    found = revisited.per_query(ranks, grades_of(queries))
    means = revisited.evaluate(ranks, grades_of(queries))
    for name, level in (("E", "easy"), ("M", "medium"), ("H", "hard")):
        program = expected[level]
        assert means[f"mAP {name}"] == pytest.approx(program["map"], abs=1e-12)
        assert [means[f"mP@{k} {name}"] for k in (1, 5, 10)] == pytest.approx(program["mpr@1,5,10"])
        counted = [np.nan if ap is None else ap for ap in program["aps"]]
        assert found[f"mAP {name}"].tolist() == pytest.approx(counted, abs=1e-12, nan_ok=True)


def test_a_picture_twice_in_a_ranking_is_refused():
    with pytest.raises(ValueError, match="ids: a picture twice in one ranking; expected each once"):
        revisited.evaluate(np.array([[1, 1, 0]]), grades_of([{"easy": [1], "hard": [2]}]))
