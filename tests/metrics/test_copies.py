"""uAP, RP90 and R@k of pairs: stated values, the organisers' program, slow loops, the official files."""

import json

import numpy as np
import pytest

from guie.metrics import copies, micro
from guie.metrics.copies import ScoredPairs


def stated_case():
    """Return the 329 predictions of the stated case with ties on purpose, and its 40 true pairs."""
    r = np.random.RandomState(1)
    rows = []
    for i in range(60):
        mine = {int(j): round(r.rand() * 0.6, 2) for j in r.permutation(80)[:5]}
        if i < 40 and i % 4 != 3 and i not in mine:
            mine[i] = round(0.35 + 0.6 * r.rand(), 2)
        rows += [(i, j, score) for j, score in mine.items()]
    query, item, scores = map(np.array, zip(*rows, strict=True))
    return ScoredPairs(query, item, scores), np.arange(40), np.arange(40)


def looped(pairs, truth, precision=0.9):
    """Return (uAP, RP90, its score, {k: R@k}) in Python floats, false pairs before true ones of one score."""
    rows = sorted(
        zip(*(column.tolist() for column in pairs), strict=True), key=lambda r: (-r[2], r[:2] in truth)
    )
    area, found, best, seen, within = 0.0, 0, (0.0, float("nan")), {}, {1: 0, 10: 0}
    for place, (query, item, score) in enumerate(rows, start=1):
        seen[query] = seen.get(query, 0) + 1
        if (query, item) in truth:
            found += 1
            area += found / place / len(truth)
            for k in within:
                within[k] += seen[query] <= k
        if found / place >= precision and found / len(truth) > best[0]:
            best = (found / len(truth), score)
    return area, *best, {k: count / len(truth) for k, count in within.items()}


def test_the_stated_values():
    pairs, query, item = stated_case()
    assert len(pairs.query) == 329
    found = copies.evaluate(pairs, query, item)
    expected = {"uAP": 0.5454443537, "RP90": 0.475, "RP90_threshold": 0.61, "R@1": 0.6, "R@10": 0.775}
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_every_number_equals_a_loop_over_pairs_with_ties(seed):
    r = np.random.default_rng(seed)
    chosen = r.permutation(30 * 40)[:400]
    pairs = ScoredPairs(chosen // 40, chosen % 40, r.integers(12, size=400) / 10)
    known = r.permutation(30 * 40)[:60]
    truth = {(int(n) // 40, int(n) % 40) for n in known}
    if seed:  # a system that is right more often than not
        right = np.isin(chosen, known)
        pairs = pairs._replace(scores=pairs.scores + 1.1 * right)
    found = copies.evaluate(pairs, known // 40, known % 40)
    area, recall, threshold, rates = looped(pairs, truth)
    assert found["uAP"] == pytest.approx(area, abs=1e-12)
    assert found["RP90"] == pytest.approx(recall) and (recall > 0) == bool(seed)
    assert found["RP90_threshold"] == pytest.approx(threshold, nan_ok=True)
    assert [found["R@1"], found["R@10"]] == pytest.approx([rates[1], rates[10]])


def test_equal_scores_for_everything_give_the_worst_order():
    pairs = ScoredPairs(np.arange(10), np.arange(10), np.ones(10))
    found = copies.evaluate(pairs, np.arange(2), np.arange(2))
    assert found["uAP"] == pytest.approx((1 / 9 + 2 / 10) / 2)


def test_a_precision_of_exactly_nine_tenths_is_enough():
    first_wrong = ScoredPairs(np.arange(10), np.arange(10), np.arange(10.0)[::-1])
    found = copies.evaluate(first_wrong, np.arange(1, 10), np.arange(1, 10))
    assert (found["RP90"], found["RP90_threshold"]) == (1.0, 0.0)


def test_a_true_pair_stated_twice_counts_once_and_a_prediction_twice_is_refused():
    pairs = ScoredPairs(np.array([0, 1]), np.array([0, 0]), np.array([0.9, 0.8]))
    assert copies.evaluate(pairs, np.array([0, 0]), np.array([0, 0]))["uAP"] == 1
    twice = ScoredPairs(np.array([0, 1, 0]), np.array([0, 0, 0]), np.array([0.9, 0.8, 0.7]))
    with pytest.raises(ValueError, match="pairs: 1 predicted twice; expected each once"):
        copies.evaluate(twice, np.array([0]), np.array([0]))


def test_more_pairs_than_the_challenge_takes_a_nan_and_no_truth_are_refused():
    many = np.arange(500_001)
    with pytest.raises(ValueError, match="pairs: 500,001; expected 500,000 at most"):
        copies.evaluate(ScoredPairs(many, many, many), many[:1], many[:1])
    one = np.array([0])
    with pytest.raises(ValueError, match="scores: 1 of 1 are NaN"):
        copies.evaluate(ScoredPairs(one, one, np.array([np.nan])), one, one)
    with pytest.raises(ValueError, match="positives: no query has a correct answer"):
        copies.evaluate(ScoredPairs(one, one, np.array([0.5])), one[:0], one[:0])


@pytest.fixture(scope="module")
def programs(shared):
    """Return what the organisers' program said, its predictions, its truth, and the pairs of one label."""
    folder = shared / "reference" / "synthetic"
    outputs = json.loads((folder / "reference_outputs.json").read_text())
    rows = [line.split(",") for line in (folder / "isc_predictions.csv").read_text().splitlines()[1:]]
    pairs = ScoredPairs(
        *(np.array([int(row[column][1:]) for row in rows]) for column in (0, 1)),
        np.array([float(row[2]) for row in rows]),
    )
    with np.load(folder / "retrieval_fixture.npz") as f:
        same = np.nonzero(f["q_labels"][:, None] == f["x_labels"])
    return outputs, pairs, same


def test_the_organisers_program_agrees_on_one_copy_per_query(programs):
    outputs, pairs, _ = programs
    expected = outputs["isc2021"]
    true_query, true_item = (np.array([int(pair[side][1:]) for pair in expected["gt"]]) for side in (0, 1))
    found = copies.evaluate(pairs, true_query, true_item)
    assert found["uAP"] == pytest.approx(expected["uAP"], abs=1e-12)
    assert found["RP90"] == pytest.approx(expected["recall_at_p90"])
    assert found["RP90_threshold"] == pytest.approx(expected["threshold_at_p90"], abs=1e-12)
    assert found["R@1"] == pytest.approx(expected["recall_at_rank1"])
    assert found["R@10"] == pytest.approx(expected["recall_at_rank10"])


def test_the_organisers_program_agrees_on_many_copies_and_on_ties(programs):
    outputs, pairs, same = programs
    found, expected = copies.evaluate(pairs, *same), outputs["isc2021_multi"]
    assert len(same[0]) == expected["n_gt"]
    assert found["uAP"] == pytest.approx(expected["uAP"], abs=1e-12)
    assert found["RP90"] == pytest.approx(expected["recall_at_p90"])
    assert found["R@1"] == pytest.approx(expected["recall_at_rank1"])
    assert found["R@10"] == pytest.approx(expected["recall_at_rank10"])
    rounded = copies.evaluate(pairs._replace(scores=np.round(pairs.scores, 2)), *same)
    assert rounded["uAP"] == pytest.approx(outputs["isc2021_multi_ties_2dec"]["uAP"], abs=1e-12)
    assert rounded["RP90"] == pytest.approx(outputs["isc2021_multi_ties_2dec"]["recall_at_p90"])


def test_the_official_truth_takes_half_a_million_predictions(shared):
    lines = (shared / "formats" / "disc21_public_ground_truth.csv").read_text().splitlines()[1:]
    queries = [line.split(",")[0] for line in lines]
    true = [line.split(",") for line in lines if not line.endswith(",")]
    right = true[::2]
    r = np.random.default_rng(0)
    others = [f"R{number:06d}" for number in r.permutation(1_000_000)[:20].tolist()]
    asked = np.array([query for query, _ in right] + queries * 20, dtype=object)[:500_000]
    answered = np.array([item for _, item in right] + np.repeat(others, len(queries)).tolist(), dtype=object)
    scores = r.random(500_000) / 2
    scores[: len(right)] += 0.5
    true_query, true_item = (np.array(column, dtype=object) for column in zip(*true, strict=True))
    query, known_query = copies.numbered(asked, true_query)
    item, known_item = copies.numbered(answered[:500_000], true_item)
    found = copies.evaluate(ScoredPairs(query, item, scores), known_query, known_item)
    assert len(true) == 4991 and len(query) == 500_000
    assert found["R@1"] == found["RP90"] == len(right) / len(true)
    assert found["uAP"] == pytest.approx(len(right) / len(true), abs=1e-3)


def test_what_queries_add_has_the_mean_uap():
    answers = copies.ranked_pairs(*stated_case(), num_queries=75)
    added = micro.per_query(answers)
    assert len(added) == 75
    assert added.mean() == pytest.approx(micro.average_precision(answers), abs=1e-12)
