"""Exact search against a full sort in float64, with ties, self-exclusion and small galleries."""

import tracemalloc

import numpy as np
import pytest

from guie.errors import UserError
from guie.search import engines, exact
from guie.types import Side


@pytest.fixture(params=["faiss", "numpy", "torch"])
def engine(request, monkeypatch):
    """Run a test with faiss, as on a machine without it, and as a GPU would (in several blocks)."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
        monkeypatch.setattr(engines, "WITHOUT_FAISS", 0)
    elif request.param == "numpy":
        monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    else:
        torch = pytest.importorskip("torch")
        monkeypatch.setattr(engines, "GPU_BLOCK", 200)
        by_torch = lambda tile, gallery, k: engines.by_torch(tile, torch.from_numpy(gallery), k)  # noqa: E731
        monkeypatch.setattr(engines, "by_numpy", by_torch)
        monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)


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


def near_ties(rows, dim, seed):
    """Return unit vectors of which a third are equal and a third are one rounding apart."""
    r = np.random.default_rng(seed)
    vectors = r.standard_normal((rows, dim), dtype=np.float32)
    vectors[::3] = vectors[r.integers(0, 5, len(vectors[::3])) * 3 % rows]
    vectors[1::3] = np.nextafter(vectors[0], r.choice([-9, 9], (len(vectors[1::3]), 1))).astype(np.float32)
    r.shuffle(vectors)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dim", [1, 3, 16, 65])
@pytest.mark.parametrize("k", [1, 7, 500])
def test_every_engine_and_tile_gives_the_ranking_of_the_same_sums_bit_for_bit(dim, k):
    gallery, queries = near_ties(1311, dim, 0), near_ties(53, dim, 1)
    sums = np.array([[np.einsum("d,d->", query, row) for row in gallery] for query in queries])
    places = np.broadcast_to(np.arange(len(gallery)), sums.shape)
    order = np.lexsort((places, -sums), axis=1)[:, :k]
    for memory_mib in (0.01, 16):
        ranking = exact.knn(queries, gallery, k, memory_mib=memory_mib)
        np.testing.assert_array_equal(ranking.ids, order)
        np.testing.assert_array_equal(ranking.scores, np.take_along_axis(sums, order, axis=1))


@pytest.mark.usefixtures("engine")
def test_one_query_at_a_time_is_answered_as_all_at_once():
    gallery = near_ties(400, 24, 2)
    index = exact.Exact().index(Side(gallery))
    together = index.search(Side(gallery[:40]), 9)
    alone = [index.search(Side(gallery[row : row + 1]), 9) for row in range(40)]
    np.testing.assert_array_equal(np.concatenate([one.ids for one in alone]), together.ids)
    np.testing.assert_array_equal(np.concatenate([one.scores for one in alone]), together.scores)


@pytest.mark.usefixtures("engine")
def test_a_gallery_of_one_vector_over_and_over_is_ranked_by_position():
    gallery = np.full((700, 8), 8**-0.5, dtype=np.float32)
    ranking = exact.knn(gallery, gallery, 3, self_ids=np.arange(700))
    assert ranking.ids[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert (ranking.ids[4:] == [0, 1, 2]).all()


@pytest.mark.usefixtures("engine")
def test_what_is_not_a_number_is_never_found_and_finds_nothing():
    gallery, queries = near_ties(300, 8, 3), near_ties(5, 8, 4)
    gallery[[7, 8]], queries[2], queries[3] = np.nan, np.nan, 0
    ranking = exact.knn(queries, gallery, 300, self_ids=np.array([-1, 4, -1, 9, 7]))
    assert not np.isin([7, 8], ranking.ids).any()
    assert (ranking.ids >= 0).sum(axis=1).tolist() == [298, 297, 0, 297, 298]
    few = exact.knn(queries, gallery, 3)
    assert (few.ids[2] == -1).all() and few.ids[3].tolist() == [0, 1, 2]


def test_a_gpu_is_asked_for_only_where_there_is_one():
    with pytest.raises(UserError, match="memory_mib: 0; accepted: above 0"):
        exact.Exact(memory_mib=0)
    with pytest.raises(UserError, match=r"search.device: 'tpu'; accepted: cpu, cuda"):
        exact.Exact(device="tpu")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"'cuda', but torch finds no GPU; accepted here: cpu"):
            exact.Exact(device="cuda")


def test_a_whole_gallery_is_ranked_without_a_copy_of_its_vectors():
    gallery = near_ties(30_000, 64, 0)
    index = exact.Exact(memory_mib=1).index(Side(gallery))
    index.search(Side(gallery[:1]), 10)
    tracemalloc.start()
    ranking = index.search(Side(gallery[:2]), len(gallery))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < gallery.nbytes
    sums = np.einsum("nd,d->n", gallery, gallery[1])
    np.testing.assert_array_equal(ranking.scores[1], -np.sort(-sums))


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
    assert index.tile == exact.tile_rows(109, 0.5)
    found = [
        index.search(Side(gallery[rows]), 5, self_ids=rows).ids
        for rows in np.array_split(self_ids, len(gallery) // index.tile + 1)
    ]
    assert np.concatenate(found).tolist() == sorted_fully(gallery, gallery, 5, self_ids)
