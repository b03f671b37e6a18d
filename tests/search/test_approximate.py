"""Approximate indexes: exact where they look at everything; their recall is measured."""

import sys

import numpy as np
import pytest

from guie.errors import UserError
from guie.search.approximate import HNSW, IVF, Recall
from guie.search.exact import Exact, nobody
from guie.types import Side

faiss = pytest.importorskip("faiss")


def unit(rows, dim, seed):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def counted_by_sets(found, wanted):
    pairs = zip(found.ids, wanted.ids, strict=True)
    return np.mean([len(set(mine) & set(theirs)) / len(theirs) for mine, theirs in pairs])


@pytest.mark.parametrize("search", [IVF(probes=10**6), HNSW(depth=900)])
def test_an_index_that_looks_at_everything_answers_as_the_exact_search(search):
    gallery = np.repeat(unit(300, 8, 0), 3, axis=0)
    rows = np.arange(0, 900, 7)
    queries = Side(gallery[rows])
    for self_ids in (None, rows):
        found = search.index(Side(gallery)).search(queries, 6, self_ids=self_ids)
        wanted = Exact().index(Side(gallery)).search(queries, 6, self_ids=self_ids)
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_array_equal(found.scores, wanted.scores)


@pytest.mark.parametrize("search", [IVF(probes=2, check_every=1), HNSW(depth=4, links=4, check_every=1)])
def test_the_recall_reported_is_the_share_of_exact_neighbours_found(search):
    gallery, queries = unit(3000, 16, 1), Side(unit(150, 16, 2))
    found = search.index(Side(gallery)).search(queries, 10)
    recall = counted_by_sets(found, Exact().index(Side(gallery)).search(queries, 10))
    facts = search.facts()
    assert facts["recall@10"] == pytest.approx(recall) and 0.05 < recall < 0.999
    assert facts["recall@10_queries"] == 150


def test_recall_is_sampled_evenly_over_calls_and_kept_apart_by_depth():
    search = IVF(check_every=10)
    index = search.index(Side(unit(500, 4, 3)))
    for query in unit(25, 4, 4):
        index.search(Side(query[None]), 3)
    index.search(Side(unit(10, 4, 5)), 7)
    facts = search.facts()
    assert facts["recall@3_queries"] == 3 and facts["recall@7_queries"] == 1


def test_a_neighbour_of_equal_score_is_no_miss():
    gallery = np.repeat(unit(2, 4, 6), 50, axis=0)
    exact, recall = Exact().index(Side(gallery)), Recall(every=1)
    ranking = exact.search(Side(gallery[:1]), 5)
    recall.add(type(ranking)(ranking.ids + 20, ranking.scores), gallery[:1], None, exact)
    recall.add(nobody(1, 5), gallery[:1], None, exact)
    assert recall.facts() == {"recall@5": 0.5, "recall@5_queries": 2}


@pytest.mark.parametrize("search", [IVF(), HNSW()])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_galleries_of_a_few_rows_are_searched_all_the_same(search, rows):
    found = search.index(Side(unit(rows, 4, 7))).search(Side(unit(3, 4, 8)), 9)
    assert ((found.ids >= 0).sum(axis=1) == rows).all()


def test_lists_are_never_more_than_faiss_can_learn(capfd):
    search = IVF(lists=1000, probes=1000)
    found = search.index(Side(unit(400, 4, 9))).search(Side(unit(3, 4, 8)), 400)
    assert (found.ids >= 0).all()
    assert "WARNING" not in capfd.readouterr().err


@pytest.mark.parametrize("search", [IVF, HNSW])
def test_without_faiss_the_cure_is_named_before_there_is_a_gallery(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        UserError, match=r"search: \w+ needs faiss: pip install 'guie\[cpu\]', or search=exact"
    ):
        search()


def test_what_a_search_does_not_take_is_refused():
    for make, name, value, least in (
        (HNSW, "check_every", 0, 1),
        (HNSW, "links", 1, 2),
        (HNSW, "depth", 0, 1),
        (HNSW, "build_depth", -1, 1),
        (IVF, "probes", 0, 1),
        (IVF, "lists", -1, 1),
    ):
        with pytest.raises(UserError, match=rf"search.{name}: {value}; accepted: {least} or more"):
            make(**{name: value})
    with pytest.raises(UserError, match=r"search.device: 'tpu'; accepted: cpu, cuda"):
        IVF(device="tpu")
    with pytest.raises(UserError, match=r"search.device: 'cuda' needs a GPU and faiss built for it"):
        IVF(device="cuda")
