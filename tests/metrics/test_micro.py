"""Intervals of micro-averaged precision: draws against a list written out, coverage against theory."""

import numpy as np
import pytest

from guie.metrics import micro


def random_answers(seed, queries=200, each=5):
    r = np.random.default_rng(seed)
    query = np.repeat(np.arange(queries), each)
    correct = r.random(len(query)) < 0.3
    scores = r.normal(size=len(query)) + 1.5 * correct
    positives = np.bincount(query[correct], minlength=queries) + (r.random(queries) < 0.3)
    return query, correct, scores, positives


def test_the_curve_ends_in_what_is_found_of_all_there_is():
    answers = micro.sorted_answers(*random_answers(0), ties="against")
    points = micro.curve(answers)
    expected, found = [], 0
    for place, right in enumerate(answers.correct.tolist(), start=1):
        found += right
        expected.append((found / place, found / int(answers.positives.sum())))
    np.testing.assert_allclose(np.stack(points[:2], axis=1), expected)
    assert (np.diff(points.scores) <= 0).all()


def test_a_draw_of_queries_equals_their_answers_written_out():
    query, correct, scores, positives = random_answers(1)
    answers = micro.sorted_answers(query, correct, scores, positives, ties="given")
    times = np.random.default_rng(2).multinomial(200, np.full(200, 1 / 200))
    rows = np.repeat(np.arange(len(query)), times[query])
    copies = micro.sorted_answers(query[rows], correct[rows], scores[rows], positives * times, ties="given")
    found = micro.average_precision_of_draw(answers, times)
    assert found == pytest.approx(micro.average_precision(copies), rel=1e-4)


def test_a_draw_of_every_query_once_is_the_average_precision():
    answers = micro.sorted_answers(*random_answers(3), ties="against")
    once = micro.average_precision_of_draw(answers, np.ones(200, dtype=np.int64))
    assert once == pytest.approx(micro.average_precision(answers), abs=1e-12)


def test_the_interval_is_as_wide_as_the_metric_varies():
    def found(seed):
        return micro.sorted_answers(*random_answers(seed), ties="against")

    drawn_anew = [micro.average_precision(found(seed)) for seed in range(100, 500)]
    widths = [np.diff(micro.bootstrap_interval(found(seed), samples=200, seed=seed))[0] for seed in range(20)]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(drawn_anew), rel=0.1)


def test_the_interval_is_the_same_for_the_same_seed():
    answers = micro.sorted_answers(*random_answers(4), ties="against")
    low, high = micro.bootstrap_interval(answers, samples=50, seed=1)
    assert (low, high) == micro.bootstrap_interval(answers, samples=50, seed=1)
    assert low < micro.average_precision(answers) < high
