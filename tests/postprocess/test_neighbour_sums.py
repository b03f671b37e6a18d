"""Query expansion, DBA, negative subtraction and score normalisation against loops in float64."""

import numpy as np
import pytest

from guie.errors import UserError
from guie.postprocess import vectors
from guie.postprocess.expansion import DBA, AlphaQE
from guie.postprocess.negatives import NegativeSubtraction, ScoreNormalisation
from guie.postprocess.pipeline import Pipeline
from guie.postprocess.step import Stage
from guie.search.exact import Exact
from guie.types import Side


@pytest.fixture(params=[300, 16 * 2**20], autouse=True)
def _in_small_and_large_chunks(request, monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK_BYTES", request.param)


def unit(vector):
    return vector / np.linalg.norm(vector)


def nearest(vector, rows, k, leave_out=None):
    """Return [(similarity, row)] of the k best by a full sort."""
    found = [(float(np.dot(row, vector)), i) for i, row in enumerate(rows.astype(np.float64))]
    return sorted((pair for pair in found if pair[1] != leave_out), key=lambda pair: (-pair[0], pair[1]))[:k]


def summed(start, found, rows, alpha):
    total = np.array(start, dtype=np.float64)
    for similarity, i in found:
        total += max(similarity, 0) ** alpha * rows[i].astype(np.float64)
    return unit(total)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_query_expansion_adds_neighbours_by_similarity_to_a_power(gallery, queries, alpha):
    stage = Stage(gallery, Exact().index(gallery))
    found = AlphaQE(7, alpha).of_queries(queries, stage, None).vectors
    for vector, expanded in zip(queries.vectors.astype(np.float64), found, strict=True):
        by_hand = summed(vector, nearest(vector, gallery.vectors, 7), gallery.vectors, alpha)
        np.testing.assert_allclose(expanded, by_hand, atol=1e-6)


def test_a_query_in_the_gallery_is_not_expanded_by_itself(gallery):
    own = np.array([3, -1, 50])
    stage = Stage(gallery, Exact().index(gallery))
    queries = Side(gallery.vectors[[3, 20, 50]])
    found = AlphaQE(5).of_queries(queries, stage, own).vectors
    for row, place in enumerate(own):
        vector = queries.vectors[row].astype(np.float64)
        by_hand = summed(vector, nearest(vector, gallery.vectors, 5, place), gallery.vectors, 3)
        np.testing.assert_allclose(found[row], by_hand, atol=1e-6)


def test_dba_counts_a_vector_among_its_own_neighbours(gallery):
    found = DBA(6, 3.0).of_gallery(Stage(gallery, Exact(memory_mib=0.01).index(gallery))).vectors
    for vector, moved in zip(gallery.vectors.astype(np.float64), found, strict=True):
        by_hand = summed(np.zeros(12), nearest(vector, gallery.vectors, 6), gallery.vectors, 3)
        np.testing.assert_allclose(moved, by_hand, atol=1e-6)


def test_negative_subtraction_takes_the_mean_of_smoothed_negatives_from_both_sides(bank, gallery):
    step = NegativeSubtraction(neighbours=4, beta=0.35, smoothing=10, alpha=3.0)
    step.fit(bank)
    rows = bank.vectors
    smooth = np.stack([summed(np.zeros(12), nearest(row, rows, 10), rows, 3) for row in rows])
    np.testing.assert_allclose(step.state()["bank"], smooth, atol=1e-6)
    for role in ("query", "gallery"):
        found = step.apply(gallery.vectors, role)
        for vector, moved in zip(gallery.vectors.astype(np.float64), found, strict=True):
            mean = np.mean([smooth[i] for _, i in nearest(vector, smooth, 4)], axis=0)
            np.testing.assert_allclose(moved, unit(vector - 0.35 * mean), atol=2e-6)


def test_without_smoothing_the_bank_is_the_training_vectors(bank):
    step = NegativeSubtraction(smoothing=0)
    step.fit(bank)
    np.testing.assert_array_equal(step.state()["bank"], bank.vectors)


def test_a_bank_smaller_than_the_neighbourhood_gives_the_mean_of_all(bank, queries):
    small = Side(bank.vectors[:3])
    step = NegativeSubtraction(neighbours=10, smoothing=0)
    step.fit(small)
    mean = small.vectors.mean(axis=0)
    expected = np.stack([unit(vector - 0.35 * mean) for vector in queries.vectors])
    np.testing.assert_allclose(step.apply(queries.vectors, "query"), expected, atol=1e-6)


@pytest.mark.parametrize("rows", [2, 200])
def test_normalised_scores_come_out_of_an_ordinary_search(bank, gallery, queries, rows):
    step = ScoreNormalisation(neighbours=3, beta=0.8)
    small = Side(bank.vectors[:rows])
    pipeline = Pipeline({"score_normalisation": step}, Exact())
    pipeline.fit(small)
    plain = Exact().index(gallery).search(queries, 8)
    found = pipeline.index(gallery).search(queries, 8)
    np.testing.assert_array_equal(found.ids, plain.ids)
    for row, vector in enumerate(queries.vectors.astype(np.float64)):
        best = [similarity for similarity, _ in nearest(vector, small.vectors, 3)]
        np.testing.assert_allclose(found.scores[row], plain.scores[row] - 0.8 * np.mean(best), atol=1e-6)


@pytest.mark.parametrize("step", [NegativeSubtraction(), ScoreNormalisation()])
def test_an_empty_bank_is_refused_and_nothing_is_mapped_to_nothing(step, bank):
    with pytest.raises(UserError, match="bank: 0 training vectors; accepted: 1 or more"):
        step.fit(Side(np.empty((0, 12), np.float32)))
    step.fit(bank)
    assert len(step.apply(np.empty((0, 12), np.float32), "query")) == 0
