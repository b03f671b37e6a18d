"""Each protocol against a slow loop over its definition, and what it does with odd data."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from parts import labelled, pairs, scored

from guie.compression import sheet
from guie.embeddings import concatenate
from guie.errors import UserError
from guie.evaluate import evaluate
from guie.protocols.copies import Asking, Copies, best_pairs
from guie.protocols.graded import Revisited, Stated
from guie.protocols.one_shot import OneShot
from guie.protocols.part import Part
from guie.protocols.recognition import KNN, Recognition
from guie.protocols.retrieval import Retrieval
from guie.protocols.self_in import SelfIn
from guie.protocols.several import Several
from guie.search.exact import Exact


def random_scores(seed=0, items=40, queries=15):
    return np.random.default_rng(seed).random((items, queries))


def landmark_truth(scores, seed=0, usages=("public", "private", "ignored")):
    r = np.random.default_rng(seed)
    rows = []
    for q in range(scores.shape[1] - 1):  # the last query is named by no pair
        usage = usages[q % len(usages)]
        rows += [
            (f"q{q}", f"r{i}", "ok", usage) for i in r.permutation(len(scores))[: r.integers(1, 7)].tolist()
        ]
    return rows


def looped_map(scores, rows, k, usage=None):
    """Return the mean over queries of sum P(j) rel(j) / min(n, k), by sorting for each query."""
    found = []
    for q in range(scores.shape[1]):
        right = {
            item
            for query, item, _, of in rows
            if query == f"q{q}" and usage in (None, of) and of != "ignored"
        }
        if right:
            ranked = [f"r{i}" for i in np.argsort(-scores[:, q], kind="stable")[:k]]
            flags = [item in right for item in ranked]
            total = sum(sum(flags[: j + 1]) / (j + 1) for j in range(len(flags)) if flags[j])
            found.append(total / min(len(right), k))
    return np.mean(found)


def test_landmark_retrieval_tells_public_from_private_and_leaves_ignored_out():
    scores = random_scores()
    rows = landmark_truth(scores)
    numbers = evaluate({"x": scored(scores, truth=pairs(*rows))}, Stated(map_k=7)).metrics["x"]
    assert numbers["mAP@7"] == pytest.approx(looped_map(scores, rows, 7))
    for usage in ("public", "private"):
        assert numbers[f"mAP@7 {usage}"] == pytest.approx(looped_map(scores, rows, 7, usage))
    ignored = len({query for query, _, _, usage in rows if usage == "ignored"})
    assert numbers["queries"] == 15 - ignored - 1 and numbers["left_out"] == ignored + 1


def test_landmark_retrieval_keeps_the_first_results_of_queries_that_count_on_request():
    scores = random_scores(items=12)
    rows = landmark_truth(scores)
    result = evaluate({"x": scored(scores, truth=pairs(*rows))}, Stated(map_k=3, recall_ks=(1,), lists=7))
    lists = result.lists["x"]
    asked = {query for query, _, _, usage in rows if usage != "ignored"}
    expected = [
        (f"q{q}", f"r{i}", rank + 1, np.float32(scores[i, q]))
        for q in range(scores.shape[1])
        for rank, i in enumerate(np.argsort(-scores[:, q])[:7])
        if f"q{q}" in asked
    ]
    assert list(zip(lists["query"], lists["item"], lists["rank"], lists["score"], strict=True)) == expected
    assert {len(files) for files in result.queries["top_files"]} == {5}


def test_a_stated_picture_that_is_not_there_counts_as_never_found():
    scores = random_scores(items=5, queries=1)
    best = f"r{np.argmax(scores[:, 0])}"
    truth = pairs(("q0", best, "ok"), ("q0", "gone", "ok"))
    numbers = evaluate({"x": scored(scores, truth=truth)}, Stated()).metrics["x"]
    assert numbers["mAP@100"] == pytest.approx(0.5) and numbers["lost_pairs"] == 1


def test_protocols_of_pairs_need_pairs():
    found = scored(random_scores())
    for protocol in (Stated(), Revisited()):
        with pytest.raises(
            UserError, match=r"x: no stated pairs; accepted: a data set with truth, or protocol"
        ):
            evaluate({"x": found}, protocol)
    foreign = replace(found, truth=pairs(("other", "r0", "ok")))
    with pytest.raises(UserError, match="x: no stated pair of its queries"):
        evaluate({"x": foreign}, Stated())


def test_a_query_without_pictures_of_a_level_is_left_out_of_its_mean():
    truth = pairs(("q0", "r0", "easy"), ("q1", "r1", "hard"), ("q1", "r2", "junk"))
    result = evaluate({"x": scored(random_scores(queries=2), truth=truth)}, Revisited())
    numbers = result.metrics["x"]
    assert [numbers[f"queries {level}"] for level in "EMH"] == [1, 2, 1]
    assert np.isnan(result.queries["mAP E"]).tolist() == [False, True]


def test_each_level_has_an_interval_and_pairs_without_any_are_refused():
    scores = random_scores()
    hard = evaluate(
        {"x": scored(scores, truth=pairs(("q0", "r0", "hard"), ("q1", "r2", "hard")))}, Revisited()
    )
    numbers = hard.metrics["x"]
    for level in "MH":
        low, high = numbers[f"mAP {level}_interval"]
        assert low <= numbers[f"mAP {level}"] <= high
    assert "mAP E_interval" not in numbers and numbers["queries E"] == 0
    with pytest.raises(UserError, match="x: no pair is easy or hard; accepted: graded pairs"):
        evaluate({"x": scored(scores, truth=pairs(("q0", "r0", "junk")))}, Revisited())


def test_queries_that_nothing_in_the_gallery_shows_are_dropped_where_queries_stay_in_too():
    r = np.random.default_rng(0)
    found = labelled(r.standard_normal((6, 4)), list("abcabd"), splits=["query"] * 3 + ["index"] * 3)
    protocol = SelfIn(asks=("query",), answers=("index",))
    numbers = evaluate({"x": found}, protocol).metrics["x"]
    assert (numbers["queries"], numbers["dropped_lone_queries"]) == (2, 1)
    with pytest.raises(UserError, match="x: no query's label is in the gallery"):
        evaluate({"x": replace(found, labels=np.array(list("abcdef"), dtype=object))}, protocol)


def test_the_best_pairs_of_all_queries_are_those_of_the_whole_matrix():
    scores = random_scores(1, items=60, queries=9)
    scores[:, 4] += 2  # all of the best pairs are this query's, so it has to be asked again and deeper
    truth = pairs(("q4", "r0", "ok"), ("q1", "r3", "ok"))
    found = scored(scores, truth=truth)
    numbers = evaluate({"x": found}, Copies(max_pairs=50)).metrics["x"]
    flat = [(-scores[i, q], q, i) for i in range(60) for q in range(9)]
    ranked = [(f"q{q}", f"r{i}") for _, q, i in sorted(flat)[:50]]
    hits = [place + 1 for place, pair in enumerate(ranked) if pair in {("q4", "r0"), ("q1", "r3")}]
    assert numbers["uAP"] == pytest.approx(sum((n + 1) / rank for n, rank in enumerate(hits)) / 2)
    assert numbers["pairs"] == 50


@pytest.mark.parametrize("limit", [1, 7, 20, 50, 200])
def test_of_equal_scores_the_best_pairs_are_those_of_the_whole_matrix_too(limit):
    scores = np.round(random_scores(5, items=40, queries=9) * 4)
    part = Part("x", scored(scores), Exact())
    queries, gallery = part.rows(["query"]), part.rows(["index"])
    asking = Asking(
        part.side(queries), part.self_ids(queries, gallery), part.search.index(part.side(gallery)), 40
    )
    found = best_pairs(asking, 1, limit)
    ranked = sorted((-scores[i, q], q, i) for i in range(40) for q in range(9))[:limit]
    np.testing.assert_array_equal(np.stack([-found.scores, found.query, found.item], 1), ranked)


def test_the_matching_track_takes_each_querys_candidates():
    scores = random_scores(2, items=30, queries=6)
    found = scored(scores, truth=pairs(("q0", "r0", "ok")))
    numbers = evaluate({"x": found}, Copies(track="matching", candidates=7)).metrics["x"]
    assert numbers["pairs"] == 6 * 7


def test_copies_without_stated_pairs_go_by_label_and_never_match_themselves():
    r = np.random.default_rng(0)
    found = labelled(r.standard_normal((20, 6)), np.repeat(np.arange(10), 2))
    protocol = Copies(asks=("test",), answers=("test",))
    result = evaluate({"x": found}, protocol)
    assert result.metrics["x"]["true_pairs"] == 20
    assert all(
        file not in top for file, top in zip(result.queries["file"], result.queries["top_files"], strict=True)
    )


def test_vectors_wider_than_the_descriptor_track_takes_are_told(caplog):
    found = scored(random_scores(), truth=pairs(("q0", "r0", "ok")))
    with caplog.at_level("WARNING", "guie"):
        numbers = evaluate({"x": found}, Copies(max_dim=8)).metrics["x"]
    assert not numbers["within_limits"]
    assert "x: vectors of 15 numbers; the descriptor track takes 8" in caplog.text


def test_any_of_several_landmarks_is_right_and_usages_are_told_apart():
    scores = np.array([[0.9, 0.1, 0.8, 0.1], [0.1, 0.7, 0.2, 0.6]])
    further = {
        "landmarks": np.array(["a b", "c", "", "a", "b", "d"], dtype=object),
        "usage": np.array(["public", "private", "private", "ignored", "", ""], dtype=object),
    }
    found = scored(
        scores, query_labels=["a", "c", "distractor", "a"], item_labels=["b", "d"], further=further
    )
    numbers = evaluate({"x": found}, Recognition()).metrics["x"]
    assert numbers["queries"] == 3 and numbers["known"] == 2
    assert numbers["GAP"] == pytest.approx(1 / 2) and numbers["ACC"] == 0.5
    assert numbers["GAP public"] == 1.0 and numbers["GAP private"] == 0.0


def test_recognition_of_nothing_known_is_refused():
    found = scored(random_scores(), query_labels=["distractor"] * 15)
    with pytest.raises(UserError, match="x: every query is 'distractor'"):
        evaluate({"x": found}, Recognition())


def test_neighbours_and_temperature_are_tuned_on_val_as_a_grid_would():
    r = np.random.default_rng(7)
    labels = r.integers(6, size=300)
    splits = np.array(["index"] * 200 + ["val"] * 50 + ["query"] * 50)
    names = np.where((np.arange(300) >= 200) & (r.random(300) < 0.3), "distractor", labels.astype(str))
    found = labelled(np.eye(6)[labels] + r.standard_normal((300, 6)), names, splits=splits)
    grid = {"ks": (1, 5, 20), "temperatures": (1.0, 0.1)}
    tuned = evaluate({"x": found}, Recognition(tuned_on="val", **grid)).metrics["x"]
    best = max(
        ((k, t) for k in (1, 5, 20) for t in (1.0, 0.1)),
        key=lambda pair: evaluate(
            {"x": found}, Recognition(k=pair[0], temperature=pair[1], asks=("val",))
        ).metrics["x"]["GAP"],
    )
    assert (tuned["k"], tuned["temperature"]) == best
    fixed = evaluate({"x": found}, Recognition(k=best[0], temperature=best[1])).metrics["x"]
    assert tuned["GAP"] == fixed["GAP"]
    protocol = Recognition(tuned_on="val")
    assert len(protocol.roles) == 2 and len(protocol.over("val", ["val", "index"]).roles) == 1


def test_where_every_query_is_ignored_nothing_is_recognised():
    usage = {"usage": np.array(["ignored"] * 15 + [""] * 40, dtype=object)}
    with pytest.raises(UserError, match="x: every query is ignored; accepted: some public or private ones"):
        evaluate({"x": scored(random_scores(), further=usage)}, Recognition())


def test_knn_accuracy_is_a_vote_of_the_nearest():
    r = np.random.default_rng(5)
    labels = r.integers(4, size=120)
    vectors = np.eye(4)[labels] + 0.7 * r.standard_normal((120, 4))
    splits = np.where(np.arange(120) < 90, "train", "test")
    labels[-1] = 9  # a label that nobody trained on
    found = labelled(vectors, labels, splits=splits)
    numbers = evaluate({"x": found}, KNN(ks=(3, 500))).metrics["x"]
    right = {3: [], 500: []}
    for q in range(90, 119):
        for k in right:
            near = np.argsort(-(found.vectors[:90] @ found.vectors[q]), kind="stable")[:k]
            votes = np.zeros(10)
            np.add.at(
                votes, labels[near], np.exp((found.vectors[near] @ found.vectors[q]).astype(float) / 0.07)
            )
            right[k].append(votes.argmax() == labels[q])
    assert numbers["kNN@3"] == pytest.approx(np.mean(right[3]))
    assert numbers["kNN@500"] == pytest.approx(np.mean(right[500]))
    assert numbers["dropped_lone_queries"] == 1


def test_a_query_that_only_itself_would_name_is_dropped():
    r = np.random.default_rng(0)
    found = labelled(r.standard_normal((7, 4)), ["a"] * 3 + ["b"] * 3 + ["lone"], splits="train")
    result = evaluate({"x": found}, KNN(ks=(2,), asks=("train",)))
    assert result.metrics["x"]["dropped_lone_queries"] == 1
    assert result.queries["relevant"].tolist() == [2] * 6


def test_several_protocols_stand_under_their_names_and_the_first_for_all():
    r = np.random.default_rng(0)
    labels = np.tile(np.arange(10), 6)
    found = labelled(
        np.eye(10)[labels] + r.standard_normal((60, 10)), labels, splits=["train"] * 30 + ["test"] * 30
    )
    result = evaluate({"x": found}, Several({"retrieval": Retrieval(), "knn": KNN(ks=(5,), metric="kNN@5")}))
    alone = evaluate({"x": found}, KNN(ks=(5,))).metrics["x"]
    numbers = result.metrics["x"]
    assert numbers["kNN@5"] == numbers["knn"]["kNN@5"] == alone["kNN@5"]
    assert numbers["gallery"] == 30 and numbers["knn"]["gallery"] == 30
    assert np.mean(result.queries["kNN@5"]) == pytest.approx(numbers["kNN@5"])
    assert result.named == {"x": "mP@5"}
    assert set(result.protocols["x"]["parts"]) == {"retrieval", "knn"}


def episodes(right=True):
    r = np.random.default_rng(1)
    index, queries = r.standard_normal((10, 4)), r.standard_normal((10, 4))
    labels = [f"run{i // 5}/{i}" for i in range(10)]
    splits = ["index"] * 10 + ["query"] * 10
    answers = labels if right else [labels[0], *labels[:9]]
    domains = [f"run{i // 5}" for i in range(10)] * 2
    return labelled(np.concatenate([index, queries]), labels + answers, splits, domains)


def test_one_shot_error_is_the_mean_over_episodes_of_wrong_nearest_neighbours():
    found = episodes()
    numbers = evaluate({"x": found}, OneShot()).metrics["x"]
    wrong = []
    for q in range(10):
        own = [i for i in range(10) if i // 5 == q // 5]
        wrong.append(max(own, key=lambda i: found.vectors[i] @ found.vectors[10 + q]) != q)
    assert numbers["one_shot_error"] == pytest.approx(np.mean(wrong))
    assert numbers["one_shot_accuracy"] == pytest.approx(1 - np.mean(wrong))


def test_the_sheet_of_episodes_has_the_accuracy_of_episodes():
    found, protocol = {"x": episodes()}, OneShot()
    plain = sheet(found, {"x": protocol}, {}, Exact())[0]
    expected = evaluate(found, protocol).metrics["x"]["one_shot_accuracy"]
    assert plain["metrics"]["one_shot_accuracy"] == expected


def test_an_episode_with_two_right_answers_is_refused():
    found = episodes()
    found.labels[1] = found.labels[0]
    found.labels[11] = found.labels[0]
    with pytest.raises(
        UserError, match="x: a query with 2 pictures of its label in the index; accepted: one"
    ):
        evaluate({"x": found}, OneShot())


def uned():
    r = np.random.default_rng(3)
    labels = r.integers(8, size=160)
    domains = np.array(["food", "art"])[r.integers(2, size=160)]
    return labelled(np.eye(8)[labels] + r.standard_normal((160, 8)), labels, domains=domains), domains, labels


def test_the_mean_over_domains_of_a_merged_index_needs_label_and_domain():
    found, domains, labels = uned()
    protocol = Retrieval(recall_ks=(1,), match_domain=True, mean_of_domains=True, metric="mMP@5")
    numbers = evaluate({"x": found}, protocol).metrics["x"]
    merged, separate = {"art": [], "food": []}, {"art": [], "food": []}
    for q in range(160):
        for where, gallery in ((merged, range(160)), (separate, np.flatnonzero(domains == domains[q]))):
            ranked = sorted(
                (i for i in gallery if i != q), key=lambda i: -(found.vectors[i] @ found.vectors[q])
            )
            flags = [labels[i] == labels[q] and domains[i] == domains[q] for i in ranked]
            depth = min(5, sum(flags))
            where[domains[q]].append(sum(flags[:depth]) / depth)
    assert numbers["mMP@5"] == pytest.approx(np.mean([np.mean(values) for values in merged.values()]))
    assert numbers["mMP@5 separate"] == pytest.approx(np.mean([np.mean(v) for v in separate.values()]))


def test_of_several_labels_each_counts_with_and_without_a_data_sets_name_and_on_a_merged_index():
    r = np.random.default_rng(4)
    vectors, numbers = r.standard_normal((30, 6)), [f"{i % 5} {(i + 1) % 5}" for i in range(30)]
    plain, named = (
        labelled(vectors, [f"{name}{i % 5}" for i in range(30)], class_ids=numbers) for name in ("", "x/")
    )
    other = labelled(r.standard_normal((30, 6)), [f"{i % 6}" for i in range(30)])
    results = [evaluate({"a": one, "b": other}) for one in (plain, named)]
    for result in results:
        assert result.queries["relevant"][:30].tolist() == [17] * 30  # three of five classes share one
        assert result.metrics == results[0].metrics
    both = concatenate({"a": plain, "b": other})
    counts = evaluate(both).queries["relevant"]
    assert counts[:30].tolist() == [17] * 30 and counts[30:].tolist() == [4] * 30
    merged, alone = results[0].metrics["merged"], evaluate(both).metrics["merged"]
    assert merged["mAP@100"] == alone["mAP@100"]


@pytest.mark.parametrize("match_domain", [False, True])
def test_a_hit_shares_any_of_several_labels(match_domain):
    r = np.random.default_rng(3)
    domains = np.array(["art", "food"])[r.integers(2, size=80)]
    sets = [r.choice(9, size=r.integers(1, 4), replace=False).tolist() for _ in range(80)]
    labels = [f"x/{numbers[0]}" for numbers in sets]
    splits = ["query"] * 20 + ["index"] * 40 + ["test"] * 20
    found = labelled(
        r.standard_normal((80, 6)), labels, splits, domains, class_ids=[" ".join(map(str, s)) for s in sets]
    )
    result = evaluate({"x": found}, Retrieval(match_domain=match_domain))
    asking = [q for q in range(80) if splits[q] != "index"]
    expected = []
    for q in asking:
        others = [i for i in range(20, 80) if i != q]
        others.sort(key=lambda i: -(found.vectors[i] @ found.vectors[q]))
        flags = [
            bool({*sets[i]} & {*sets[q]}) and (not match_domain or domains[i] == domains[q]) for i in others
        ]
        depth = min(5, sum(flags))
        expected.append((sum(flags), sum(flags[:depth]) / depth))
    assert result.queries["relevant"].tolist() == [count for count, _ in expected]
    np.testing.assert_allclose(result.queries["mP@5"], [value for _, value in expected])


def test_groups_of_queries_have_numbers_of_their_own():
    r = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 4)
    attacks = np.tile(["strong", "crops/10"], 40)
    found = labelled(np.eye(20)[labels] + r.standard_normal((80, 20)), labels, group=attacks)
    result = evaluate({"x": found}, Retrieval(group_by="group"))
    groups = result.metrics["x"]["groups"]
    assert list(groups) == ["crops/10", "strong"]
    assert groups["strong"]["R@1"] == pytest.approx(result.queries["R@1"][attacks == "strong"].mean())
    with pytest.raises(UserError, match=r"protocol\.group_by: usage; accepted of x: group"):
        evaluate({"x": found}, Retrieval(group_by="usage"))


def test_the_first_results_of_each_query_are_kept_on_request():
    found = labelled(np.random.default_rng(0).standard_normal((12, 4)), np.repeat(np.arange(4), 3))
    lists = evaluate({"x": found}, Retrieval(lists=8)).lists["x"]
    assert len(lists["query"]) == 12 * 8
    mine = [item for query, item in zip(lists["query"], lists["item"], strict=True) if query == "3.jpg"]
    others = [i for i in range(12) if i != 3]
    assert (
        mine == [f"{i}.jpg" for i in sorted(others, key=lambda i: -(found.vectors[i] @ found.vectors[3]))][:8]
    )
    assert lists["rank"][:8].tolist() == list(range(1, 9))


def test_map_of_a_thousand_has_the_name_that_ilias_gives_it():
    found = labelled(np.random.default_rng(0).standard_normal((12, 4)), np.repeat(np.arange(4), 3))
    numbers = evaluate({"x": found}, Retrieval(map_k=1000, metric="mAP@1k")).metrics["x"]
    assert "mAP@1000" not in numbers
    assert numbers["mAP@1k"] == pytest.approx(evaluate({"x": found}).metrics["x"]["mAP@100"])


def test_ties_go_to_the_row_that_comes_first():
    found = labelled(np.ones((6, 3)), ["a", "b", "a", "b", "a", "b"])
    result = evaluate({"x": found}, Retrieval(recall_ks=(1,)))
    assert result.queries["top_files"][0] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    assert result.queries["R@1"].tolist() == [0, 0, 1, 0, 1, 0]
    full = evaluate({"x": found}, SelfIn()).queries
    assert full["top_files"][5] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": ["a", "b", "a", "d"]}, r"x: 1 files listed again, such as a in rows 0 and 2; accepted"),
        ({"splits": ["query"] * 4}, r"x: splits query; accepted for evaluation: query and index, or test"),
        ({"splits": ["index"] * 4}, r"x: splits index; accepted for evaluation"),
        ({"labels": list("abcd")}, r"x: no query has a relevant index image"),
    ],
)
def test_odd_rows_are_named(change, message):
    found = labelled(np.eye(4), ["a", "a", "b", "b"])
    found = replace(found, **{name: np.array(value, dtype=object) for name, value in change.items()})
    with pytest.raises(UserError, match=message):
        evaluate({"x": found})


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_vectors_that_are_not_finite_or_zero_are_named_by_row(value):
    found = labelled(np.eye(4), ["a", "a", "b", "b"])
    found.vectors[2] = value
    with pytest.raises(UserError, match=r"x: 1 vectors not finite or zero: row 2 \(2\.jpg\)"):
        evaluate({"x": found})


def test_two_embedding_spaces_are_refused_whatever_the_protocols():
    one, other = labelled(np.eye(4), ["a", "a", "b", "b"]), labelled(np.eye(4), ["a", "a", "b", "b"])
    with pytest.raises(UserError, match="b: embedding space t, 4-d; accepted: s, 4-d as a has"):
        evaluate({"a": one, "b": replace(other, space_id="t")}, SelfIn())


def test_only_data_sets_that_go_by_label_are_merged():
    labels = labelled(np.random.default_rng(0).standard_normal((12, 15)), np.repeat(np.arange(4), 3))
    graded = scored(random_scores(), truth=pairs(("q0", "r0", "easy"), ("q1", "r1", "hard")))
    protocols = {"a": Retrieval(), "b": Retrieval(), "c": Revisited()}
    result = evaluate({"a": labels, "b": labels, "c": graded}, protocols)
    assert result.metrics["merged"]["gallery"] == 24
    assert result.named == {"a": "mP@5", "b": "mP@5", "c": "mAP M"}
    alone = evaluate({"a": graded, "b": graded}, Revisited()).metrics
    assert set(alone) == {"a", "b"}


def test_a_metric_at_a_k_that_was_not_asked_for_is_replaced_by_one_that_was():
    found = labelled(np.eye(4), ["a", "a", "b", "b"])
    assert evaluate({"x": found}, Retrieval(recall_ks=(5,), metric="R@1")).named == {"x": "mP@5"}
    assert evaluate({"x": found}, Retrieval(recall_ks=(1,), metric="R@1")).named == {"x": "R@1"}


@pytest.mark.parametrize("protocol", [Retrieval(mean_of_domains=True), Retrieval()])
def test_means_over_domains_need_no_recall_at_1_among_what_was_asked_for(protocol):
    found = episodes()
    asked, plain = (
        evaluate({"x": found}, replace(protocol, recall_ks=ks)).metrics["x"] for ks in ((5,), (1, 5))
    )
    assert asked["one_shot_error"] == plain["one_shot_error"]
    assert "mR@1" not in asked and asked.get("mMP@5") == plain.get("mMP@5")


def test_the_recall_curve_ends_where_nobody_looked():
    r = np.random.default_rng(0)
    found = labelled(r.standard_normal((60, 8)), np.arange(60) % 6)
    shallow, whole = (
        evaluate({"x": found}, Retrieval(recall_ks=(1,), map_k=k)).metrics["x"]["recall_curve"]
        for k in (20, 60)
    )
    assert list(shallow) == ["1", "2", "5", "10", "20"] and "100" in whole
    copies = evaluate({"x": found}, Copies(track="matching", candidates=5, asks=["test"], answers=["test"]))
    assert list(copies.metrics["x"]["recall_curve"]) == ["1", "2", "5"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Retrieval(recall_ks=[0]),
            r"protocol\.recall_ks: \[0\]; accepted: one or more whole numbers",
        ),
        (lambda: Retrieval(recall_ks=[]), r"protocol\.recall_ks: \[\]; accepted"),
        (lambda: Stated(lists=-1), r"protocol\.lists: -1; accepted: 0 \(none\) or more"),
        (lambda: Retrieval(map_k=0), r"protocol\.map_k: \[0\]; accepted"),
        (lambda: KNN(temperature=0), r"protocol\.temperature: 0; accepted: above 0"),
        (lambda: Recognition(temperature=0.0), r"protocol\.temperature: 0\.0; accepted: above 0"),
        (lambda: Copies(max_pairs=10**6), r"protocol\.max_pairs: 1000000; accepted: 500,000 at most"),
        (lambda: Copies(max_pairs=0), r"protocol\.max_pairs: \[0\]; accepted"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_split_that_asks_is_answered_by_the_index_else_by_itself():
    assert Retrieval().over("val", ["val", "index"]).roles == [(("val",), ("index",))]
    assert Retrieval().over("val", ["val", "test"]).roles == [(("val",), ("val",))]
    both = Several({"a": Retrieval(), "b": KNN()}).over("val", ["train", "val"])
    assert both.roles == [(("val",), ("val",)), (("val",), ("train",))]


class Watched:
    """A search that takes five queries at a time and notes how much each of them was asked for."""

    tile = 5

    def __init__(self):
        self.asked = []

    def index(self, gallery):
        made = copy.copy(self)
        made.inner = Exact().index(gallery)
        return made

    def search(self, queries, k, *, self_ids=None):
        self.asked.append((len(queries.vectors), k))
        assert queries.labels is None
        return self.inner.search(queries, k, self_ids=self_ids)


def every_kind():
    r = np.random.default_rng(0)
    labels = np.tile(np.arange(10), 6)
    plain = labelled(r.standard_normal((60, 16)), labels, splits=["train"] * 30 + ["test"] * 30)
    graded = scored(
        random_scores(), truth=pairs(("q0", "r0", "easy"), ("q1", "r1", "hard"), ("q2", "r2", "ok"))
    )
    known = scored(random_scores(), query_labels=["x"] * 15)
    return [
        (plain, Retrieval()),
        (plain, KNN(ks=(5,))),
        (plain, SelfIn()),
        (graded, Stated()),
        (graded, Revisited()),
        (graded, Copies(max_pairs=30)),
        (known, Recognition(k=3)),
        (episodes(), OneShot()),
    ]


@pytest.mark.parametrize("case", range(8))
def test_a_protocol_asks_any_search_in_its_tiles_and_shows_it_no_label_of_a_query(case):
    found, protocol = every_kind()[case]
    search = Watched()
    tiled = evaluate({"x": found}, protocol, search=search)
    plain = evaluate({"x": found}, protocol)
    assert search.asked and max(count for count, _ in search.asked) <= 5
    np.testing.assert_equal(tiled.metrics, plain.metrics)
