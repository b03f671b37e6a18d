"""GAP, GAP- and ACC: stated values, the authors' programs, a slow loop."""

import json

import numpy as np
import pytest

from guie.metrics import recognition
from guie.metrics.hits import stated
from guie.search.exact import knn


def stated_case():
    r = np.random.RandomState(2)
    n = 500
    labels = r.randint(0, 20, n)
    labels[r.rand(n) < 0.3] = -1
    predicted = np.where(r.rand(n) < 0.6, labels, r.randint(0, 20, n))
    predicted = np.where(predicted == -1, r.randint(0, 20, n), predicted)
    return predicted, r.rand(n), labels


def looped(predicted, scores, labels, *, distractors):
    """Return GAP as Kaggle says it: by score, then by key; unknown images are mistakes, or left out."""
    rows = sorted(zip(-scores, range(len(scores)), predicted.tolist(), labels.tolist(), strict=True))
    rows = [(p, label) for _, _, p, label in rows if p != -1 and (distractors or label != -1)]
    total, right = 0.0, 0
    for place, (prediction, label) in enumerate(rows, start=1):
        if prediction == label:
            right += 1
            total += right / place
    return total / sum(label != -1 for label in labels.tolist())


def test_the_stated_values():
    found = recognition.evaluate(*stated_case())
    expected = {"GAP": 0.2502033779, "GAP-": 0.3424990017, "ACC": 0.5965909091}
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_gap_equals_a_loop_with_ties_and_missing_predictions(seed):
    r = np.random.default_rng(seed)
    labels, predicted, scores = r.integers(-1, 4, 80), r.integers(-1, 4, 80), r.integers(6, size=80) / 5
    found = recognition.evaluate(predicted, scores, labels)
    assert found["GAP"] == pytest.approx(looped(predicted, scores, labels, distractors=True), abs=1e-12)
    assert found["GAP-"] == pytest.approx(looped(predicted, scores, labels, distractors=False), abs=1e-12)
    known = [(p, label) for p, label in zip(predicted, labels, strict=True) if label != -1]
    assert found["ACC"] == pytest.approx(sum(p == label for p, label in known) / len(known))


def test_of_equal_scores_the_first_key_comes_first():
    labels = np.array([0, 1])
    assert recognition.evaluate(np.array([0, 5]), np.ones(2), labels)["GAP"] == 0.5
    assert recognition.evaluate(np.array([5, 1]), np.ones(2), labels)["GAP"] == 0.25


def test_images_that_show_nothing_known_are_an_error_when_there_are_no_others():
    with pytest.raises(ValueError, match="no query has a correct answer"):
        recognition.evaluate(np.zeros(2, int), np.ones(2), np.array([-1, -1]))
    with pytest.raises(ValueError, match="known: no image shows anything known"):
        recognition.accuracy(np.zeros(2, bool), np.zeros(2, bool))


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "reference"
    published = json.loads((folder / "public_test_vectors.json").read_text())
    outputs = json.loads((folder / "synthetic" / "reference_outputs.json").read_text())
    return published["delf_gldv2_metrics"], outputs, folder / "synthetic" / "retrieval_fixture.npz"


def test_published_values_with_images_of_several_landmarks(reference):
    case, _, _ = reference
    solution, predictions = case["recognition_solution"], case["recognition_predictions"]
    keys = sorted(solution)
    image, label = np.array([(i, c) for i, key in enumerate(keys) for c in solution[key]]).T
    predicted = np.array([predictions.get(key, {"class": -1})["class"] for key in keys])
    scores = np.array([predictions.get(key, {"score": 0.0})["score"] for key in keys])
    correct = stated(np.arange(len(keys)), predicted, image, label)
    known, answered = np.bincount(image, minlength=len(keys)) > 0, predicted >= 0
    expected = case["expected"]
    found = recognition.gap(correct, scores, known, answered=answered)
    assert found == pytest.approx(expected["GAP"], abs=1e-6)
    without = recognition.gap(correct, scores, known, answered=answered & known)
    assert without == pytest.approx(expected["GAP_ignore_non_gt_test_images"], abs=1e-6)
    assert recognition.accuracy(correct, known) == pytest.approx(expected["Top1Accuracy"], abs=1e-6)


def test_the_programs_of_met_and_gldv2_agree_on_nearest_neighbours(reference):
    _, outputs, path = reference
    with np.load(path) as f:
        ranking = knn(f["Q"], f["X"], 1)
        predicted = f["x_labels"][ranking.ids[:, 0]]
        labels = np.where(np.isin(f["q_labels"], f["x_labels"]), f["q_labels"], -1)
    found = recognition.evaluate(predicted, ranking.scores[:, 0], labels)
    assert found == pytest.approx(outputs["met_knn_k1"], abs=1e-12)
    program = outputs["gldv2_recognition_top1"]
    assert found["GAP-"] == pytest.approx(program["GAP_ignore_non_gt"], abs=1e-12)
    assert found["ACC"] == program["top1"]
