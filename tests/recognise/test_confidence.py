"""The columns by loops, folds and choices by hand; trained trees beat votes, and stay the same when saved."""

import sys

import numpy as np
import pytest

from guie.errors import UserError
from guie.metrics.recognition import gap
from guie.metrics.votes import Votes, vote
from guie.recognise import confidence
from guie.recognise.confidence import Boosted, answers, chosen, folds_of
from guie.recognise.evidence import Evidence, Neighbours, features


def evidence_of(seed=0, queries=400, classes=12, k=6, models=("a", "b")):
    """Queries of which a third shows nothing known: their neighbours are of any label, and far."""
    r = np.random.default_rng(seed)
    truth = r.integers(0, classes, queries)
    truth[r.random(queries) < 0.33] = -1
    lists = {}
    for model in models:
        right = r.random((queries, k)) < 0.6
        labels = np.where(right & (truth >= 0)[:, None], truth[:, None], r.integers(0, classes, (queries, k)))
        scores = -np.sort(
            -np.where(truth >= 0, 0.6, 0.45)[:, None] - 0.15 * r.standard_normal((queries, k)), axis=1
        )
        lists[model] = Neighbours(labels, scores.astype(np.float32))
    first = lists[models[0]]
    votes = vote(first.labels, first.scores, 3)
    nothing = -np.sort(
        -np.where(truth >= 0, 0.2, 0.4)[:, None] - 0.1 * r.standard_normal((queries, 5)), axis=1
    )
    return Evidence(
        votes, lists, {"a": nothing.astype(np.float32)}, r.random((queries, 3)).astype(np.float32)
    ), truth


def test_the_columns_are_those_of_slow_loops():
    evidence, _ = evidence_of(queries=60)
    got = features(evidence)
    votes = evidence.votes
    for q in range(60):
        for t in range(3):
            assert got[f"vote {t}"][q] == np.float32(votes.scores[q, t])
            assert got[f"inliers {t}"][q] == evidence.inliers[q, t]
            totals = []
            for name, one in evidence.lists.items():
                mine = [
                    float(s)
                    for s, label in zip(one.scores[q], one.labels[q], strict=True)
                    if label == votes.labels[q, t] >= 0
                ]
                totals.append(sum(mine))
                values = [sum(mine), max(mine, default=0), sum(mine) / max(1, len(mine))]
                found = [got[f"{name} {what} {t}"][q] for what in ("total", "highest", "mean")]
                np.testing.assert_allclose(found, values, rtol=1e-5)
            np.testing.assert_allclose(got[f"models mean {t}"][q], np.mean(totals), rtol=1e-5)
            np.testing.assert_allclose(got[f"models deviation {t}"][q], np.std(totals), rtol=1e-4, atol=1e-6)
            assert got[f"a nothing {t}"][q] == evidence.negatives["a"][q, t]
        alike = votes.scores[votes.labels[:, 0] == votes.labels[q, 0], 0]
        found = [got[f"same label {what}"][q] for what in ("mean", "highest", "deviation")]
        np.testing.assert_allclose(found, [alike.mean(), alike.max(), alike.std()], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got["vote lead"][q], votes.scores[q, 0] - votes.scores[q, 1], rtol=1e-6)
    assert not any("b nothing" in name for name in got)


def test_the_answer_is_the_place_of_the_true_label_or_none_of_them():
    votes = Votes(np.array([[5, 2, 7], [5, 2, -1], [5, 2, -1], [1, 2, 3]]), np.zeros((4, 3)))
    assert answers(votes, np.array([7, 5, -1, 9])).tolist() == [2, 0, 3, 3]


def test_the_choice_is_among_the_first_and_else_the_first_with_its_own_probability():
    votes = Votes(
        np.array([[5, 2, 7], [5, 2, 7], [5, 2, 7], [5, 2, 7], [5, -1, -1], [-1, -1, -1]]), np.zeros((6, 3))
    )
    shares = np.array(
        [
            [0.6, 0.2, 0.1, 0.1],
            [0.2, 0.6, 0.1, 0.1],
            [0.2, 0.1, 0.6, 0.1],
            [0.3, 0.1, 0.1, 0.5],
            [0.1, 0.7, 0.1, 0.1],
            [0.7, 0.1, 0.1, 0.1],
        ]
    )
    labels, scores = chosen(votes, shares, 2)
    assert labels.tolist() == [5, 2, 5, 5, 5, -1]
    np.testing.assert_allclose(scores, [0.6, 0.6, 0.2, 0.3, 0.1, 0], rtol=1e-6)


def test_each_query_is_left_out_once_and_cuts_differ_by_seed():
    parts = list(folds_of(23, 5, 0))
    assert sorted(np.concatenate([outside for _, outside in parts]).tolist()) == list(range(23))
    assert all(sorted([*inside, *outside]) == list(range(23)) for inside, outside in parts)
    assert {len(outside) for _, outside in parts} == {4, 5}
    assert not np.array_equal(next(folds_of(23, 5, 1))[1], parts[0][1])


def test_trained_trees_beat_the_votes_and_are_the_same_when_loaded(tmp_path):
    pytest.importorskip("lightgbm", reason="extra gbdt")
    train, truth = evidence_of(0, 1200)
    test, asked = evidence_of(1, 800)
    model = Boosted(seeds=3, kept=2, folds=3, rounds=60)
    model.fit(train, truth)
    assert len(model.gaps) == 3 and len(model._trees) == 6
    labels, scores = model.choose(test)
    known = asked >= 0
    votes = test.votes
    by_votes = gap((votes.labels[:, 0] == asked) & known, votes.scores[:, 0], known)
    by_trees = gap((labels == asked) & known, scores, known, answered=labels >= 0)
    assert by_trees > by_votes + 0.02 and abs(np.mean(model.gaps) - by_trees) < 0.06
    assert 0 < scores.min() and scores.max() <= 1
    again = Boosted(path=str(model.save(tmp_path / "confidence")))
    for mine, theirs in zip(again.choose(test), (labels, scores), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    repeated = Boosted(seeds=3, kept=2, folds=3, rounds=60)
    repeated.fit(train, truth)
    np.testing.assert_array_equal(repeated.choose(test)[1], scores)
    other, _ = evidence_of(1, 50, models=("a", "c"))
    with pytest.raises(
        UserError, match=r"trained on other columns \(b highest 0\); accepted: the same models"
    ):
        model.choose(other)


def test_the_cuts_of_the_highest_gap_are_kept(monkeypatch):
    evidence, truth = evidence_of(queries=30)
    cuts = iter([("low", 0), ("high", 1), ("tied", 1), ("none", 0)])

    def cut(self, rows, right, classes, seed):
        name, good = next(cuts)
        shares = np.full((len(rows), classes), 0.1)
        shares[np.arange(len(rows)), right if good else 0] = 0.9
        return [name], shares

    monkeypatch.setattr(Boosted, "_cut", cut)
    model = Boosted(seeds=4, kept=2)
    model.fit(evidence, truth)
    assert model._trees == ["high", "tied"] and model.gaps[1] == model.gaps[2] > model.gaps[0]


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    evidence = evidence_of(queries=10)[0]
    with pytest.raises(UserError, match=r"^confidence.folds: 1; accepted: 2 or more$"):
        Boosted(folds=1)
    with pytest.raises(UserError, match=r"^confidence: not trained; accepted: path=FOLDER of a trained one"):
        Boosted().choose(evidence)
    with pytest.raises(
        UserError, match=r"^confidence: 10 queries, 0 with a label; accepted: 5 or more, some"
    ):
        Boosted().fit(evidence, np.full(10, -1))
    with pytest.raises(UserError, match=r"confidence.path: .*confidence.json .*; accepted: what guie wrote"):
        Boosted(path=str(tmp_path))
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(UserError, match=r"needs lightgbm: pip install 'guie\[gbdt\]'"):
        confidence.lightgbm()


def test_more_choices_than_candidates_are_as_many_as_there_are():
    votes = Votes(np.array([[5], [7], [-1]]), np.ones((3, 1)))
    labels, scores = chosen(votes, np.array([[0.2, 0.8], [0.9, 0.1], [0.3, 0.7]]), choices=2)
    assert labels.tolist() == [5, 7, -1]
    np.testing.assert_allclose(scores, [0.2, 0.9, 0], rtol=1e-6)
