"""The adapter of learned matchers: its contract by a made-up network, kornia's networks by random weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from guie.errors import UserError
from guie.local import learned
from guie.local.learned import Learned
from guie.local.rerank import LocalFeatures
from guie.local.verify import agreement
from guie.types import Side

sys.path.insert(0, str(Path(__file__).parent))
from scenes import scene, sides

SHIFT = (16, 48)  # y, x: whole cells of every stride


def shifted(image):
    return np.roll(image, SHIFT, axis=(0, 1))


class Grid:
    """Says that the same grid of places, as large as the smaller picture, is in both."""

    made = 0

    def __init__(self, wanted):
        Grid.made += 1

    def describe(self, picture):
        assert picture.dtype == torch.float32 and 0 <= picture.min() and picture.max() <= 1
        return {"size": np.array(picture.shape[2:])}

    def correspond(self, first, second):
        high, wide = np.minimum(first["size"], second["size"])
        y, x = np.mgrid[0:high:40, 0:wide:40]
        places = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
        return places, places + 5


@pytest.fixture
def grid(monkeypatch):
    monkeypatch.setattr(learned, "kornia", lambda: type("kornia", (), {"__version__": "none"}))
    monkeypatch.setitem(learned.NETWORKS, "disk", Grid)
    Grid.made = 0


def test_a_network_is_made_once_when_it_is_needed_and_its_places_are_verified_and_kept(
    grid, pictures, tmp_path
):
    queries, gallery = sides(pictures)
    step = LocalFeatures(Learned(), path=str(tmp_path), workers=3)
    assert Grid.made == 0
    found = step.inliers(np.array([[0, 1, 5, -1]] * 3, np.int32), queries, gallery)
    assert found.tolist() == [[36, 36, 0, -1]] * 3 and Grid.made == 1
    again = LocalFeatures(Learned(), path=str(tmp_path))
    np.testing.assert_array_equal(
        again.inliers(np.array([[0, 1, 5, -1]] * 3, np.int32), queries, gallery), found
    )
    assert Grid.made == 1


def test_what_is_cached_of_one_network_is_not_that_of_another(grid):
    others = [Learned(), Learned(max_px=400), Learned(network="aliked"), Learned(pretrained=False)]
    assert len({str(one.describing()) for one in others}) == 4
    assert Learned(pairing="nearest").matching() != Learned().matching()
    assert Learned("loftr", pairing="nearest").matching() == Learned("loftr").matching() == {}


def test_pictures_are_shrunk_and_the_smallest_filled_up(grid):
    assert Learned(max_px=100).describe(np.zeros((300, 200, 3), np.uint8))["size"].tolist() == [100, 67]
    assert Learned().describe(np.zeros((5, 40, 3), np.uint8))["size"].tolist() == [32, 40]


def test_without_kornia_the_error_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(UserError, match=r"needs kornia: pip install 'guie\[local\]'"):
        LocalFeatures(Learned()).inliers(
            np.zeros((1, 1)), *[Side(np.ones((1, 1)), np.array(["a"]), picture=bytes)] * 2
        )


@pytest.mark.parametrize("network", ["disk", "aliked"])
def test_random_keypoints_of_a_shifted_picture_agree_on_the_shift(network):
    pytest.importorskip("kornia", reason="extra local")
    matcher = Learned(network, pairing="nearest", max_keypoints=200, pretrained=False, device="cpu")
    state = torch.random.get_rng_state()
    first, second = matcher.describe(scene(0)), matcher.describe(shifted(scene(0)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert 20 <= len(first["xy"]) <= 200 and first["descriptors"].shape == (len(first["xy"]), 128)
    source, target = matcher.correspond(first, second)
    found = agreement(source, target)
    assert found.inliers >= 15
    np.testing.assert_allclose((found.matrix / found.matrix[2, 2])[:2, 2], SHIFT[::-1], atol=1)
    repeated = Learned(network, pairing="nearest", max_keypoints=200, pretrained=False, device="cpu")
    np.testing.assert_array_equal(repeated.describe(scene(0))["xy"], first["xy"])


@pytest.mark.parametrize("network", ["disk", "aliked"])
def test_lightglue_pairs_each_keypoint_once_and_none_with_a_picture_that_has_none(network, monkeypatch):
    kornia = pytest.importorskip("kornia", reason="extra local")
    monkeypatch.setitem(kornia.feature.LightGlue.default_conf, "filter_threshold", 0.0)
    matcher = Learned(network, max_keypoints=60, pretrained=False, device="cpu")
    first = matcher.describe(scene(0))
    source, target = matcher.correspond(first, first)
    assert len(source) == len(target) > 0 and source.shape[1] == 2
    keypoints = {tuple(place) for place in first["xy"].tolist()}
    for places in (source, target):
        paired = [tuple(place) for place in places.tolist()]
        assert len(set(paired)) == len(paired) and set(paired) <= keypoints
    none = {**first, "xy": first["xy"][:0], "descriptors": first["descriptors"][:0]}
    assert len(matcher.correspond(first, none)[0]) == 0


def test_random_loftr_finds_each_cell_of_a_picture_in_itself():
    pytest.importorskip("kornia", reason="extra local")
    matcher = Learned("loftr", max_px=96, pretrained=False, device="cpu")
    first = matcher.describe(scene(0))
    assert first["grey"].dtype == np.uint8 and first["grey"].shape == (96, 96)
    assert [len(places) for places in matcher.correspond(first, first)] == [0, 0]
    matcher._network()._network.coarse_matching.thr = 0.0  # random weights are sure of nothing
    source, target = matcher.correspond(first, first)
    assert len(source) >= 10 and source.dtype == np.float32
    assert np.abs(source - target).max() <= 4  # of its 8 x 8 cell
