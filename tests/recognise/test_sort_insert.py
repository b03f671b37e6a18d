"""Sort and insert: a hand-worked example, a slow loop, and the step among training vectors with labels."""

import numpy as np
import pytest

from guie.errors import UserError
from guie.postprocess.pipeline import Pipeline
from guie.recognise.sort_insert import Recognised, SortInsert, sort_and_insert
from guie.search.exact import Exact, knn
from guie.types import Ranking, Side


def of(rows, k):
    """A ranking of the rows' ids with scores that fall."""
    ids = np.full((len(rows), k), -1, np.int32)
    scores = np.full((len(rows), k), -np.inf, np.float32)
    for row, found in enumerate(rows):
        ids[row, : len(found)] = found
        scores[row, : len(found)] = np.linspace(0.9, 0.1, len(found))
    return Ranking(ids, scores)


GALLERY = Recognised(
    np.array([1, 1, 2, 1, 2, 1, -1, 1]), np.array([0.5, 0.9, 0.9, 0.2, 0.8, 0.5, 0, 0.5], np.float32)
)


@pytest.mark.parametrize(
    "threshold,expected",
    [(0.6, [[5, 1, 0, 7, 2], [4, 6, 0, -1, -1]]), (None, [[5, 1, 0, 7, 3], [4, 2, 6, 0, -1]])],
)
def test_positives_come_first_then_the_best_of_the_rest_of_the_label(threshold, expected):
    ranking = of([[2, 5, 4, 1], [6, 4, 0]], 5)
    queries = Recognised(np.array([1, 2]), np.array([0.3, -0.4], np.float32))
    got = sort_and_insert(ranking, queries, GALLERY, threshold=threshold)
    assert got.ids.tolist() == expected  # 0.9 - 0.4 is not above the threshold
    finite = np.where(got.ids >= 0, got.scores, -9)
    assert (np.diff(finite, axis=1) <= 0).all() and np.isneginf(got.scores[got.ids < 0]).all()


def test_random_lists_are_those_of_a_slow_loop():
    r = np.random.default_rng(0)
    gallery = Recognised(r.integers(-1, 5, 60), (r.integers(0, 9, 60) / 8).astype(np.float32))
    queries = Recognised(r.integers(-1, 5, 25), (r.integers(0, 9, 25) / 8).astype(np.float32))
    ranking = of([r.permutation(60)[: r.integers(0, 13)] for _ in range(25)], 12)
    self_ids = r.integers(-1, 60, 25)
    for q in range(25):  # a query's own picture is not among its results
        ranking.ids[q] = np.where(ranking.ids[q] == self_ids[q], -1, ranking.ids[q])
        order = np.argsort(ranking.ids[q] < 0, kind="stable")
        ranking.ids[q], ranking.scores[q] = (
            ranking.ids[q][order],
            np.where(ranking.ids[q][order] < 0, -np.inf, ranking.scores[q]),
        )
    got = sort_and_insert(ranking, queries, gallery, threshold=0.75, self_ids=self_ids)
    for q in range(25):
        old = [i for i in ranking.ids[q].tolist() if i >= 0]
        label = queries.labels[q]
        mine = [i for i in range(60) if gallery.labels[i] == label and i not in old and i != self_ids[q]]
        mine = [i for i in mine if gallery.scores[i] + queries.scores[q] > 0.75]
        mine.sort(key=lambda i: (-gallery.scores[i], i))
        positive = [i for i in old if gallery.labels[i] == label]
        whole = positive + mine + [i for i in old if i not in positive] if label >= 0 else old
        assert [i for i in got.ids[q].tolist() if i >= 0] == whole[:12]


def test_the_step_names_pictures_by_its_training_vectors_and_finds_what_similarity_does_not():
    r = np.random.default_rng(1)
    centres = r.standard_normal((3, 16))
    centres[1] += 2 * centres[0]  # two looks of one landmark, far from each other, have training pictures

    def near(*which):
        v = centres[list(which)] + 0.05 * r.standard_normal((len(which), 16))
        return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)

    bank = Side(
        near(0, 0, 0, 2, 2, 2, 1, 1, 1), labels=np.array(["x"] * 3 + ["y"] * 3 + ["x"] * 3, dtype=object)
    )
    gallery = Side(near(2, 1, 0, 1))
    step = SortInsert()
    pipeline = Pipeline({"sort": step}, Exact())
    with pytest.raises(UserError, match=r"postprocess.sort: not fitted"):
        pipeline.index(gallery)
    pipeline.fit(bank)
    queries = Side(near(0))
    assert knn(queries.vectors, gallery.vectors, 4).ids[0, 0] == 2
    got = pipeline.index(gallery).search(queries, 4)
    assert got.ids[0, 0] == 2 and set(got.ids[0, :3].tolist()) == {1, 2, 3} and got.ids[0, 3] == 0
    again = SortInsert()
    again.load(step.state())
    kept = again.prepare(gallery, Exact().index(gallery))
    np.testing.assert_array_equal(kept.labels, [1, 0, 0, 0])
    nearest = knn(gallery.vectors, bank.vectors, 3).scores
    np.testing.assert_allclose(kept.scores, nearest.mean(axis=1), rtol=1e-6)


def test_what_it_cannot_do_is_one_line():
    with pytest.raises(UserError, match=r"^postprocess.si.neighbours: 0; accepted: 1 or more$"):
        Pipeline({"si": SortInsert(neighbours=0)}, Exact())
    with pytest.raises(UserError, match=r"^bank: no labels; accepted: training vectors with labels$"):
        SortInsert().fit(Side(np.ones((2, 2))))
