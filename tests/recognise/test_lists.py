"""Votes, merged lists and the scores of queries that may show nothing: by hand and by slow loops."""

from collections import defaultdict

import numpy as np
import pytest

from guie.metrics.votes import vote
from guie.recognise.evidence import support
from guie.recognise.lists import merged, similarities
from guie.recognise.nothing import Penalty, ban_frequent
from guie.types import Ranking


def lists(seed, queries=40, k=10, labels=6):
    """Labels and scores with places that are empty at the end, and with ties."""
    r = np.random.default_rng(seed)
    found = r.integers(0, labels, (queries, k))
    found[np.arange(k) >= r.integers(0, k + 1, (queries, 1))] = -1
    scores = -np.sort(-(r.integers(1, 9, (queries, k)) / 8), axis=1)
    return found, np.where(found < 0, -np.inf, scores).astype(np.float32)


@pytest.mark.parametrize("top", [1, 3, 9])
def test_votes_are_the_sums_of_a_slow_loop_and_equal_ones_go_to_who_is_met_first(top):
    labels, scores = lists(0)
    got = vote(labels, scores, top)
    for q in range(len(labels)):
        sums = defaultdict(float)
        for label, score in zip(labels[q], scores[q], strict=True):
            if label >= 0:
                sums[label] += float(score)
        expected = sorted(sums.items(), key=lambda item: -item[1])[:top]  # stable, a dict keeps its order
        assert got.labels[q].tolist() == [label for label, _ in expected] + [-1] * (top - len(expected))
        np.testing.assert_allclose(got.scores[q][: len(expected)], [s for _, s in expected], rtol=1e-6)
        assert (got.scores[q][len(expected) :] == 0).all()


def test_votes_of_nobody_are_empty():
    got = vote(np.full((2, 4), -1), np.full((2, 4), -np.inf), 3)
    assert got.labels.tolist() == [[-1] * 3] * 2 and not got.scores.any()
    assert vote(np.empty((0, 4), np.int64), np.empty((0, 4)), 3).labels.shape == (0, 3)


def test_the_support_of_a_label_is_sum_highest_and_mean_of_its_neighbours():
    labels = np.array([[4, 2, 4, 4, -1]])
    scores = np.array([[0.9, 0.8, 0.5, -0.2, -np.inf]], np.float32)
    got = support(labels, scores, np.array([[4, 2, 7, -1]]))
    np.testing.assert_allclose(got.total, [[1.2, 0.8, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(got.highest, [[0.9, 0.8, 0, 0]])
    np.testing.assert_allclose(got.mean, [[0.4, 0.8, 0, 0]], rtol=1e-6)


def test_merged_lists_are_the_weighted_sums_of_a_slow_loop():
    r = np.random.default_rng(2)
    rankings = []
    for _ in range(3):
        ids = np.stack([r.permutation(12)[:5] for _ in range(30)]).astype(np.int32)
        scores = -np.sort(-(r.integers(1, 9, (30, 5)) / 8), axis=1).astype(np.float32)
        ids[:4, 3:], scores[:4, 3:] = -1, -np.inf
        rankings.append(Ranking(ids, scores))
    got = merged(rankings, [0.5, 0.25, 1.0], 7)
    for q in range(30):
        sums = defaultdict(float)
        for ranking, weight in zip(rankings, [0.5, 0.25, 1.0], strict=True):
            for place, score in zip(ranking.ids[q], ranking.scores[q], strict=True):
                if place >= 0:
                    sums[int(place)] += weight * float(score)
        expected = sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:7]
        count = len(expected)
        assert got.ids[q].tolist() == [place for place, _ in expected] + [-1] * (7 - count)
        np.testing.assert_allclose(got.scores[q][:count], [s for _, s in expected], rtol=1e-6)
        assert np.isneginf(got.scores[q][count:]).all()


def test_one_minus_the_squared_distance_is_computed_from_the_cosine():
    r = np.random.default_rng(3)
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in r.standard_normal((2, 4, 8)))
    ranking = Ranking(np.arange(4)[None].repeat(4, 0), (a @ b.T).astype(np.float32))
    direct = 1 - ((a[:, None] - b[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(similarities(ranking, "squared_l2").scores, direct, atol=1e-6)
    assert similarities(ranking, "cosine") is ranking


def test_likeness_to_nothing_known_costs_from_the_threshold_on():
    alike = np.array(
        [[0.5, 0.4, 0.3, 0.9], [0.3, 0.2, 0.1, 0.0], [0.3, 0.3, 0.3, 0.3], [0.9, -np.inf, -np.inf, 0]]
    )
    got = Penalty().apply(np.ones(4, np.float32), alike)
    np.testing.assert_allclose(got, [1 - 1.5 * 0.4, 1, 1 - 1.5 * 0.3, 1 - 1.5 * 0.3], rtol=1e-6)


def test_labels_predicted_too_often_score_minus_their_count():
    labels = np.array([5, 5, 2, 5, -1, -1, -1, -1, 2])
    scores = np.linspace(1, 0.2, 9)
    got = ban_frequent(labels, scores, 2)
    np.testing.assert_allclose(got[[0, 1, 3]], -3)
    np.testing.assert_allclose(got[[2, 4, 5, 6, 7, 8]], scores[[2, 4, 5, 6, 7, 8]], rtol=1e-6)
    np.testing.assert_allclose(ban_frequent(labels, scores, 3), scores, rtol=1e-6)
