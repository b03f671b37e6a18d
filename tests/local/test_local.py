import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from guie.local.features import Keypoints, sift
from guie.local.verify import NOTHING, agreement, match, verify

sys.path.insert(0, str(Path(__file__).parent))
from scenes import TURN, scene, seen_again


@pytest.mark.parametrize("model", ["homography", "affine"])
def test_the_same_thing_turned_is_verified_with_its_geometry(model):
    first, second = sift(scene(0)), sift(seen_again(scene(0)))
    found = verify(first, second, model=model)
    assert found.inliers >= 30
    corners = np.array([[60, 60, 1], [180, 70, 1], [100, 170, 1]], float).T
    expected, got = TURN @ corners, found.matrix @ corners
    np.testing.assert_allclose(got[:2] / got[2], expected[:2], atol=2)


def test_other_things_are_not_verified_and_the_answer_repeats():
    first, other = sift(scene(0)), sift(scene(1))
    assert verify(first, other).inliers < 12
    again = sift(seen_again(scene(0)))
    one, two = verify(first, again, seed=3), verify(first, again, seed=3)
    assert one.inliers == two.inliers
    np.testing.assert_array_equal(one.matrix, two.matrix)


def test_pictures_without_corners_have_no_features_and_no_matches():
    blank = sift(np.zeros((50, 60, 3), np.uint8))
    assert blank.xy.shape == (0, 2) and blank.descriptors.shape == (0, 128)
    assert verify(blank, sift(scene(0))) == NOTHING and len(match(blank, blank)) == 0


def test_places_are_in_pixels_of_the_picture_and_the_number_is_bounded():
    image = cv2.resize(scene(0), (960, 960))
    large, small = sift(image, max_px=240), sift(scene(0))
    assert len(sift(image, max_keypoints=50).xy) == 50
    assert large.xy.max() > 500 and small.xy.max() < 240
    np.testing.assert_allclose(np.linalg.norm(small.descriptors, axis=1), 1, atol=1e-3)


def test_matches_are_mutual_nearest_by_a_plain_loop():
    r = np.random.default_rng(0)
    base = r.random((30, 128)).astype(np.float32)
    noisy = base[r.permutation(30)[:20]] + 0.05 * r.random((20, 128)).astype(np.float32)
    first, second = (
        Keypoints(np.zeros((len(d), 2), np.float32), d / np.linalg.norm(d, axis=1, keepdims=True))
        for d in (base, noisy)
    )
    expected = []
    distances = np.linalg.norm(first.descriptors[:, None] - second.descriptors[None], axis=2)
    for i in range(30):
        order = np.argsort(distances[i])
        near = distances[i, order[0]] < 0.85 * distances[i, order[1]]
        if near and distances[:, order[0]].argmin() == i:
            expected.append((i, int(order[0])))
    assert len(expected) >= 15
    assert [tuple(pair) for pair in match(first, second).tolist()] == expected


def test_four_places_prove_nothing_for_a_homography_explains_any_four():
    first, second = np.random.default_rng(0).uniform(0, 200, (2, 5, 2)).astype(np.float32)
    assert agreement(first[:4], second[:4]) == NOTHING
    assert agreement(first, first + 7).inliers == 5
