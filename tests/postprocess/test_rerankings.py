"""Diffusion, EGT and SuperGlobal against slow programs over dense matrices and plain lists."""

import numpy as np
import pytest

from guie.postprocess.diffusion import Diffusion
from guie.postprocess.pipeline import Pipeline
from guie.postprocess.step import followed_by
from guie.postprocess.superglobal import SuperGlobal
from guie.postprocess.traversal import EGT
from guie.search.exact import Exact
from guie.types import Ranking, Side

RERANKINGS = [
    Diffusion(neighbours=15, truncate=60),
    EGT(neighbours=12, threshold=0.6),
    SuperGlobal(shortlist=30, neighbours=4),
]


def searched(step, gallery, queries, k, self_ids=None):
    return Pipeline({"step": step}, Exact()).index(gallery).search(queries, k, self_ids=self_ids)


def by_similarity(vector, rows, leave_out=-1):
    scores = rows.astype(np.float64) @ vector.astype(np.float64)
    order = sorted((i for i in range(len(rows)) if i != leave_out), key=lambda i: (-scores[i], i))
    return order, scores


def dense_graph(rows, k, gamma, alpha):
    """Return I - alpha S (N,N) of the mutual graph, by its definition."""
    lists = [by_similarity(row, rows, i)[0][:k] for i, row in enumerate(rows)]
    weights = np.zeros((len(rows), len(rows)))
    for i, near in enumerate(lists):
        for j in near:
            if i in lists[j]:
                weights[i, j] = max(float(rows[i].astype(np.float64) @ rows[j]), 0) ** gamma
    scale = 1 / np.sqrt(np.maximum(weights.sum(axis=1), 1e-12))
    return np.eye(len(rows)) - alpha * scale[:, None] * weights * scale


def conjugate_gradients(matrix, start, iterations, tolerance):
    x, r = np.zeros(len(start)), start.copy()
    p, limit = r.copy(), tolerance * np.linalg.norm(start)
    for _ in range(iterations):
        if np.linalg.norm(r) <= limit:
            break
        step = r @ r / (p @ matrix @ p)
        x, old = x + step * p, r
        r = r - step * (matrix @ p)
        p = r + (r @ r) / (old @ old) * p
    return x


@pytest.mark.parametrize("truncate, iterations", [(60, 20), (1000, 500)])
def test_diffusion_equals_conjugate_gradients_on_a_dense_graph(gallery, queries, truncate, iterations):
    step = Diffusion(neighbours=15, truncate=truncate, iterations=iterations)
    found = searched(step, gallery, queries, 60)
    whole = dense_graph(gallery.vectors, 15, 3, 0.99)
    for row, vector in enumerate(queries.vectors):
        order, scores = by_similarity(vector, gallery.vectors)
        inside = np.array(order[:truncate])
        start = np.zeros(len(inside))
        start[:10] = np.maximum(scores[inside[:10]], 0) ** 3
        part = whole[np.ix_(inside, inside)]
        reached = 0.01 * conjugate_gradients(part, start, iterations, 1e-6)
        np.testing.assert_allclose(found.scores[row], np.sort(reached)[::-1][:60], rtol=2e-3, atol=1e-6)
        if iterations == 500:
            np.testing.assert_allclose(reached, 0.01 * np.linalg.solve(part, start), rtol=1e-3, atol=1e-6)
        value = dict(zip(inside.tolist(), reached.tolist(), strict=True))
        np.testing.assert_allclose(
            [value[i] for i in found.ids[row].tolist()], found.scores[row], rtol=2e-3, atol=1e-6
        )


def test_diffusion_leaves_out_the_picture_of_the_query_alone(gallery):
    own = np.array([4, 77])
    found = searched(Diffusion(neighbours=15), gallery, Side(gallery.vectors[own]), 119, own)
    for row, place in enumerate(own):
        assert sorted(found.ids[row].tolist()) == [i for i in range(120) if i != place]


def traversed(vector, rows, k, threshold, wanted):
    """Return the walk of Chang et al., algorithm 1, with a list searched through in the place of a heap."""
    graph = [
        [(j, s[j]) for j in order[:k]] for order, s in (by_similarity(r, rows, i) for i, r in enumerate(rows))
    ]
    order, scores = by_similarity(vector, rows)
    offers, taken, weakest = {}, [], []
    explore = [[(j, scores[j]) for j in order[:k]]]
    while len(taken) < wanted:
        for edges in explore:
            for j, weight in edges:
                if j not in taken:
                    offers[j] = max(offers.get(j, -np.inf), weight)
        if not offers:
            break
        explore = []
        while offers and len(taken) < wanted and (not explore or max(offers.values()) > threshold):
            best = max(offers, key=offers.get)
            weakest.append(min([offers.pop(best), *weakest[-1:]]))
            taken.append(best)
            explore.append(graph[best])
    return taken, weakest


@pytest.mark.parametrize("threshold", [-1.0, 0.6, 0.9, 2.0])
def test_egt_equals_the_algorithm_over_plain_lists(gallery, queries, threshold):
    found = searched(EGT(neighbours=12, threshold=threshold), gallery, queries, 40)
    for row, vector in enumerate(queries.vectors):
        taken, weakest = traversed(vector, gallery.vectors, 12, threshold, 40)
        assert found.ids[row, : len(taken)].tolist() == taken
        np.testing.assert_allclose(found.scores[row, : len(taken)], weakest, atol=1e-6)


def test_what_a_walk_does_not_reach_follows_in_its_old_order():
    islands = np.kron(np.eye(2), np.ones((3, 1))).astype(np.float32)
    islands[:, 0] += np.array([0, 1, 2, 3, 4, 5]) * 1e-3
    query = Side(np.array([[1.0, 0.5]], np.float32))
    found = searched(EGT(neighbours=2, threshold=0.1), Side(islands), query, 6)
    assert found.ids.tolist() == [[2, 1, 0, 5, 4, 3]]
    assert (np.diff(found.scores) <= 0).all()


def refined_scores(vector, rows, neighbours, beta):
    """Return the scores of SuperGlobal for results `rows` of one query, result by result."""
    refined = []
    for i, row in enumerate(rows):
        order, scores = by_similarity(row, rows, i)
        near = order[:neighbours]
        total = row + sum(beta * scores[j] * rows[j] for j in near)
        refined.append(total / (1 + sum(beta * scores[j] for j in near)))
    refined = np.array(refined)
    first = refined @ vector
    best = sorted(range(len(rows)), key=lambda i: -first[i])[: neighbours + 1]
    return (first + refined @ np.max([refined[i] for i in best], axis=0)) / 2


def test_superglobal_equals_its_definition_result_by_result(gallery, queries):
    found = searched(SuperGlobal(shortlist=30, neighbours=4), gallery, queries, 50)
    for row, vector in enumerate(queries.vectors.astype(np.float64)):
        order, _ = by_similarity(vector, gallery.vectors)
        head = np.array(order[:30])
        scores = refined_scores(vector, gallery.vectors[head].astype(np.float64), 4, 0.15)
        np.testing.assert_array_equal(found.ids[row, :30], head[np.argsort(-scores)])
        np.testing.assert_allclose(found.scores[row, :30], np.sort(scores)[::-1], atol=1e-6)
        assert found.ids[row, 30:].tolist() == order[30:50]


@pytest.mark.parametrize("step", RERANKINGS)
def test_scores_fall_along_every_row(step, gallery, queries):
    found = searched(step, gallery, queries, 100)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert (np.sort(found.ids, axis=1)[:, :-1] != np.sort(found.ids, axis=1)[:, 1:]).all()


@pytest.mark.parametrize("step", RERANKINGS)
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_gallery_of_next_to_nothing_is_ranked(step, gallery, queries, rows):
    found = searched(step, Side(gallery.vectors[:rows]), queries, 4)
    assert (np.sort(found.ids, axis=1)[:, 4 - rows :] == np.arange(rows)).all()
    assert (found.ids[:, rows:] == -1).all() and np.isneginf(found.scores[:, rows:]).all()


@pytest.mark.parametrize("step", RERANKINGS)
def test_a_query_never_finds_its_own_picture(step, gallery):
    own = np.arange(0, 120, 7)
    found = searched(step, gallery, Side(gallery.vectors[own]), 30, own)
    assert not (found.ids == own[:, None]).any() and (found.ids >= 0).all()


@pytest.mark.parametrize("step", RERANKINGS)
def test_identical_pictures_are_all_kept(step, gallery):
    twice = Side(np.repeat(gallery.vectors[:20], 3, axis=0))
    found = searched(step, twice, Side(twice.vectors[:4]), 60, np.arange(4))
    assert [sorted(set(row)) for row in found.ids.tolist()] == [
        [-1, *(i for i in range(60) if i != own)] for own in range(4)
    ]


def test_a_score_behind_a_head_is_never_above_it():
    head = Ranking(np.array([[4, 2]]), np.array([[0.9, -0.5]]))
    old = Ranking(np.array([[2, 4, 1, -1]]), np.array([[0.8, 0.7, 0.6, -np.inf]]))
    found = followed_by(head, old)
    assert found.ids.tolist() == [[4, 2, 1, -1]]
    np.testing.assert_allclose(found.scores, [[0.9, -0.5, -0.5, -np.inf]])
