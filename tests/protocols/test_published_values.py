"""Protocols end to end on the published unit values: from vectors through the search to the number."""

import numpy as np
import pytest
from parts import labelled, pairs, scored

from guie.evaluate import evaluate
from guie.protocols.copies import Copies
from guie.protocols.graded import Revisited
from guie.protocols.recognition import Recognition
from guie.protocols.self_in import SelfIn
from guie.search.exact import Exact


def published_embeddings():
    r = np.random.RandomState(3)
    vectors = r.randn(300, 16).astype(np.float32)
    vectors += 1.2 * r.randn(30, 16).astype(np.float32)[np.repeat(np.arange(30), 10)]
    return vectors


def revisited():
    r = np.random.RandomState(0)
    scores = r.rand(200, 12)
    rows = []
    for q in range(12):
        drawn = r.permutation(200)
        graded = {"easy": drawn[:5], "hard": drawn[5:12], "junk": drawn[12:20]}
        graded["easy"] = graded["easy"] if q != 3 else []
        graded["hard"] = graded["hard"] if q != 7 else []
        rows += [(f"q{q}", f"r{i}", grade) for grade, items in graded.items() for i in items]
    return scored(scores, truth=pairs(*rows))


def test_revisited_oxford_and_paris():
    numbers = evaluate({"x": revisited()}, Revisited()).metrics["x"]
    expected = {"mAP E": 0.0555162680, "mAP M": 0.0853901948, "mAP H": 0.0626387277}
    expected |= {"mP@1 E": 0.09090909, "mP@5 E": 0.05454545, "mP@10 E": 0.06363636}
    expected |= {"mP@1 M": 0.16666667, "mP@5 M": 0.1, "mP@10 M": 0.11666667}
    expected |= {"mP@1 H": 0.09090909, "mP@5 H": 0.05454545, "mP@10 H": 0.06363636}
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, abs=1e-8)
    assert [numbers[f"queries {level}"] for level in "EMH"] == [11, 12, 11]
    assert "merged" in evaluate({"x": revisited()}, Revisited()).metrics


def copies():
    r = np.random.RandomState(1)
    predicted = {}
    for i in range(60):
        for j in r.permutation(80)[:5]:
            predicted[i, j] = round(r.rand() * 0.6, 2)
        if i < 40 and i % 4 != 3 and (i, i) not in predicted:
            predicted[i, i] = round(0.35 + 0.6 * r.rand(), 2)
    scores = np.full((80, 60), -1.0)
    for (query, item), value in predicted.items():
        scores[item, query] = value
    truth = pairs(*((f"q{i}", f"r{i}", "ok") for i in range(40)))
    return scored(scores, truth=truth), len(predicted)


@pytest.mark.parametrize("memory_mib", [0.01, 8])
def test_disc21_descriptor_track(memory_mib):
    found, count = copies()
    assert count == 329
    protocol, search = Copies(max_pairs=count), Exact(memory_mib)
    numbers = evaluate({"x": found}, protocol, search=search).metrics["x"]
    expected = {"uAP": 0.5454443537, "RP90": 0.475, "R@1": 0.6, "R@10": 0.775, "RP90_threshold": 0.61}
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, abs=1e-7)
    assert numbers["pairs"] == 329 and numbers["true_pairs"] == 40 and numbers["within_limits"]


def test_met():
    r = np.random.RandomState(2)
    labels = r.randint(0, 20, 500)
    labels[r.rand(500) < 0.3] = -1
    predicted = np.where(r.rand(500) < 0.6, labels, r.randint(0, 20, 500))
    predicted = np.where(predicted == -1, r.randint(0, 20, 500), predicted)
    scores = np.zeros((20, 500))
    scores[predicted, np.arange(500)] = r.rand(500)
    names = ["distractor" if label < 0 else str(label) for label in labels]
    found = scored(scores + 0.0, query_labels=names, item_labels=[str(i) for i in range(20)])
    numbers = evaluate({"x": found}, Recognition(k=1)).metrics["x"]
    expected = {"GAP": 0.2502033779, "GAP-": 0.3424990017, "ACC": 0.5965909091}
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert (numbers["queries"], numbers["known"]) == (500, int((labels >= 0).sum()))


def test_gpr1200_counts_the_query_itself():
    found = labelled(published_embeddings(), np.repeat(np.arange(30), 10), domains=["a", "b"] * 150)
    numbers = evaluate({"x": found}, SelfIn()).metrics["x"]
    assert numbers["mAP"] == pytest.approx(0.73431590, abs=1e-8)
    domains = [entry["merged"]["mAP"] for entry in numbers["domains"].values()]
    assert np.mean(domains) == pytest.approx(numbers["mAP"]) and len(domains) == 2


def test_gpr1200_looks_deeper_only_where_something_is_missing(monkeypatch):
    monkeypatch.setattr("guie.protocols.self_in._FIRST", 20)
    found = labelled(published_embeddings(), np.repeat(np.arange(30), 10))
    assert evaluate({"x": found}, SelfIn()).metrics["x"]["mAP"] == pytest.approx(0.73431590, abs=1e-8)


@pytest.mark.parametrize(
    ("labels", "expected", "queries"),
    [
        (
            np.repeat(np.arange(30), 10),
            {"mP@5": 0.7186666667, "R@1": 0.8066666667, "R-Prec": 0.6185185185, "MAP@R": 0.5444757496},
            300,
        ),
        (np.random.RandomState(4).randint(0, 60, 300), {"mP@5": 0.0127516779, "R@1": 0.0067114094}, 298),
    ],
)
def test_self_retrieval(labels, expected, queries):
    numbers = evaluate({"x": labelled(published_embeddings(), labels)}).metrics["x"]
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert (numbers["queries"], numbers["dropped_lone_queries"]) == (queries, 300 - queries)
