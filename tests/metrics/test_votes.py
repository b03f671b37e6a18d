"""Votes of neighbours and kNN accuracy against a dict of sums per query."""

import math

import numpy as np
import pytest

from guie.metrics import votes


def looped(labels, weights):
    """Return (label, weight) of one query: most weight, of equal ones the label met first."""
    sums: dict[int, float] = {}
    for label, weight in zip(labels, weights, strict=True):
        if label >= 0:
            sums[label] = sums.get(label, 0.0) + weight
    best = max(sums, key=sums.get) if sums else -1  # dicts keep the order of insertion, max the first
    return best, sums.get(best, 0.0)


def neighbours(seed, queries=60, k=25, classes=7):
    r = np.random.default_rng(seed)
    labels = r.integers(classes, size=(queries, k))
    labels[: queries // 2, -5:] = -1
    labels[0] = -1
    return labels, -np.sort(-r.random((queries, k)), axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_a_vote_equals_a_dict_of_sums(seed):
    labels, weights = neighbours(seed)
    found = votes.vote(labels, weights)
    for q in range(len(labels)):
        label, weight = looped(labels[q].tolist(), weights[q].tolist())
        assert found.labels[q, 0] == label
        assert found.scores[q, 0] == pytest.approx(weight, abs=1e-12)


def test_of_labels_with_equal_weight_the_nearest_wins():
    found = votes.vote(np.array([[4, 2, 2, 4], [2, 4, 4, 2]]), np.ones((2, 4)))
    assert found.labels.tolist() == [[4], [2]] and found.scores.tolist() == [[2], [2]]


def test_nobody_votes_for_nothing():
    found = votes.vote(np.full((2, 3), -1), np.ones((2, 3)))
    assert found.labels.tolist() == [[-1], [-1]] and found.scores.tolist() == [[0], [0]]
    assert len(votes.vote(np.empty((0, 3), dtype=np.int64), np.empty((0, 3))).labels) == 0


@pytest.mark.parametrize("k", [1, 10, 20])
def test_knn_accuracy_weighs_votes_by_the_exponential_of_similarity(k):
    labels, similarities = neighbours(5)
    truth = np.random.default_rng(6).integers(7, size=len(labels))
    found = votes.knn_correct(labels, similarities, truth, ks=(1, 10, 20))
    expected = []
    for q in range(len(labels)):
        weights = [math.exp(s / 0.07) for s in similarities[q, :k].tolist()]
        expected.append(float(looped(labels[q, :k].tolist(), weights)[0] == truth[q]))
    assert found[f"kNN@{k}"].tolist() == expected


def test_a_k_beyond_the_neighbours_known_is_left_out():
    labels, similarities = neighbours(7)
    assert list(votes.knn_correct(labels, similarities, np.zeros(len(labels)))) == ["kNN@10", "kNN@20"]
