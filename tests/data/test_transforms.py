"""What albumentations lacks: each transform does what it says, and one seed decides."""

import io

import numpy as np
import pytest
from PIL import Image

from guie.build import build
from guie.config.compose import composed
from guie.data.augment import CropFlip, PerView, Plain, Stages
from guie.data.transforms import GROUPS, pipeline
from guie.errors import UserError
from guie.images import BadImage
from guie.types import Preprocess

SPEC = Preprocess((32, 32))
SYSTEMS = ["guie5", "guie25", "landmark2020_1", "landmark2020_3", "landmark2020_3b", "isc21_v83", "isc21_v86"]
SYSTEMS += ["isc21_v98", "landmark2019_soft", "landmark2019_middle"]


def pixels(high=60, wide=90):
    r = np.random.default_rng(0)
    return np.kron(r.integers(0, 256, (high // 10, wide // 10, 3)), np.ones((10, 10, 1))).astype(np.uint8)


def encoded(image=None):
    out = io.BytesIO()
    Image.fromarray(pixels() if image is None else image).save(out, "PNG")
    return out.getvalue()


class Pool:
    """Other pictures: black ones, and one that cannot be read."""

    def __init__(self, size=3, bad=False):
        self.size, self.bad = size, bad

    def __len__(self):
        return self.size

    def read(self, row):
        if self.bad:
            raise BadImage("gone")
        return encoded(np.zeros((40, 40, 3), np.uint8))


def once(stages, image=None, seed=0, pictures=None):
    made = pipeline(stages, key="augment.stages", pictures=pictures)
    made.set_random_seed(seed)
    return made(image=pixels() if image is None else image)["image"]


def test_pixelise_leaves_as_few_colours_as_it_has_large_pixels():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    found = once({"Pixelise": {"ratio": [0.1, 0.1], "p": 1.0}}, image)
    assert found.shape == image.shape and len(np.unique(found.reshape(-1, 3), axis=0)) <= 16


def test_shuffled_pixels_are_the_same_pixels_and_a_share_of_them_moved():
    image = np.arange(50 * 60 * 3, dtype=np.uint32).reshape(50, 60, 3)
    image = (image * 2654435761 >> 11).astype(np.uint8)
    found = once({"ShufflePixels": {"factor": 0.1, "p": 1.0}}, image)

    def ordered(x):
        return np.sort(x.reshape(-1, 3).astype(int) @ [1, 256, 65536])

    np.testing.assert_array_equal(ordered(found), ordered(image))
    assert 0.07 < (found != image).any(axis=2).mean() <= 0.1


@pytest.mark.parametrize("stage", ["TextOverlay", "GlyphOverlay"])
def test_overlays_change_some_pixels_of_a_copy(stage):
    image = pixels()
    changed = []
    for seed in range(8):
        found = once({stage: {"p": 1.0}}, image, seed)
        changed.append((found != image).any(axis=2).mean())
    assert 0.002 < min(changed) and max(changed) < 0.7
    np.testing.assert_array_equal(image, pixels())


def test_a_picture_laid_over_another_covers_the_stated_share():
    white = np.full((50, 50, 3), 255, np.uint8)
    shares = set()
    for seed in range(12):
        stage = {"PictureOverlay": {"opacity": [1, 1], "size": [0.5, 0.5], "p": 1.0}}
        found = once(stage, white, seed, Pool())
        shares.add((found.shape[0], round(float((found == 255).all(axis=2).mean()), 2)))
    # under: the white picture of 50 with a black patch of 25; over: black of 40 with a white patch of 20
    assert shares == {(50, 0.75), (40, 0.25)}


def test_a_bad_other_picture_leaves_the_picture_alone_and_none_is_an_error():
    np.testing.assert_array_equal(once({"PictureOverlay": {"p": 1.0}}, pictures=Pool(bad=True)), pixels())
    with pytest.raises(
        UserError, match=r"PictureOverlay has no other pictures; accepted: it in augment\.stages"
    ):
        once({"PictureOverlay": {"p": 1.0}})


def test_the_long_edge_crop_is_square_and_of_the_picture():
    found = once({"LongEdgeCrop": {"p": 1.0}}, pixels(40, 100), seed=3)
    assert found.shape == (40, 40, 3)
    places = [(pixels(40, 100)[:, x : x + 40] == found).all() for x in range(61)]
    assert any(places)


def test_rescale_in_place_keeps_the_size_and_pads_black_or_crops():
    white = np.full((60, 90, 3), 255, np.uint8)
    darker = [once({"RescaleInPlace": {"limit": 0.4}}, white, seed) for seed in range(10)]
    assert all(found.shape == white.shape for found in darker)
    whites = [(found == 255).all() for found in darker]
    assert any(whites) and not all(whites)


def test_rand_augment_takes_distinct_operations_and_its_own_ranges():
    stage = {"RandAugment": {"ops": {"Brightness": [0.0, 0.0]}, "num_ops": 1, "p": 1.0}}
    assert once(stage).max() == 0
    both = {"ops": {"Brightness": [2, 2], "Identity": None}, "num_ops": 2, "distinct": True}
    doubled = np.minimum(2 * pixels().astype(int), 255)
    np.testing.assert_allclose(once({"RandAugment": both}), doubled, atol=1)
    with pytest.raises(
        UserError, match=r"augment\.stages\.RandAugment: ops: Brightnes; accepted: AutoContrast"
    ):
        once({"RandAugment": {"ops": {"Brightnes": None}}})


def test_groups_nest_and_mistakes_in_them_are_named_by_their_path():
    found = once({"RandomOrder": {"n": 2, "transforms": {"a": {"stage": "ToGray", "p": 1.0}, "NoOp": None}}})
    assert (np.ptp(found, axis=2) == 0).all()
    with pytest.raises(UserError, match=r"augment\.stages\.OneOf\.transforms\.Blurr: unknown stage 'Blurr'"):
        once({"OneOf": {"transforms": {"Blurr": None}}})
    with pytest.raises(UserError, match=r"augment\.stages\.Pixelise: ratio: \[2, 3\]; accepted: 0 to 1"):
        once({"Pixelise": {"ratio": [2, 3]}})
    assert all(hasattr(__import__("albumentations"), name) for name in GROUPS)


def test_stages_end_in_the_nets_size_and_repeat_for_a_slot():
    made = Stages({"AreaCrop": None, "Pixelise": {"p": 0.5}}, preprocess=SPEC, pictures=Pool())
    draws = made.draws(0, 5, np.arange(4))
    first = [made(encoded(), u) for u in draws]
    assert all(image.shape == (3, 32, 32) and image.dtype == np.uint8 for image in first)
    again = [made(encoded(), u) for u in made.draws(0, 5, np.arange(4))[::-1]][::-1]
    np.testing.assert_array_equal(first, again)
    assert len({image.tobytes() for image in first}) == 4


def test_views_take_turns():
    views = {"plain": Plain(preprocess=SPEC), "cut": CropFlip(scale=(0.2, 0.3), preprocess=SPEC)}
    made = PerView(views)
    draws = made.draws(0, 1, np.arange(6))
    images = [made(encoded(), u) for u in draws]
    for even in (0, 2, 4):
        np.testing.assert_array_equal(images[even], views["plain"](encoded(), draws[0]))
    assert len({image.tobytes() for image in images[1::2]}) == 3
    np.testing.assert_array_equal(made.draws(0, 1, np.array([3])), draws[3:4])
    with pytest.raises(UserError, match=r"augment\.views: none; accepted: augmentations of encoded pictures"):
        PerView({})


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_systems_augmentation_is_built_and_draws(name):
    node = composed("train", [f"augment={name}"])["augment"]
    made = build(node, where="augment", preprocess=SPEC, num_steps=10, pictures=Pool())
    images = [made(encoded(), u) for u in made.draws(0, 0, np.arange(24))]
    assert {image.shape for image in images} == {(3, 32, 32)}
    assert len({image.tobytes() for image in images}) > (1 if name.startswith("landmark2020") else 12)
