"""Exact search against a full sort in float64, with ties, self-exclusion and small galleries."""

import numpy as np
import pytest

from guie.search import exact
from guie.types import Side


@pytest.fixture(params=["faiss", "numpy"])
def engine(request, monkeypatch):
    """Run a test with faiss and as on a machine without it."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
        monkeypatch.setattr(exact, "WITHOUT_FAISS", 0)
    else:
        monkeypatch.setattr(exact.importlib.util, "find_spec", lambda name: None)


def whole_numbers(rows, dim, seed, high=3):
    """Return vectors whose inner products are exact in float32, so that ties are real ties."""
    return np.random.default_rng(seed).integers(-high, high + 1, size=(rows, dim)).astype(np.float32)


def sorted_fully(queries, gallery, k, self_ids=None):
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    rows = []
    for q, row in enumerate(scores):
        others = [i for i in range(len(gallery)) if self_ids is None or i != self_ids[q]]
        rows.append(sorted(others, key=lambda i: (-row[i], i))[:k])
    return rows


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("memory_mib", [0.01, 16])
def test_neighbours_equal_a_full_sort_with_ties_by_lower_id(memory_mib):
    queries, gallery = whole_numbers(70, 6, 0), whole_numbers(2500, 6, 1)
    ranking = exact.knn(queries, gallery, 9, memory_mib=memory_mib)
    assert ranking.ids.tolist() == sorted_fully(queries, gallery, 9)
    expected = np.take_along_axis(queries @ gallery.T, ranking.ids, axis=1)
    np.testing.assert_array_equal(ranking.scores, expected)
    assert ranking.ids.dtype == np.int32 and ranking.scores.dtype == np.float32


@pytest.mark.usefixtures("engine")
def test_the_query_itself_is_left_out_even_among_its_duplicates():
    gallery = np.repeat(whole_numbers(40, 5, 2), 6, axis=0)
    self_ids = np.arange(len(gallery))
    ranking = exact.knn(gallery, gallery, 7, self_ids=self_ids)
    assert ranking.ids.tolist() == sorted_fully(gallery, gallery, 7, self_ids)


@pytest.mark.usefixtures("engine")
def test_only_queries_that_are_in_the_gallery_lose_a_neighbour():
    gallery = whole_numbers(4, 3, 4)
    ranking = exact.knn(gallery[:2], gallery, 4, self_ids=np.array([-1, 1]))
    assert -1 not in ranking.ids[0] and set(ranking.ids[1]) == {0, 2, 3, -1}
    assert ranking.scores[1, -1] == -np.inf


@pytest.mark.usefixtures("engine")
def test_a_small_gallery_leaves_places_empty():
    ranking = exact.knn(whole_numbers(3, 4, 5), whole_numbers(2, 4, 6), 5)
    assert (ranking.ids[:, 2:] == -1).all() and (ranking.ids[:, :2] >= 0).all()
    empty = exact.knn(whole_numbers(3, 4, 5), whole_numbers(0, 4, 6), 5)
    assert (empty.ids == -1).all()
    alone = exact.knn(whole_numbers(1, 4, 5), whole_numbers(1, 4, 5), 2, self_ids=np.array([0]))
    assert alone.ids.tolist() == [[-1, -1]]


def test_faiss_and_numpy_return_the_same_neighbours(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(exact, "WITHOUT_FAISS", 0)
    r = np.random.default_rng(7)
    queries, gallery = (r.standard_normal((n, 16)).astype(np.float32) for n in (50, 3000))
    with_faiss = exact.knn(queries, gallery, 20)
    monkeypatch.setattr(exact.importlib.util, "find_spec", lambda name: None)
    without = exact.knn(queries, gallery, 20)
    np.testing.assert_array_equal(with_faiss.ids, without.ids)
    np.testing.assert_allclose(with_faiss.scores, without.scores, rtol=1e-5)


def test_the_memory_budget_sets_the_tile():
    assert exact.tile_rows(100, 1) < exact.tile_rows(100, 8) <= 4096
    assert exact.tile_rows(100, 0.001) == 16


@pytest.mark.parametrize(
    "queries, gallery, k, self_ids, message",
    [
        (np.zeros((2, 3)), np.zeros((4, 5)), 1, None, r"queries \(2, 3\) and gallery \(4, 5\)"),
        (np.zeros((2, 3)), np.zeros((4, 3)), 0, None, "k: 0; expected at least 1"),
        (np.zeros((2, 3)), np.zeros((4, 3)), 1, np.zeros(3, int), "self_ids: 3 for 2 queries"),
    ],
)
def test_shapes_that_do_not_fit_are_named(queries, gallery, k, self_ids, message):
    with pytest.raises(ValueError, match=message):
        exact.knn(queries, gallery, k, self_ids=self_ids)


@pytest.mark.usefixtures("engine")
def test_an_index_answers_as_the_function_does_tile_by_tile():
    gallery = whole_numbers(900, 4, 8)
    self_ids = np.arange(len(gallery))
    index = exact.Exact(memory_mib=0.5).index(Side(gallery))
    assert index.tile == exact.tile_rows(102, 0.5)
    found = [
        index.search(Side(gallery[rows]), 5, self_ids=rows).ids
        for rows in np.array_split(self_ids, len(gallery) // index.tile + 1)
    ]
    assert np.concatenate(found).tolist() == sorted_fully(gallery, gallery, 5, self_ids)
