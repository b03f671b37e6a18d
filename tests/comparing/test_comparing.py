"""guie-compare: gains against a loop over queries, who changed, what is refused, what it writes."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from guie.cli import compare as command
from guie.comparing import shown
from guie.comparing.gains import Bootstrap, gain, groups, most_changed, table
from guie.comparing.pairing import paired, read
from guie.comparing.story import compare, compare_configured
from guie.config.compose import composed
from guie.errors import UserError
from guie.evaluate import evaluate, write_columns
from guie.types import Embeddings

DRAWN = Bootstrap(samples=500, seed=0, level=0.95)


def columns(seed=0, queries=60, better=0.0):
    """Return the columns of an evaluation of two data sets, one of two domains."""
    r = np.random.default_rng(seed)
    hard = np.random.default_rng(99).random(queries)
    hits = (r.random(queries) < np.clip(hard + better, 0, 1)).astype(np.float64)
    first_hit = np.where(hits == 1, 1, r.integers(2, 40, queries))
    first_hit[3] = 0 if not hits[3] else 1
    return {
        "dataset": np.where(np.arange(queries) < 40, "sop", "met").astype(object),
        "file": np.array([f"{i % 40}.jpg" for i in range(queries)], dtype=object),
        "label": np.array([f"c{i % 7}" for i in range(queries)], dtype=object),
        "domain": np.array(
            [("art", "food")[i % 2] if i < 40 else "art" for i in range(queries)], dtype=object
        ),
        "relevant": np.full(queries, 3),
        "first_hit": first_hit,
        "mP@5": r.integers(6, size=queries) / 5 * hits,
        "R@1": hits,
        "top_files": [["0.jpg", "1.jpg"] for _ in range(queries)],
        "top_labels": [[f"c{i % 7}", "other"] for i in range(queries)],
    }


def written(folder, table, numbers=None):
    folder.mkdir(parents=True)
    write_columns(table, folder / "queries.parquet")
    (folder / "metrics.json").write_text(json.dumps(numbers or {"trained": {"sop": {}, "met": {}}}))
    return folder


def rows(table, chosen):
    return {
        name: [column[i] for i in chosen] if isinstance(column, list) else column[chosen]
        for name, column in table.items()
    }


@pytest.fixture
def two(tmp_path):
    """Return two evaluations of the same queries, listed in another order; the second is better."""
    ours, theirs = columns(0), columns(1, better=0.5)
    order = np.random.default_rng(5).permutation(60)
    return written(tmp_path / "a", ours), written(tmp_path / "b", rows(theirs, order)), ours, theirs


def results(a, b):
    return read("baseline", a), read("candidate", b)


def test_gains_are_means_over_the_same_queries_whatever_their_order(two):
    a, b, ours, theirs = two
    found = compare(*results(a, b), bootstrap=DRAWN, show=3)
    seen = {(row["dataset"], row["domain"], row["metric"]): row for row in found["gains"]}
    for dataset, domain in [("", None), ("sop", None), ("met", None), ("sop", "art"), ("sop", "food")]:
        chosen = [
            i
            for i in range(60)
            if dataset in ("", ours["dataset"][i]) and domain in (None, ours["domain"][i])
        ]
        for metric in ("mP@5", "R@1"):
            row = seen.pop((dataset, domain, metric))
            before, after = (sum(side[metric][i] for i in chosen) / len(chosen) for side in (ours, theirs))
            assert (row["baseline"], row["candidate"]) == pytest.approx((before, after), abs=1e-12)
            assert row["gain"] == pytest.approx(after - before, abs=1e-12)
            assert row["low"] <= row["gain"] <= row["high"] and row["queries"] == len(chosen)
    assert not seen


def test_an_interval_is_that_of_queries_drawn_with_replacement():
    r = np.random.default_rng(0)
    before, after = r.random(80), r.random(80) + 0.1
    found = gain(before, after, Bootstrap(samples=20_000, seed=3, level=0.9))
    means = sorted(np.mean((after - before)[r.integers(80, size=80)]) for _ in range(20_000))
    assert (found.low, found.high) == pytest.approx((means[1000], means[19_000]), abs=0.004)


def test_verdicts_say_whether_the_interval_holds_zero():
    better = gain(np.zeros(20), np.full(20, 0.1), DRAWN)
    assert better.verdict == "better" and gain(np.full(20, 0.1), np.zeros(20), DRAWN).verdict == "worse"
    assert gain(np.ones(20), np.ones(20), DRAWN).verdict == "same"
    assert gain(np.tile([0.0, 1.0], 10), np.tile([1.0, 0.0], 10), DRAWN).verdict == "open"


def test_a_query_that_does_not_count_in_one_metric_is_left_out_of_it():
    before, after = np.array([0.0, np.nan, 1.0]), np.array([1.0, 1.0, np.nan])
    assert gain(before, after, DRAWN)[:4] == (1, 0.0, 1.0, 1.0)
    assert gain(before[1:], after[1:], DRAWN) is None
    parts = list(groups(np.array(["a"] * 3), np.array(["x", "x", "y"])))
    assert [(part.domain, part.chosen.sum()) for part in parts] == [(None, 3), ("x", 2), ("y", 1)]
    assert [row["domain"] for row in table({"m": before}, {"m": after}, parts, DRAWN)] == [None, "x"]


def test_the_queries_that_changed_most_come_first_and_ties_go_by_the_first_hit():
    before, after = np.array([0, 1, 0, 0, 1.0, 0]), np.array([1, 0, 1, 0.2, 1.0, np.nan])
    first_hits = np.array([9, 1, 2, 4, 1, 0]), np.array([1, 0, 1, 4, 1, 1])
    gained, lost = most_changed(before, after, first_hits, most=5)
    assert gained.tolist() == [0, 2, 3] and lost.tolist() == [1]
    assert most_changed(before, after, first_hits, most=1)[0].tolist() == [0]


def test_changed_queries_say_what_each_system_found(two):
    a, b, ours, theirs = two
    found = compare(*results(a, b), bootstrap=DRAWN, show=4, metric="R@1")
    assert len(found["changed"]["gained"]) == 4
    for query in found["changed"]["gained"]:
        row = next(
            i for i in range(60) if (ours["dataset"][i], ours["file"][i]) == (query["dataset"], query["file"])
        )
        assert (query["baseline"]["value"], query["candidate"]["value"]) == (0.0, 1.0)
        assert query["baseline"]["first_hit"] == ours["first_hit"][row]
        assert query["candidate"]["first_hit"] == theirs["first_hit"][row] == 1
        assert query["candidate"]["top_labels"] == theirs["top_labels"][row]


def test_numbers_that_are_no_mean_over_queries_are_told_without_an_interval_and_settings_not(tmp_path):
    numbers, protocols = {"R@1": 0.5, "queries": 40}, {"sop": {"temperature": None}}
    a, b = (
        written(
            tmp_path / name,
            columns(),
            {"trained": {"sop": {"RP90": value, "temperature": value, **numbers}}, "protocols": protocols},
        )
        for name, value in (("a", 0.5), ("b", 0.75))
    )
    found = compare(*results(a, b), bootstrap=DRAWN, show=3)["wholes"]
    assert found == [{"dataset": "sop", "metric": "RP90", "baseline": 0.5, "candidate": 0.75, "change": 0.25}]


def test_numbers_of_other_queries_are_not_told_for_the_common_ones(tmp_path):
    said = {"trained": {"sop": {"RP90": 0.5}}}
    a = written(tmp_path / "a", columns(0), said)
    b = written(tmp_path / "b", rows(columns(1), np.arange(30)), said)
    assert compare(*results(a, b), bootstrap=DRAWN, show=3, common=True)["wholes"] == []


def test_other_queries_are_refused_with_their_number_and_compared_on_request(tmp_path):
    a = written(tmp_path / "a", rows(columns(0), np.arange(50)))
    b = written(tmp_path / "b", rows(columns(1), np.arange(10, 60)))
    line = "queries: 10 of 50 in .*a are not in .*b, 10 of 50 the other way round; accepted: the same queries"
    with pytest.raises(UserError, match=f"{line}, or common=true for the 40 in both"):
        paired(*results(a, b))
    found = compare(*results(a, b), bootstrap=DRAWN, show=3, common=True)
    assert found["queries"] == 40 and found["left_out"] == [10, 10]
    assert "40 queries in both (10 and 10 left out)" in shown.headline(found)


def test_other_data_sets_are_refused_by_name(tmp_path):
    a = written(tmp_path / "a", columns(0))
    b = written(tmp_path / "b", rows(columns(1), np.arange(40)))
    with pytest.raises(UserError, match=r"data sets: met, sop in .*a and sop in .*b; accepted: the same"):
        paired(*results(a, b))
    apart = columns(1) | {"dataset": np.full(60, "cub", dtype=object)}
    with pytest.raises(UserError, match=r"accepted: the same queries$"):
        paired(*results(a, written(tmp_path / "c", apart)), common=True)


@pytest.mark.parametrize("name, value", [("label", "c9"), ("relevant", 7)])
def test_the_same_query_with_another_truth_is_refused(tmp_path, name, value):
    changed = columns(1)
    changed[name][5] = value
    a, b = written(tmp_path / "a", columns(0)), written(tmp_path / "b", changed)
    with pytest.raises(UserError, match=f"{name}: differs for 1 of 60 queries, as 5.jpg: .*{value} in .*b"):
        paired(*results(a, b))


def test_another_protocol_is_refused_but_not_further_numbers(tmp_path):
    said = [{"kind": "Copies", "track": track, "recall_ks": [k]} for k, track in enumerate(("matching", "x"))]
    a, b, c = (
        written(tmp_path / name, columns(), {"trained": {}, "protocols": {"sop": protocol}})
        for name, protocol in (("a", said[0]), ("b", said[1]), ("c", said[0] | {"recall_ks": [9]}))
    )
    with pytest.raises(UserError, match=r"protocols.sop.track: matching in .*a, x in .*b; accepted: one pro"):
        paired(*results(a, b))
    assert len(paired(*results(a, c))[0]) == 60


def test_a_file_that_asks_twice_is_paired_in_the_order_of_asking(tmp_path):
    twice = rows(columns(0), np.array([0, 0, 1]))
    twice["R@1"] = np.array([0.0, 1.0, 0.0])
    a, b = written(tmp_path / "a", twice), written(tmp_path / "b", rows(twice, np.array([2, 0, 1])))
    found = compare(*results(a, b), bootstrap=DRAWN, show=3)
    assert {row["verdict"] for row in found["gains"]} == {"same"}


def test_folders_without_an_evaluation_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"baseline: .*: no evaluation; accepted: one folder with queries.par"
    ):
        read("baseline", str(tmp_path))
    written(tmp_path / "run" / "eval" / "sop", columns())
    assert read("baseline", str(tmp_path / "run")).folder.name == "sop"
    written(tmp_path / "run" / "eval" / "met", columns())
    with pytest.raises(UserError, match=r"candidate: .*: several evaluations: .*met, .*sop; accepted: one"):
        read("candidate", str(tmp_path / "run"))
    (tmp_path / "run" / "eval" / "met" / "metrics.json").write_text("[1]")
    with pytest.raises(UserError, match=r"baseline: .*met: .*accepted: metrics.json and queries.parquet"):
        read("baseline", str(tmp_path / "run" / "eval" / "met"))
    other = written(tmp_path / "other", {"file": np.array(["a"], dtype=object)})
    with pytest.raises(UserError, match="no dataset, label, domain; accepted: what guie-eval wrote"):
        read("baseline", str(other))


def test_a_metric_that_is_not_in_both_is_refused(two):
    a, b, _, _ = two
    with pytest.raises(UserError, match="metric: 'mP@50'; accepted: mP@5, R@1"):
        compare(*results(a, b), bootstrap=DRAWN, show=3, metric="mP@50")


def test_the_score_of_a_prediction_is_no_metric(tmp_path):
    a = written(tmp_path / "a", columns() | {"prediction_score": np.ones(60)})
    assert read("baseline", str(a)).metrics == ["mP@5", "R@1"]


def test_the_metric_of_the_protocol_decides_who_changed_most(tmp_path):
    numbers = {"trained": {}, "protocols": {"met": {"metric": "R@1"}}}
    a, b = (written(tmp_path / name, columns(seed), numbers) for seed, name in enumerate("ab"))
    assert compare(*results(a, b), bootstrap=DRAWN, show=3)["metric"] == "R@1"


def evaluated(folder, noise):
    """Evaluate noisy clusters of two domains and write what guie-eval writes."""
    r = np.random.default_rng(1)
    labels = np.arange(120) % 20
    vectors = r.standard_normal((20, 8))[labels] + noise * r.standard_normal((120, 8))
    found = evaluate(
        Embeddings(
            (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
            files=np.array([f"{i}.jpg" for i in range(120)], dtype=object),
            labels=labels.astype(str).astype(object),
            domains=np.where(labels < 8, "art", "food").astype(object),
            splits=np.full(120, "test", dtype=object),
            space_id=str(noise),
        )
    )
    folder.mkdir()
    found.write_queries(folder / "queries.parquet")
    numbers = {"trained": found.metrics, "protocols": found.protocols}
    (folder / "metrics.json").write_text(json.dumps(numbers))
    return read("baseline", str(folder)), found.metrics["data"]


def test_evaluations_are_compared_by_the_numbers_that_they_report(tmp_path):
    (a, before), (b, after) = (evaluated(tmp_path / name, noise) for name, noise in (("a", 1.0), ("b", 0.5)))
    found = compare(a, b, bootstrap=DRAWN, show=3)
    rows_of = {(row["domain"], row["metric"]): row for row in found["gains"]}
    for metric in ("mP@5", "R@1", "MAP@R", "MRR"):
        row = rows_of[None, metric]
        assert (row["baseline"], row["candidate"]) == pytest.approx((before[metric], after[metric]))
        row, merged = rows_of["food", metric], after["domains"]["food"]["merged"]
        assert row["candidate"] == pytest.approx(merged[metric])
    row = rows_of["food", "own mP@5"]
    assert row["baseline"] == pytest.approx(before["domains"]["food"]["mP@5"])
    assert rows_of[None, "mP@5"]["verdict"] == "better" and found["metric"] == "mP@5"


def test_the_command_takes_two_folders_and_writes_json_and_a_page(two, capsys, monkeypatch):
    a, b, _, _ = two
    monkeypatch.setattr(sys, "argv", ["guie-compare", str(a), str(b), "show=2", "samples=200"])
    command.main()
    said = capsys.readouterr().out
    assert f"{b} against {a}: 60 queries" in said.replace("\n", "")
    found = json.loads((b / "compare" / "a" / "compare.json").read_text())
    assert found["samples"] == 200 and len(found["changed"]["gained"]) == 2
    page = (b / "compare" / "a" / "compare.html").read_text()
    assert "src=" not in page and "href=" not in page and "http" not in page
    assert all(word in page for word in ("all data sets", "sop", "mP@5", "better"))


def test_comparisons_with_several_runs_evaluated_on_the_same_data_stand_side_by_side(two, tmp_path):
    a, b, _, _ = two
    for run in ("x", "y"):
        shutil.copytree(a, tmp_path / run / "eval" / "sop")
        words = [f"baseline={tmp_path / run}", f"candidate={b}", "samples=50"]
        compare_configured(composed("compare", words))
    assert {path.name for path in (b / "compare").iterdir()} == {"x-sop", "y-sop"}


def test_tables_fit_a_terminal_of_eighty_columns(two):
    a, b, _, _ = two
    found = compare(*results(a, b), bootstrap=DRAWN, show=3)
    found["gains"][0] |= {"metric": "own mP@5"}
    screen = io.StringIO()
    shown.print_tables(found, Console(width=80, file=screen))
    text = screen.getvalue()
    assert "…" not in text and "sop: mP@5 by domain" in text


@pytest.mark.parametrize("value, text", [(-0.0123, "-.0123"), (0.5, "+.5000"), (-10.25, "-10.2500")])
def test_changes_are_written_with_their_sign(value, text):
    assert shown.signed(value) == text


def test_folders_may_hold_what_the_command_line_reads_otherwise(tmp_path, monkeypatch):
    odd = tmp_path / "lr=0.1,b [x]"
    odd.mkdir()
    assert command.with_keys([str(odd), "runs/b", "show=3"]) == [
        f"baseline={odd}",
        "candidate=runs/b",
        "show=3",
    ]
    assert command.with_keys(["--cfg", "job", "a", "b"]) == ["--cfg", "job", "baseline=a", "candidate=b"]


@pytest.mark.parametrize("wrong", ["samples=0", "level=1.0", "level=0", "show=-1", "seed=-1"])
def test_numbers_out_of_range_are_refused_before_reading(wrong):
    cfg = composed("compare", ["baseline=a", "candidate=b", wrong])
    with pytest.raises(UserError, match=f"^{wrong.partition('=')[0]}: "):
        compare_configured(cfg)


def test_a_missing_folder_is_asked_for():
    with pytest.raises(
        UserError, match="candidate: None; accepted: two folders of evaluations: guie-compare"
    ):
        compare_configured(composed("compare", ["baseline=a"]))


def test_comparing_imports_neither_torch_nor_pandas(two):
    a, b, _, _ = two
    code = (
        "import sys; from guie.comparing.story import compare_configured as run;"
        f"run({{'baseline': {str(a)!r}, 'candidate': {str(b)!r}, 'out': None, 'metric': None, "
        "'common': False, 'show': 3, 'samples': 100, 'level': 0.95, 'seed': 0});"
        "print([name for name in ('torch', 'pandas', 'scipy', 'faiss') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
