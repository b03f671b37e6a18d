"""The protocol end to end against a plain loop over queries."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from guie.errors import UserError
from guie.evaluate import evaluate
from guie.protocols.chosen import over
from guie.protocols.retrieval import Retrieval
from guie.search.exact import Exact
from guie.types import Embeddings


def made_up(
    seed=0, rows=240, classes=30, splits=("query", "index", "index"), domains=("art", "food", "toys")
):
    """Return noisy clusters; a class belongs to one domain; splits and domains in random order."""
    r = np.random.default_rng(seed)
    classes_of = r.integers(classes, size=rows)
    vectors = r.standard_normal((classes, 8))[classes_of] + 0.9 * r.standard_normal((rows, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings(
        vectors.astype(np.float32),
        files=np.array([f"{i}.jpg" for i in range(rows)]),
        labels=np.array([f"c{c}" for c in classes_of]),
        domains=np.array([domains[c % len(domains)] for c in classes_of]),
        splits=r.choice(np.array(splits), size=rows),
        space_id="s",
    )


def looped(e, query_domain=None, gallery_domain=None):
    """Return (mP@5, R@1, MAP@R, queries, dropped) by sorting everything for each query."""
    found, dropped = [], 0
    for q in range(len(e.vectors)):
        if e.splits[q] not in ("query", "test") or query_domain not in (None, e.domains[q]):
            continue
        others = [
            i
            for i in range(len(e.vectors))
            if i != q and e.splits[i] in ("index", "test") and gallery_domain in (None, e.domains[i])
        ]
        others.sort(key=lambda i: -float(e.vectors[q].astype(np.float64) @ e.vectors[i].astype(np.float64)))
        flags = [e.labels[i] == e.labels[q] for i in others]
        n = sum(flags)
        if n == 0:
            dropped += 1
            continue
        average = sum(sum(flags[: j + 1]) / (j + 1) for j in range(n) if flags[j]) / n
        found.append((sum(flags[: min(n, 5)]) / min(n, 5), float(flags[0]), average))
    return (*np.mean(found, axis=0), len(found), dropped)


def agrees(numbers, expected):
    seen = [numbers["mP@5"], numbers["R@1"], numbers["MAP@R"]]
    np.testing.assert_allclose(seen, expected[:3], rtol=0, atol=1e-12)
    assert numbers["queries"] == expected[3]


@pytest.mark.parametrize(
    "splits", [("query", "index"), ("test",), ("query", "index", "test", "train", "val")]
)
def test_numbers_equal_a_loop_over_queries(splits):
    e = made_up(splits=splits, classes=60)
    numbers = evaluate({"toy": e}).metrics["toy"]
    expected = looped(e)
    agrees(numbers, expected)
    assert numbers["dropped_lone_queries"] == expected[4] > 0
    for domain in ("art", "food", "toys"):
        agrees(numbers["domains"][domain], looped(e, domain, domain))
        agrees(numbers["domains"][domain]["merged"], looped(e, domain))
    mean = np.mean([looped(e, d)[0] for d in ("art", "food", "toys")])
    assert numbers["domain_mean"]["mP@5"] == pytest.approx(mean, abs=1e-12)


def test_a_tiny_memory_budget_changes_nothing():
    e = made_up(splits=("test",), rows=400)
    assert evaluate(e, search=Exact(memory_mib=0.01)).metrics == evaluate(e).metrics


def test_one_dataset_is_its_own_merged_index():
    result = evaluate({"toy": made_up()}).metrics
    assert set(result) == {"toy", "merged"} and result["merged"] == result["toy"]


def test_several_datasets_share_an_index_but_no_labels():
    a, b = made_up(0), made_up(1)
    result = evaluate({"a": a, "b": b}).metrics
    joined = replace(
        a,
        vectors=np.concatenate([a.vectors, b.vectors]),
        files=np.concatenate([a.files, b.files]),
        labels=np.array([f"a{x}" for x in a.labels] + [f"b{x}" for x in b.labels]),
        domains=np.concatenate([a.domains, b.domains]),
        splits=np.concatenate([a.splits, b.splits]),
    )
    agrees(result["merged"], looped(joined))
    agrees(result["a"], looped(a))
    assert result["merged"]["gallery"] == result["a"]["gallery"] + result["b"]["gallery"]


def test_data_sets_of_which_other_splits_ask_share_an_index():
    one, other = made_up(0), made_up(1)
    one.splits = np.full(len(one.files), "val", dtype=object)
    other.splits = np.where(np.arange(len(other.files)) % 3 == 0, "val", "index").astype(object)
    present = {"a": one.splits.tolist(), "b": other.splits.tolist()}
    protocols = over({"a": Retrieval(), "b": Retrieval()}, "val", present)
    merged = evaluate({"a": one, "b": other}, protocols).metrics["merged"]
    assert merged["gallery"] == len(one.files) + len(other.files)
    num_asking = (one.splits == "val").sum() + (other.splits == "val").sum()
    assert merged["queries"] + merged["dropped_lone_queries"] == num_asking


def test_results_of_queries_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    result, path = evaluate(made_up()), tmp_path / "queries.parquet"
    result.write_queries(path)
    before = path.read_bytes()

    def full(handle):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        evaluate(made_up(1)).write_queries(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_label_in_two_domains_matches_only_when_asked():
    e = made_up()
    e.domains = np.array(["x", "y"])[np.arange(len(e.files)) % 2]
    apart = evaluate(e, Retrieval(match_domain=True)).metrics["merged"]
    by_name = replace(e, labels=np.char.add(np.char.add(e.labels, "|"), e.domains))
    agrees(apart, looped(by_name))
    agrees(evaluate(e).metrics["merged"], looped(e))


def test_a_class_larger_than_the_deepest_search_has_no_map_at_r():
    e = made_up(rows=2400, classes=2, splits=("query", "index", "index", "index", "index"), domains=("d",))
    numbers = evaluate(e).metrics["merged"]
    assert "MAP@R" in evaluate(made_up()).metrics["merged"]
    assert ("MAP@R" in numbers) == (
        np.unique(e.labels[e.splits == "index"], return_counts=True)[1].max() <= 1000
    )


def test_per_query_results_average_to_the_numbers(tmp_path):
    e = made_up(splits=("test",))
    result = evaluate({"toy": e})
    result.write_queries(tmp_path / "queries.parquet")
    table = pq.read_table(tmp_path / "queries.parquet").to_pydict()
    assert np.mean(table["mP@5"]) == pytest.approx(result.metrics["toy"]["mP@5"])
    own = np.array(table["own mP@5"])[np.array(table["domain"]) == "art"]
    assert np.nanmean(own) == pytest.approx(result.metrics["toy"]["domains"]["art"]["mP@5"])
    assert table["dataset"][0] == "toy" and len(table["top_files"][0]) == 5
    q = table["file"].index(table["file"][3])
    assert table["file"][q] not in table["top_files"][q]
    hit_first = [
        labels[0] == label for labels, label in zip(table["top_labels"], table["label"], strict=True)
    ]
    assert np.mean(hit_first) == pytest.approx(result.metrics["toy"]["R@1"])


def test_the_interval_holds_the_value():
    numbers = evaluate(made_up()).metrics["merged"]
    low, high = numbers["mP@5_interval"]
    assert low < numbers["mP@5"] < high
    assert numbers["recall_curve"]["1"] == numbers["R@1"] and numbers["recall_curve"]["10"] == numbers["R@10"]


def test_a_gallery_smaller_than_the_depth_is_searched_whole():
    e = made_up(rows=12, classes=3, splits=("test",))
    numbers = evaluate(e).metrics["merged"]
    agrees(numbers, looped(e))


def test_nothing_to_search_is_an_error():
    e = made_up()
    with pytest.raises(
        UserError, match="toy: splits train; accepted for evaluation: query and index, or test"
    ):
        evaluate({"toy": replace(e, splits=np.full(len(e.files), "train"))})
    with pytest.raises(UserError, match="toy: no query has a relevant index image"):
        evaluate({"toy": replace(e, labels=e.files)})


def test_episodes_with_one_right_answer_have_a_one_shot_error():
    e = made_up(rows=40, classes=20, domains=("run01", "run02"))
    e.labels = np.array([f"c{i // 2}" for i in range(40)])
    e.domains = np.array(["run01", "run02"])[np.arange(40) // 20]
    e.splits = np.array(["query", "index"])[np.arange(40) % 2]
    numbers = evaluate({"episodes": e}).metrics["episodes"]
    wrong = [1 - looped(e, run, run)[1] for run in ("run01", "run02")]
    assert numbers["one_shot_error"] == pytest.approx(np.mean(wrong))
    assert "one_shot_error" not in evaluate(made_up()).metrics["merged"]


def test_a_domain_whose_queries_are_lone_in_it_has_only_merged_numbers():
    e = made_up(rows=60, classes=10, domains=("d",))
    e.domains = np.where(e.splits == "query", "asked", "found")
    numbers = evaluate({"x": e}).metrics["x"]
    assert set(numbers["domains"]) == {"asked"} and set(numbers["domains"]["asked"]) == {"merged"}
