"""k-reciprocal re-ranking against the distances of the authors' program, and on pictures of the gallery."""

import numpy as np
import pytest

from guie.postprocess import vectors
from guie.postprocess.pipeline import Pipeline
from guie.postprocess.reciprocal import KReciprocal
from guie.search.exact import Exact
from guie.types import Side


def index_of(gallery, **settings):
    return Pipeline({"k_reciprocal": KReciprocal(**settings)}, Exact()).index(gallery)


@pytest.mark.parametrize("chunk_bytes", [1000, 16 * 2**20])
@pytest.mark.parametrize("k1, k2, mix", [(20, 6, 0.3), (10, 3, 0.5), (7, 1, 0.0)])
def test_distances_equal_those_of_the_authors_program(
    shared, reference, monkeypatch, k1, k2, mix, chunk_bytes
):
    monkeypatch.setattr(vectors, "CHUNK_BYTES", chunk_bytes)
    file = np.load(shared / "reference" / "synthetic" / "k_reciprocal.npz")
    expected = file[f"k1{k1}_k2{k2}_lambda{str(mix).replace('.', 'p')}"]
    index = index_of(Side(reference["X"]), k1=k1, k2=k2, mix=mix)
    ranking = index.search(Side(reference["Q"]), len(reference["X"]))
    distances = np.full(expected.shape, np.nan)
    np.put_along_axis(distances, ranking.ids.astype(np.int64), -ranking.scores, axis=1)
    np.testing.assert_allclose(distances, expected, atol=2e-6)


def test_few_results_are_the_first_of_all_results(reference):
    index = index_of(Side(reference["X"]))
    some, whole = (index.search(Side(reference["Q"]), k) for k in (10, 235))
    np.testing.assert_array_equal(some.ids, whole.ids[:, :10])
    np.testing.assert_array_equal(some.scores, whole.scores[:, :10])


def test_all_queries_are_asked_for_at_once(gallery):
    assert index_of(gallery).tile is None


def test_a_query_in_the_gallery_is_ranked_as_if_its_picture_were_not_there(gallery):
    own = np.array([5, 60])
    inside = index_of(gallery).search(Side(gallery.vectors[own]), 20, self_ids=own)
    others = np.setdiff1d(np.arange(120), own)
    outside = index_of(Side(gallery.vectors[others])).search(Side(gallery.vectors[own]), 20)
    # the other query is a result here and only a neighbour there
    for row, other in enumerate(own[::-1]):
        kept = inside.ids[row][(inside.ids[row] != other)]
        np.testing.assert_array_equal(kept, others[outside.ids[row]][: len(kept)])
        assert own[row] not in inside.ids[row]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_gallery_smaller_than_its_neighbourhoods_is_ranked(gallery, queries, rows):
    ranking = index_of(Side(gallery.vectors[:rows])).search(queries, 5)
    assert (np.sort(ranking.ids, axis=1)[:, 5 - rows :] == np.arange(rows)).all()
    assert (ranking.ids[:, rows:] == -1).all() and np.isneginf(ranking.scores[:, rows:]).all()


def test_no_queries_have_no_results(gallery):
    assert index_of(gallery).search(Side(np.empty((0, 12), np.float32)), 5).ids.shape == (0, 5)
