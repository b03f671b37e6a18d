"""Re-ranking by local features: scores by hand, inliers one by one, what is kept and what is made again."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guie.errors import UserError
from guie.local import rerank
from guie.local.cache import Cache, key_of
from guie.local.features import shrunk, sift
from guie.local.fusion import fused, inlier_score
from guie.local.learned import Learned
from guie.local.matchers import Sift
from guie.local.rerank import LocalFeatures
from guie.local.verify import NOTHING, Geometry, agreement, verify
from guie.postprocess.pipeline import Pipeline
from guie.postprocess.step import Stage
from guie.recognise.pipeline import Recogniser
from guie.search.exact import Exact
from guie.types import Ranking, Side

sys.path.insert(0, str(Path(__file__).parent))
from scenes import GALLERY, Pictures, scene, sides


def ranking_of(rows=3, k=9):
    r = np.random.default_rng(1)
    ids = np.stack([r.permutation(len(GALLERY))[:k] for _ in range(rows)]).astype(np.int32)
    return Ranking(ids, -np.sort(-r.random((rows, k)).astype(np.float32), axis=1))


def made(tmp_path, **changed):
    return LocalFeatures(**{"matcher": Sift(max_px=240), "path": str(tmp_path / "cache"), **changed})


def test_inlier_scores_are_capped_and_what_was_not_compared_counts_nothing():
    np.testing.assert_allclose(inlier_score(np.array([[-1, 0, 35, 70, 900]])), [[0, 0, 0.5, 1, 1]])


def test_a_fused_ranking_is_the_sum_of_both_scores_and_ties_go_to_the_lower_position():
    ids = np.array([[7, 3, 5, 1, -1]], np.int32)
    scores = np.array([[0.75, 0.5, 0.5, 0.25, -np.inf]], np.float32)
    found = fused(Ranking(ids, scores), np.array([[0, 35, 0, 70, -1]]), weight=0.5)
    np.testing.assert_array_equal(found.ids, [[1, 3, 7, 5, -1]])
    np.testing.assert_allclose(found.scores, [[0.75, 0.75, 0.75, 0.5, -np.inf]])


@pytest.mark.parametrize("workers", [1, 3])
def test_inliers_are_those_of_each_pair_alone(pictures, tmp_path, workers):
    queries, gallery = sides(pictures)
    ids = np.array([[0, 1, 3, 5], [6, 4, 7, -1], [9, 2, 8, 1]], np.int32)
    found = made(tmp_path, workers=workers).inliers(ids, queries, gallery)
    for q, row in enumerate(ids):
        for k, place in enumerate(row):
            name = GALLERY[place]
            if place < 0 or name in ("broken", "missing"):
                assert found[q, k] == (-1 if place < 0 else 0)
                continue
            a, b = (np.array(Image.open(io.BytesIO(pictures[n]))) for n in (f"q{q}", name))
            assert found[q, k] == verify(sift(a, 240), sift(b, 240)).inliers
    same = np.array(
        [[GALLERY[p][-1] == str(q) and GALLERY[p][0] in "ab" for p in row] for q, row in enumerate(ids)]
    )
    assert found[same].min() > found[~same].max()


def test_the_first_results_are_reordered_and_those_behind_stay(pictures, tmp_path):
    queries, gallery = sides(pictures)
    before, step = ranking_of(), made(tmp_path, top=5)
    stage = Stage(gallery, Exact().index(gallery), step.prepare(gallery, Exact().index(gallery)))
    after = step.rerank(before, queries, stage, None)
    inliers = step.inliers(before.ids[:, :5], queries, gallery)
    for q in range(3):
        together = [
            (-(s + min(n, 70) / 70), i)
            for i, s, n in zip(before.ids[q], before.scores[q], inliers[q], strict=False)
        ]
        expected = [i for _, i in sorted(together)] + before.ids[q, 5:].tolist()
        assert after.ids[q].tolist() == expected
    assert (np.diff(after.scores, axis=1) <= 0).all() and step.depth == 5
    np.testing.assert_array_equal(after.scores[:, 5:], before.scores[:, 5:])


def test_what_is_kept_is_not_computed_again_whatever_the_files_are_called(pictures, tmp_path, monkeypatch):
    queries, gallery = sides(pictures)
    ids = ranking_of().ids
    first = made(tmp_path).inliers(ids, queries, gallery)
    renamed = Pictures({f"other/{name}": data for name, data in pictures.items()})
    again = [
        Side(s.vectors, np.array([f"other/{n}" for n in s.files]), picture=renamed)
        for s in (queries, gallery)
    ]
    monkeypatch.setattr(rerank, "decode", None)
    monkeypatch.setattr(rerank, "agreement", None)
    np.testing.assert_array_equal(made(tmp_path).inliers(ids, *again), first)


def test_other_settings_share_features_only_where_they_may(pictures, tmp_path, monkeypatch):
    queries, gallery = sides(pictures)
    ids = ranking_of(1).ids
    made(tmp_path).inliers(ids, queries, gallery)
    monkeypatch.setattr(Sift, "describe", None)
    other = made(tmp_path, matcher=Sift(max_px=240, ratio=0.7), geometry=Geometry(tolerance_px=2.0)).inliers(
        ids, queries, gallery
    )
    assert (other >= 0).all()
    with pytest.raises(TypeError):
        made(tmp_path, matcher=Sift(max_px=200)).inliers(ids, queries, gallery)


def test_a_job_that_was_killed_goes_on_and_ends_as_one_that_was_not(pictures, tmp_path, monkeypatch):
    queries, gallery = sides(pictures)
    ids = ranking_of().ids
    straight = made(tmp_path / "a").inliers(ids, queries, gallery)
    calls = []

    def killed_at_the_tenth(*places, **settings):
        calls.append(places)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return agreement(*places, **settings)

    monkeypatch.setattr(rerank, "agreement", killed_at_the_tenth)
    step = made(tmp_path / "b", workers=1)
    with pytest.raises(KeyboardInterrupt):
        step.inliers(ids, queries, gallery)
    for path in (tmp_path / "b").rglob("*.npz"):  # as a disk that was full leaves it
        path.write_bytes(path.read_bytes()[:100])
        break
    np.testing.assert_array_equal(step.inliers(ids, queries, gallery), straight)
    assert len(calls) < 10 + ids.size


def test_nothing_is_written_where_nothing_is_kept(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    queries, gallery = sides(pictures)
    ids = ranking_of(1, 3).ids
    kept_nowhere = made(tmp_path, path=None).inliers(ids, queries, gallery)
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(
        LocalFeatures(matcher=Sift(max_px=240)).inliers(ids, queries, gallery), kept_nowhere
    )
    assert list((tmp_path / "home" / ".cache" / "guie" / "local").glob("features-*/*/*.npz"))


def test_pictures_that_cannot_be_read_are_named_once(pictures, tmp_path, caplog):
    queries, gallery = sides(pictures)
    step, index = made(tmp_path, top=2), Exact().index(gallery)
    stage = Stage(gallery, index, step.prepare(gallery, index))
    ranking = Ranking(np.array([[5, 7]] * 3, np.int32), np.ones((3, 2), np.float32))
    for _ in range(2):
        step.rerank(ranking, queries, stage, None)
    assert caplog.messages == ["local features: 2 pictures cannot be read, first broken"]


def test_embeddings_without_pictures_are_refused(tmp_path):
    bare = Side(np.ones((2, 3), np.float32))
    with pytest.raises(UserError, match=r"pictures: none, embeddings alone; accepted: a data set"):
        made(tmp_path).inliers(np.zeros((2, 1), np.int32), bare, bare)


def test_a_damaged_file_of_the_cache_is_as_if_it_were_not_there(tmp_path):
    cache, key = Cache(tmp_path, {}, {}), key_of(b"picture")
    assert cache.features(key) is None and cache.inliers(key) == {}
    found = {key_of(b"%d" % i): i for i in range(300)}
    cache.keep_inliers(key, found)
    cache.keep_features(key, {"xy": np.ones((3, 2))})
    assert cache.inliers(key) == found
    np.testing.assert_array_equal(cache.features(key)["xy"], np.ones((3, 2)))
    for path in tmp_path.rglob("*.*"):
        path.write_bytes(path.read_bytes()[:-3])
    assert cache.features(key) is None and cache.inliers(key) == {}


def test_a_picture_is_described_in_the_pixels_it_is_shrunk_to():
    image = np.repeat(np.repeat(scene(0), 4, axis=0), 4, axis=1)
    described = Sift(max_px=240).describe(image)
    np.testing.assert_allclose(described["xy"] * 4, sift(image, 240).xy, rtol=1e-5)
    assert shrunk(image, 240).shape == (240, 240, 3) and described["counts"].dtype == np.uint8


def test_few_places_are_no_agreement():
    assert agreement(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)) == NOTHING


def test_what_an_older_program_found_is_not_taken(tmp_path, monkeypatch):
    key, found = key_of(b"picture"), {key_of(b"other"): 7}
    Cache(tmp_path, {"a": 1}, {}).keep_inliers(key, found)
    assert Cache(tmp_path, {"a": 1}, {}).inliers(key) == found
    monkeypatch.setattr("guie.local.cache.FORMAT", 99)
    assert Cache(tmp_path, {"a": 1}, {}).inliers(key) == {}


@pytest.mark.parametrize(
    "step, message",
    [
        (LocalFeatures(top=0), "top: 0; accepted: 1 or more"),
        (LocalFeatures(workers=-1), "workers: -1; accepted: above 0"),
        (LocalFeatures(geometry=Geometry(trials=0)), "geometry.trials: 0; accepted: above 0"),
        (LocalFeatures(geometry=Geometry(tolerance_px=float("nan"))), "geometry.tolerance_px: nan; accepted"),
    ],
)
def test_settings_by_which_nothing_would_be_found_are_refused(step, message):
    with pytest.raises(UserError, match=rf"^postprocess.a.{message}"):
        Pipeline({"a": step}, Exact())
    with pytest.raises(UserError, match=rf"^recognise.local.{message}"):
        Recogniser(local=step)


@pytest.mark.parametrize("made", [Sift, Learned])
def test_pictures_without_size_or_keypoints_are_refused(made):
    for name in ("max_px", "max_keypoints", "ratio"):
        with pytest.raises(UserError, match=rf"^matcher.{name}: 0; accepted: above 0$"):
            made(**{name: 0})
