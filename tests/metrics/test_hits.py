"""Metrics against published values, the authors' outputs and slow float64 loops."""

import json

import numpy as np
import pytest

from guie.metrics.groups import group_means, mean_of_groups
from guie.metrics.hits import (
    average_precision,
    average_precision_at,
    average_precision_at_r,
    count_relevant,
    find_hits,
    find_stated_hits,
    guie_precision,
    hits_from_mask,
    per_query,
    precision_at,
    r_precision,
    recall_at,
    reciprocal_rank,
    reciprocal_rank_at,
    stated_mask,
    trapezoidal_average_precision,
    without_junk,
)
from guie.search.exact import knn
from guie.types import Truth


def with_self(labels):
    """Return the truth of self-retrieval: every row is query and gallery."""
    return Truth(labels, labels, np.arange(len(labels)))


def normalised(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def blobs():
    r = np.random.RandomState(3)
    vectors = r.randn(300, 16).astype(np.float32)
    vectors += 1.2 * r.randn(30, 16).astype(np.float32)[np.repeat(np.arange(30), 10)]
    return normalised(vectors).astype(np.float32)


LABELS = {
    "li": np.repeat(np.arange(30), 10),
    "lu": np.random.RandomState(4).randint(0, 60, 300),
}


def self_retrieval_hits(vectors, labels, depth=None):
    """Rank `depth` (default: all) others for each row; drop lone queries."""
    truth = with_self(labels)
    kept = np.flatnonzero(count_relevant(truth))
    truth = Truth(labels[kept], labels, kept)
    ranking = knn(vectors[kept], vectors, depth or len(vectors) - 1, self_ids=kept)
    return find_hits(ranking.ids, truth)


def random_hits(seed, queries=40, depth=30, gallery=80, classes=12):
    r = np.random.default_rng(seed)
    truth = Truth(r.integers(classes, size=queries), r.integers(classes, size=gallery), np.full(queries, -1))
    ids = np.stack([r.permutation(gallery)[:depth] for _ in range(queries)])
    return ids, truth


def looped(ids, truth, formula):
    """Apply `formula(relevance list, number relevant)` query by query, in Python floats."""
    values = []
    for q, label in enumerate(truth.query_labels):
        relevant = sum(int(g == label and i != truth.self_ids[q]) for i, g in enumerate(truth.gallery_labels))
        seen, flags = set(), []
        for i in ids[q]:
            flags.append(bool(i >= 0 and i not in seen and truth.gallery_labels[i] == label))
            seen.add(i)
        values.append(formula(flags, relevant))
    return np.array(values)


def precision_sum(flags, depth):
    total, found = 0.0, 0
    for rank, flag in enumerate(flags[:depth], start=1):
        found += flag
        total += found / rank if flag else 0.0
    return total


def trapezoids(flags):
    total, found = 0.0, 0
    for place, flag in enumerate(flags):
        if flag:
            total += ((found / place if place else 1.0) + (found + 1) / (place + 1)) / 2
            found += 1
    return total


FORMULAS = {
    "mP@5": (guie_precision, lambda f, n: sum(f[: min(n, 5)]) / min(n, 5)),
    "P@5": (lambda h: precision_at(h, 5), lambda f, n: sum(f[:5]) / 5),
    "R@3": (lambda h: recall_at(h, 3), lambda f, n: float(any(f[:3]))),
    "mAP@10": (lambda h: average_precision_at(h, 10), lambda f, n: precision_sum(f, 10) / min(n, 10)),
    "MAP@R": (average_precision_at_r, lambda f, n: precision_sum(f, n) / n),
    "R-Prec": (r_precision, lambda f, n: sum(f[:n]) / n),
    "MRR": (reciprocal_rank, lambda f, n: 1 / (f.index(True) + 1) if any(f) else 0.0),
    "MAP@5": (
        lambda h: reciprocal_rank_at(h, 5),
        lambda f, n: 1 / (f.index(True) + 1) if any(f[:5]) else 0.0,
    ),
    "mAP": (average_precision, lambda f, n: precision_sum(f, len(f)) / n),
    "trapezoidal mAP": (trapezoidal_average_precision, lambda f, n: trapezoids(f) / n),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_every_metric_equals_its_definition_in_a_loop(name):
    ours, definition = FORMULAS[name]
    ids, truth = random_hits(seed=1)
    np.testing.assert_allclose(
        ours(find_hits(ids, truth)), looped(ids, truth, definition), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", FORMULAS)
def test_repeated_ids_use_a_rank_and_count_once(name):
    ours, definition = FORMULAS[name]
    ids, truth = random_hits(seed=2)
    ids[:, 1:4] = ids[:, :1]
    ids[:, -3:] = -1
    np.testing.assert_allclose(
        ours(find_hits(ids, truth)), looped(ids, truth, definition), rtol=0, atol=1e-12
    )


def test_stated_pairs_are_relevant_and_nothing_else():
    r = np.random.default_rng(0)
    ids = np.stack([r.permutation(50)[:20] for _ in range(30)]).astype(np.int32)
    ids[:, -2:] = -1
    query, item = r.integers(30, size=200), r.integers(60, size=200)
    pairs = set(zip(query.tolist(), item.tolist(), strict=True))
    expected = [[(q, i) in pairs for i in row] for q, row in enumerate(ids.tolist())]
    assert stated_mask(ids, query, item).tolist() == expected
    hits = find_stated_hits(ids, query, item)
    assert hits.relevant.tolist() == [sum(q == row for q, _ in pairs) for row in range(30)]
    assert not stated_mask(ids, query[:0], item[:0]).any()


def test_stated_pairs_are_found_in_rankings_of_a_million():
    ids = np.tile(np.arange(400_000, dtype=np.int32), (5, 1))
    query, item = np.array([0, 3, 4, 4]), np.array([399_999, 0, 1, 399_999])
    assert np.argwhere(stated_mask(ids, query, item)).tolist() == np.stack([query, item], axis=1).tolist()


def test_stated_pairs_and_labels_give_the_same_hits():
    ids, truth = random_hits(seed=4)
    query, item = np.nonzero(truth.query_labels[:, None] == truth.gallery_labels)
    by_pairs, by_label = find_stated_hits(ids, query, item), find_hits(ids, truth)
    for name in ("query", "rank", "order", "relevant"):
        np.testing.assert_array_equal(getattr(by_pairs, name), getattr(by_label, name))


def test_mp5_of_the_challenge_unit_case():
    # Relevant (1,3,6,1,2): hits 0, 1 of 3, 4 of 5, 1 and none.
    mask = np.zeros((5, 5), dtype=bool)
    mask[1, 0] = mask[2, :4] = mask[3, 0] = True
    hits = hits_from_mask(mask, np.array([1, 3, 6, 1, 2]))
    assert guie_precision(hits).mean() == pytest.approx(0.426667, abs=1e-6)


def test_mp5_looks_only_at_as_many_results_as_are_relevant():
    mask = np.array([[False, True, False, False, False]])
    assert guie_precision(hits_from_mask(mask, np.array([1])))[0] == 0
    assert guie_precision(hits_from_mask(mask, np.array([2])))[0] == 0.5


def test_a_query_without_results_counts_zero_in_every_metric():
    truth = Truth(np.array([0, 0]), np.array([0, 1, 0]), np.array([-1, -1]))
    hits = find_hits(np.array([[-1, -1, -1], [0, 2, 1]]), truth)
    for name, (ours, _) in FORMULAS.items():
        first, second = ours(hits).tolist()
        assert first == 0 and second == (1 if name != "P@5" else 0.4), name


def test_merged_domains_count_a_hit_only_within_the_domain_and_domains_count_alike():
    # UnED's mMP@5: labels are numbered anew in each domain, so label and domain have to agree.
    r = np.random.default_rng(0)
    domains, labels = np.repeat([0, 0, 1], 20), np.arange(60) % 5
    ids = np.stack([r.permutation(60) for _ in range(60)])
    both = labels * 2 + domains
    hits = find_hits(ids, Truth(both, both, np.full(60, -1)))
    means = []
    for domain in (0, 1):
        values = []
        for q in np.flatnonzero(domains == domain):
            right = [int(labels[i] == labels[q] and domains[i] == domain) for i in ids[q]]
            values.append(sum(right[: min(5, sum(right))]) / min(5, sum(right)))
        means.append(sum(values) / len(values))
    found = mean_of_groups(guie_precision(hits), domains.astype(str))
    assert found == pytest.approx(sum(means) / 2, abs=1e-12)


def test_a_query_without_relevant_images_is_an_error():
    hits = hits_from_mask(np.zeros((2, 5), dtype=bool), np.array([1, 0]))
    with pytest.raises(ValueError, match=r"1 queries without a relevant gallery image .first: query 1."):
        guie_precision(hits)


@pytest.mark.parametrize("value, name", [(0.7186666667, "li"), (0.0127516779, "lu")])
def test_embeddings_give_the_stated_mp5(blobs, value, name):
    hits = self_retrieval_hits(blobs, LABELS[name])
    assert len(hits) == {"li": 300, "lu": 298}[name]
    assert guie_precision(hits).mean() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    "name, p1, r_prec, map_r",
    [("li", 0.8066666667, 0.6185185185, 0.5444757496), ("lu", 0.0067114094, 0.0137131139, 0.0051234420)],
)
def test_embeddings_give_the_stated_rank_metrics(blobs, name, p1, r_prec, map_r):
    hits = self_retrieval_hits(blobs, LABELS[name])
    assert precision_at(hits, 1).mean() == pytest.approx(p1, abs=1e-9)
    assert r_precision(hits).mean() == pytest.approx(r_prec, abs=1e-9)
    assert average_precision_at_r(hits).mean() == pytest.approx(map_r, abs=1e-9)


def test_embeddings_give_the_stated_mrr_and_gpr_map(blobs):
    labels = LABELS["li"]
    # The stated value looks at 9 results, as many as a class has others (PML's default), in float32.
    hits = self_retrieval_hits(blobs, labels, depth=9)
    assert reciprocal_rank(hits).mean() == pytest.approx(0.8699576855, abs=1e-7)
    # GPR1200 leaves the query in the gallery, at rank 1, as a hit.
    ranking = knn(blobs, blobs, 300)
    hits = find_hits(ranking.ids, Truth(labels, labels, np.full(300, -1)))
    assert average_precision(hits).mean() == pytest.approx(0.73431590, abs=1e-8)


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "reference"
    return {
        "published": json.loads((folder / "public_test_vectors.json").read_text()),
        "outputs": json.loads((folder / "synthetic" / "reference_outputs.json").read_text()),
        "fixture": dict(np.load(folder / "synthetic" / "retrieval_fixture.npz")),
    }


def test_published_landmark_retrieval_values(reference):
    case = reference["published"]["delf_gldv2_metrics"]
    solution, predicted = case["retrieval_solution"], case["retrieval_predictions"]
    mask = np.zeros((len(solution), 2), dtype=bool)
    for row, (query, answers) in enumerate(solution.items()):
        for column, item in enumerate(predicted.get(query, [])):
            mask[row, column] = item in answers
    hits = hits_from_mask(mask, np.array([len(answers) for answers in solution.values()]))
    expected = case["expected"]
    ap = average_precision_at
    assert ap(hits, 100).mean() == pytest.approx(expected["MeanAveragePrecision"], abs=1e-6)
    assert ap(hits, 1).mean() == pytest.approx(expected["MeanAveragePrecision_max_predictions_1"])
    precisions = [precision_at(hits, k).mean() for k in (1, 2)]
    assert precisions == pytest.approx(expected["MeanPrecisions_max_predictions_2"])


@pytest.mark.parametrize("self_in_gallery", [False, True])
def test_published_pml_values(reference, self_in_gallery):
    case = reference["published"]["pml_accuracy_calculator"]
    query_labels, results = np.array(case["query_labels"]), np.array(case["knn_labels"])
    relevant = np.array([case["label_counts"][str(label)] for label in query_labels])
    if self_in_gallery:
        results, relevant = results[:, 1:], relevant - 1
    expected = case["per_query"]["ref_includes_query" if self_in_gallery else "ref_excludes_query"]
    hits = hits_from_mask(results == query_labels[:, None], relevant)
    assert r_precision(hits).tolist() == pytest.approx(expected["r_precision"])
    assert average_precision_at_r(hits).tolist() == pytest.approx(expected["map_at_r"])
    assert average_precision_at(hits, 5).tolist() == pytest.approx(expected["map"])
    assert reciprocal_rank(hits).tolist() == pytest.approx(expected["mrr"])
    assert precision_at(hits, 1).mean() == pytest.approx(expected["precision_at_1_mean"])


def test_published_oml_hit_rates(reference):
    # OML's precision@k and map@k are other definitions (hits / min(k, n); AP over the hits found).
    case = reference["published"]["oml_retrieval"]["exact_case"]
    hits = hits_from_mask(np.array(case["gt_tops"], dtype=bool), np.array(case["n_gt"]))
    for k, expected in case["cmc"].items():
        assert recall_at(hits, int(k)).tolist() == expected


def fixture_hits(reference, self_retrieval=False, depth=None):
    f = reference["fixture"]
    queries, gallery, labels, truths = f["Q"], f["X"], f["q_labels"], f["x_labels"]
    if not self_retrieval:
        ranking = knn(queries, gallery, len(gallery))
        return find_hits(ranking.ids, Truth(labels, truths, np.full(len(labels), -1)))
    return self_retrieval_hits(gallery, truths, depth)


def precision_of_oml(hits, k):
    """Return hits in the top k over min(k, n): OML looks at k results where mP@k looks at min(k, n)."""
    return precision_at(hits, k) * k / np.minimum(hits.relevant, k)


def test_other_programs_agree_on_queries_against_an_index(reference):
    f, outputs = reference["fixture"], reference["outputs"]
    kept = np.isin(f["q_labels"], f["x_labels"])
    reference = {**reference, "fixture": {**f, "Q": f["Q"][kept], "q_labels": f["q_labels"][kept]}}
    hits = fixture_hits(reference)
    pml = outputs["pml_query_index"]
    assert precision_at(hits, 1).mean() == pytest.approx(pml["precision_at_1"], abs=1e-6)
    assert average_precision_at_r(hits).mean() == pytest.approx(pml["mean_average_precision_at_r"], abs=1e-6)
    assert r_precision(hits).mean() == pytest.approx(pml["r_precision"], abs=1e-6)
    assert reciprocal_rank(hits).mean() == pytest.approx(pml["mean_reciprocal_rank"], abs=1e-6)
    for k in (5, 10, 100):
        expected = outputs["gldv2_retrieval"][f"mAP@{k}"]
        assert average_precision_at(hits, k).mean() == pytest.approx(expected, abs=1e-9)
    precisions = [precision_at(hits, k).mean() for k in range(1, 11)]
    assert precisions == pytest.approx(outputs["gldv2_retrieval"]["mP@1..10"], abs=1e-9)
    for k in (1, 5, 10):
        assert recall_at(hits, k).mean() == pytest.approx(outputs["oml"][f"cmc@{k}"], abs=1e-6)
        if k > 1:
            expected = outputs["oml"][f"precision@{k}"]
            assert precision_of_oml(hits, k).mean() == pytest.approx(expected, abs=1e-6)
    uned = outputs["uned_query_index"]
    assert guie_precision(hits).mean() == pytest.approx(uned["mMP@5 (3 decimals)"], abs=6e-4)
    assert average_precision_at(hits, 5).mean() == pytest.approx(uned["mAP@5 (3 decimals)"], abs=6e-4)
    expected = outputs["gpr1200_query_index"]["mAP"]
    assert average_precision(hits).mean() == pytest.approx(expected, abs=1e-9)


def test_other_programs_agree_on_self_retrieval(reference):
    hits = fixture_hits(reference, self_retrieval=True)
    pml, uned = reference["outputs"]["pml_self"], reference["outputs"]["uned_self_throw_first"]
    assert precision_at(hits, 1).mean() == pytest.approx(pml["precision_at_1"], abs=1e-6)
    assert average_precision_at_r(hits).mean() == pytest.approx(pml["mean_average_precision_at_r"], abs=1e-6)
    assert r_precision(hits).mean() == pytest.approx(pml["r_precision"], abs=1e-6)
    short = fixture_hits(reference, self_retrieval=True, depth=hits.relevant.max())
    assert reciprocal_rank(short).mean() == pytest.approx(pml["mean_reciprocal_rank"], abs=1e-6)
    assert recall_at(hits, 1).mean() == pytest.approx(uned["R@1 (3 decimals)"], abs=6e-4)
    assert guie_precision(hits).mean() == pytest.approx(uned["mMP@5 (3 decimals)"], abs=6e-4)
    assert average_precision_at(hits, 5).mean() == pytest.approx(uned["mAP@5 (3 decimals)"], abs=6e-4)


def test_other_programs_agree_on_the_query_kept_in(reference):
    f = reference["fixture"]
    labels = f["x_labels"]
    ranking = knn(f["X"], f["X"], len(labels))
    hits = find_hits(ranking.ids, Truth(labels, labels, np.full(len(labels), -1)))
    expected = reference["outputs"]["gpr1200_self"]
    assert average_precision(hits).mean() == pytest.approx(expected["mAP_query_included"], abs=1e-9)
    assert average_precision(hits)[:5].tolist() == pytest.approx(expected["first5"], abs=1e-9)


def test_a_metric_that_needs_more_results_is_left_out():
    ids, truth = random_hits(seed=3, depth=6, gallery=300)
    names = set(per_query(find_hits(ids, truth)))
    assert names == {"mP@5", "R@1", "R@5", "MRR"}


def test_other_programs_agree_on_a_gallery_of_another_camera(reference):
    # Market-1501: pictures of the same identity and the same camera are junk.
    f, expected = reference["fixture"], reference["outputs"]["market1501"]
    same = f["q_labels"][:, None] == f["x_labels"]
    same_camera = (np.arange(len(f["Q"])) % 2)[:, None] == np.arange(len(f["X"])) % 3
    kept = np.flatnonzero((same & ~same_camera).any(axis=1))
    ids = knn(f["Q"][kept], f["X"], len(f["X"])).ids
    found = np.take_along_axis((same & ~same_camera)[kept], ids, axis=1)
    junk = np.take_along_axis((same & same_camera)[kept], ids, axis=1)
    hits = without_junk(hits_from_mask(found, found.sum(axis=1)), junk)
    assert average_precision(hits).mean() == pytest.approx(expected["mAP"], abs=1e-9)
    rates = [recall_at(hits, k).mean() for k in range(1, 11)]
    assert rates == pytest.approx(expected["cmc1..10"], abs=1e-6)


def test_published_map_at_k_divided_by_all_that_is_relevant(reference):
    case = reference["published"]["tfsim_retrieval"]
    counts = np.array([{0: 10, 1: 3}[label] for label in case["query_labels"]])
    hits = hits_from_mask(np.array(case["match_mask"], dtype=bool), counts)
    assert average_precision(hits).mean() == pytest.approx(case["MapAtK(r={0:10,1:3},k=3)"])
    assert precision_at(hits, 3).mean() == pytest.approx(case["PrecisionAtK(k=3,micro)"])
    groups = np.array(case["query_labels"]).astype(str)
    assert mean_of_groups(precision_at(hits, 3), groups) == pytest.approx(case["PrecisionAtK(k=3,macro)"])
    clipped = case["clip_at_r"]
    hits = hits_from_mask(np.array(clipped["match_mask"], dtype=bool), np.array([4, 3]))
    expected = clipped["MapAtK(r={0:4,1:3},k=4,clip_at_r)"]
    assert average_precision_at_r(hits).mean() == pytest.approx(expected)


def test_published_lists_of_ids(reference):
    case = reference["published"]["oml_retrieval"]["categories_case"]
    query, item = np.array([(q, i) for q, items in enumerate(case["gt_ids"]) for i in items]).T
    hits = find_stated_hits(np.array(case["retrieved_ids"]), query, item)
    assert recall_at(hits, 1).mean() == case["cmc@1"]
    by_kind = group_means(precision_of_oml(hits, 3), case["categories"])
    assert by_kind == pytest.approx({"cat": case["precision@3_cat"], "dog": case["precision@3_dog"]})


def test_an_empty_gallery_and_no_queries_give_no_hits():
    nothing = np.empty(0, dtype=np.int64)
    empty = find_hits(np.full((2, 3), -1), Truth(np.array([0, 1]), nothing, np.array([-1, -1])))
    assert len(empty) == 2 and not len(empty.query) and empty.relevant.tolist() == [0, 0]
    assert recall_at(empty, 3).tolist() == [0, 0]
    unasked = find_hits(np.empty((0, 3), dtype=np.int32), Truth(nothing, np.array([0]), nothing))
    assert len(unasked) == 0 and average_precision(unasked).tolist() == []
