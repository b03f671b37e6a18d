"""What the report derives: pairs' curves, doubts, galleries, ticks, budgets; each against a slow loop."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from reports import made_up, png

from guie.evaluate import evaluate
from guie.report import album
from guie.report import pairs as pairs_module
from guie.report.against import changes
from guie.report.album import Album
from guie.report.charts import round_ticks
from guie.report.doubts import alike, confused, doubts, mislabelled
from guie.report.folder import read_queries
from guie.report.galleries import Judge, galleries, varied
from guie.report.page import write_report
from guie.report.pairs import pair_scores
from guie.report.sheets import sheets

BY_LABEL = Judge(frozenset({"toy"}))


def queries_of(found, tmp_path):
    evaluation = evaluate({"toy": found})
    evaluation.write_queries(tmp_path / "queries.parquet")
    return read_queries(tmp_path / "queries.parquet", {"trained": evaluation.metrics})


def test_precision_and_recall_are_those_of_all_pairs_in_one_list():
    found = made_up(noise=1)
    pairs = pair_scores("toy", found, {})
    same = found.labels[:, None] == found.labels
    apart = ~np.eye(120, dtype=bool)
    cosines = found.vectors @ found.vectors.T
    assert (pairs.queries, pairs.total) == (120, 120 * 119)
    for place in range(0, len(pairs.recall), 20):
        # The threshold that reaches this recall, found by looking at all pairs.
        wanted = round(pairs.recall[place] * (same & apart).sum())
        threshold = np.sort(cosines[same & apart])[::-1][wanted - 1]
        above = apart & (cosines >= threshold)
        assert pairs.precision[place] == pytest.approx((above & same).sum() / above.sum(), abs=0.02)
    assert pairs.genuine.sum() == pytest.approx(1) and pairs.impostor.sum() == pytest.approx(1)
    middle = (pairs.edges[1:] + pairs.edges[:-1]) / 2
    assert (middle * pairs.genuine).sum() == pytest.approx(cosines[same & apart].mean(), abs=0.02)
    assert (middle * pairs.impostor).sum() == pytest.approx(cosines[~same].mean(), abs=0.02)
    nearest = np.where(same, -1, cosines).max(axis=1)
    assert (middle * pairs.nearest).sum() == pytest.approx(nearest.mean(), abs=0.02)


def test_a_gallery_that_is_too_large_to_copy_has_no_curves_of_pairs(monkeypatch):
    monkeypatch.setattr(pairs_module, "NUMBERS", 120 * 8 - 1)
    assert pair_scores("toy", made_up(), {}) is None


def test_confused_classes_are_counted_as_a_loop_over_queries_counts_them(tmp_path):
    queries = queries_of(made_up(noise=1.5), tmp_path)
    wrong, asked = Counter(), Counter(queries["label"].tolist())
    for row in range(len(queries)):
        own = queries["label"][row]
        for other in set(queries["top_labels"][row]) - {own}:
            wrong[tuple(sorted((own, other)))] += 1
    found = confused(queries, BY_LABEL, most=1000)
    assert {one.labels: one.wrong for one in found} == wrong
    assert [one.wrong for one in found] == sorted(wrong.values(), reverse=True)
    first = found[0]
    assert confused(queries, BY_LABEL) == found[:12]
    assert first.asked == sum(asked[label] for label in first.labels)
    row, place = first.example
    assert {queries["label"][row], queries["top_labels"][row][place]} == set(first.labels)


def test_a_wrong_label_among_tight_classes_is_suspected_and_no_other(tmp_path):
    found = made_up(noise=0.05)
    labels = found.labels.copy()
    labels[7] = labels[30]
    queries = queries_of(replace(found, labels=labels), tmp_path)
    assert [queries["file"][row] for row in mislabelled(queries, BY_LABEL)] == ["7.png"]


def test_a_copy_is_found_once_and_told_from_a_look_alike_by_its_pixels(tmp_path):
    found = made_up(noise=1)
    vectors, labels = found.vectors.copy(), found.labels.copy()
    vectors[13], vectors[50] = vectors[40], vectors[90]
    queries = queries_of(replace(found, vectors=vectors, labels=labels), tmp_path)
    pairs = [{queries["file"][row], queries["top_files"][row][place]} for row, place in alike(queries)]
    assert pairs.count({"13.png", "40.png"}) == 1 and {"50.png", "90.png"} in pairs
    pictures = Album(lambda dataset, file: png(dataset, "40.png" if file == "13.png" else file))
    duplicates = [one for one in doubts(queries, pictures, BY_LABEL) if "duplicates" in one["title"]]
    first = {picture["file"] for picture in duplicates[0]["cases"][0]["pictures"]}
    assert first == {"13.png", "40.png"}
    assert duplicates[0]["cases"][0]["value"] == "two labels · same bytes"
    assert not any("50.png" in case["file"] for case in duplicates[0]["cases"])


def test_near_misses_come_by_how_little_was_between(tmp_path):
    queries = queries_of(made_up(noise=2, domains=("one", "one")), tmp_path)
    shown = {one["title"]: one["cases"] for one in galleries(queries, Album(None), BY_LABEL, {})}
    rows = [queries["file"].tolist().index(case["file"]) for case in shown["Near misses"]]
    margins = [
        queries["top_scores"][row][0] - queries["top_scores"][row][queries["first_hit"][row] - 1]
        for row in rows
    ]
    assert margins[:3] == sorted(margins[:3]) and all(1 < queries["first_hit"][row] <= 5 for row in rows)
    near = [row for row in range(len(queries)) if 1 < queries["first_hit"][row] <= 5]
    every = [
        queries["top_scores"][r][0] - queries["top_scores"][r][queries["first_hit"][r] - 1] for r in near
    ]
    assert margins[0] == min(every)


def test_each_label_is_shown_once_before_any_is_shown_twice():
    labels = np.array(["a", "a", "b", "a", "c"], dtype=object)
    assert varied(np.array([0, 1, 2, 3, 4]), labels).tolist() == [0, 2, 4, 1, 3]


def test_axes_have_round_numbers_within_their_range():
    assert round_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert round_ticks(8.6, 20.3) == [10, 12.5, 15, 17.5, 20]
    assert round_ticks(-0.013, 0.0102) == [-0.01, -0.005, 0, 0.005, 0.01]


def test_pictures_beyond_the_budget_are_counted_and_left_out(run, monkeypatch):
    monkeypatch.setattr(album, "MOST_CHARACTERS", 20_000)
    text = write_report(run, read_picture=png).read_text()
    assert text.count("<img") < 60 and "pictures were left out to keep this page small" in text
    assert sum(len(part.split('"')[0]) for part in text.split('src="data:')[1:]) < 20_000


def test_a_comparison_shows_gains_and_the_queries_that_moved(run, tmp_path):
    other = tmp_path / "weaker"
    other.mkdir()
    weaker = evaluate({"toy": made_up(noise=2)})
    weaker.write_queries(other / "queries.parquet")
    (other / "metrics.json").write_text(json.dumps({"trained": weaker.metrics}))
    text = write_report(run, read_picture=png, against=other).read_text()
    ours = json.loads((run / "metrics.json").read_text())["trained"]["toy"]["mP@5"]
    gain = f"+{ours - weaker.metrics['toy']['mP@5']:.3f}".replace("+0", "+")
    for word in ("Against weaker", gain, "better", "Queries that gained most", "before", "now"):
        assert word in text


def test_evaluations_of_other_queries_are_not_compared_and_the_rest_stays(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    foreign = evaluate({"elsewhere": made_up()})
    foreign.write_queries(other / "queries.parquet")
    (other / "metrics.json").write_text(json.dumps({"trained": foreign.metrics}))
    text = write_report(run, against=other).read_text()
    assert "Not compared: data sets: " in text and "Worst queries" in text
    assert changes(run, None, Album(None), BY_LABEL) is None


def test_an_evaluation_without_sheets_has_none_and_one_step_is_no_table():
    step = {"step": "", "metrics": {"toy": "mP@5"}, "values": {"toy": 0.5}, "seconds": 1.0}
    assert sheets({}) == [] and sheets({"steps": [step]}) == []
    gained = step | {"step": "dba", "values": {"toy": 0.625}}
    assert sheets({"steps": [step, gained]})[0]["rows"][1] == ["dba", ".625 (+.125)", "1.0"]
