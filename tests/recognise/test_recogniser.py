"""The recognition systems end to end: system E0 by its loop, several models by hand, what is refused."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from guie.build import build
from guie.errors import UserError
from guie.local.matchers import Sift
from guie.local.rerank import LocalFeatures
from guie.recognise.nothing import Penalty
from guie.recognise.pipeline import Recogniser, View
from guie.types import Side

sys.path.insert(0, str(Path(__file__).parents[1] / "local"))
from scenes import TURN, Pictures, png, scene, seen_again

CONFIGS = Path(__file__).parents[2] / "configs" / "recognise"


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def side(seed, rows, name, labels=None, picture=None):
    vectors = unit(np.random.default_rng(seed).standard_normal((rows, 24)))
    files = np.array([f"{name}{i}" for i in range(rows)], dtype=object)
    return Side(vectors, files, None if labels is None else np.array(labels, dtype=object), picture)


def test_system_e0_is_the_loop_of_its_authors(tmp_path):
    pictures = Pictures({f"q{i}": png(scene(i % 4)) for i in range(5)})
    pictures |= {f"g{i}": png(seen_again(scene(i % 4), TURN)) for i in range(8)}
    r = np.random.default_rng(0)
    centres = r.standard_normal((4, 24))
    asked, known = (unit(centres[np.arange(n) % 4] + r.standard_normal((n, 24))) for n in (5, 8))
    queries = Side(asked, np.array([f"q{i}" for i in range(5)]), picture=Pictures(pictures))
    files, labels = [f"g{i}" for i in range(8)], np.array(list("abcdabcc"))
    gallery = Side(known, np.array(files), labels, Pictures(pictures))
    local = LocalFeatures(Sift(max_px=240), path=str(tmp_path))
    recogniser = Recogniser(neighbours=3, similarity="squared_l2", local=local, ban_above=1)
    got = recogniser.predict({"one": View(queries, gallery)})
    squared = ((queries.vectors[:, None] - gallery.vectors[None]) ** 2).sum(axis=2)
    expected = []
    for q in range(5):
        near = np.argsort(squared[q], kind="stable")[:3]
        inliers = local.inliers(
            near[None].astype(np.int32),
            Side(asked[q : q + 1], queries.files[q : q + 1], picture=queries.picture),
            gallery,
        )
        counter = Counter()
        for place, n in zip(near, inliers[0], strict=True):
            counter[gallery.labels[place]] += 1 - squared[q, place] + min(70, n) / 70
        expected.append(counter.most_common(1)[0])
    often = Counter(label for label, _ in expected)
    expected = [(label, -often[label] if often[label] > 1 else score) for label, score in expected]
    assert got.ids.tolist() == queries.files.tolist()
    assert got.labels.tolist() == [label for label, _ in expected]
    np.testing.assert_allclose(got.scores, [score for _, score in expected], rtol=1e-5)
    assert max(got.scores) > 1 and min(got.scores) == -2


def test_lists_of_several_models_are_summed_and_one_of_weight_0_only_watched():
    labels = ["a", "b", "c"]

    def seen(*cosines):
        queries = np.eye(4, dtype=np.float32)[:1]
        gallery = np.array([[c, np.sqrt(1 - c * c), 0, 0] for c in cosines], np.float32)
        return View(
            Side(queries, np.array(["q"])), Side(gallery, np.array(["x", "y", "z"]), np.array(labels))
        )

    first, second = seen(0.9, 0.8, 0.1), seen(0.2, 0.7, 0.6)
    views = {"one": first, "two": View(second.queries, second.gallery, weight=0.5)}
    evidence, names = Recogniser().evidence(views)
    assert names[evidence.votes.labels[0]].tolist() == ["b", "a", "c"]
    np.testing.assert_allclose(evidence.votes.scores[0], [0.8 + 0.35, 0.9 + 0.1, 0.1 + 0.3], rtol=1e-6)
    views["two"] = View(second.queries, second.gallery, weight=0)
    evidence, names = Recogniser().evidence(views)
    assert names[evidence.votes.labels[0]].tolist() == ["a", "b", "c"] and list(evidence.lists) == [
        "one",
        "two",
    ]
    assert evidence.inliers is None and evidence.negatives == {}


def test_likeness_to_nothing_known_lowers_the_score_as_the_penalty_says():
    queries, gallery, nothing = side(2, 9, "q"), side(3, 20, "g", list("abcd") * 5), side(4, 15, "n")
    plain = Recogniser(neighbours=4).predict({"m": View(queries, gallery)})
    got = Recogniser(neighbours=4, penalty=Penalty()).predict({"m": View(queries, gallery, nothing)})
    top = np.sort(queries.vectors @ nothing.vectors.T, axis=1)[:, :-4:-1].mean(axis=1)
    assert (top < 0.3).any() and (top > 0.3).any()
    np.testing.assert_allclose(got.scores, plain.scores - np.where(top >= 0.3, 1.5 * top, 0), rtol=1e-5)
    assert got.labels.tolist() == plain.labels.tolist()


def test_an_empty_gallery_gives_no_answers():
    queries, gallery = side(0, 3, "q"), side(0, 0, "g", [])
    got = Recogniser().predict({"m": View(queries, gallery)})
    assert got.labels.tolist() == ["", "", ""] and got.scores.tolist() == [0, 0, 0]


def test_what_does_not_fit_is_refused():
    queries, gallery = side(0, 3, "q"), side(0, 4, "g", list("abca"))
    one = View(queries, gallery)
    with pytest.raises(UserError, match=r"two has other gallery than one; accepted: the same pictures"):
        Recogniser().predict({"one": one, "two": View(queries, side(0, 4, "h", list("abca")))})
    with pytest.raises(UserError, match=r"one has a gallery without labels; accepted: with labels"):
        Recogniser().predict({"one": View(queries, queries)})
    with pytest.raises(UserError, match=r"every model weighs 0"):
        Recogniser().predict({"one": View(queries, gallery, weight=0)})
    with pytest.raises(UserError, match=r"recognise.penalty: no pictures of nothing known"):
        Recogniser(penalty=Penalty()).predict({"one": one})
    with pytest.raises(UserError, match=r"recognise.confidence: none"):
        Recogniser().fit({"one": one}, [["a"], ["b"], ["c"]])
    with pytest.raises(UserError, match=r"recognise.neighbours: 0; accepted: 1 or more"):
        Recogniser(neighbours=0)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_configuration_builds(path):
    node = yaml.safe_load(path.read_text())
    assert node.pop("defaults") == [f"_{path.stem}", "_self_"]
    assert isinstance(build(node), Recogniser)
