import io

import numpy as np
import pytest
from PIL import Image

from guie.data.augment import CropFlip, Plain
from guie.data.boxes import random_box
from guie.errors import UserError
from guie.images import BadImage, decode
from guie.resize import crop_resize, load
from guie.types import Preprocess

SPEC = Preprocess((24, 24))


def photo(width=320, height=240):
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2)
    data = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def test_plain_is_the_evaluation_preprocessing():
    stage = Plain(preprocess=SPEC)
    np.testing.assert_array_equal(stage(photo(), stage.draws(0, 0, np.arange(1))[0]), load(photo(), SPEC))


def test_a_crop_is_what_full_decode_and_resize_of_its_box_give():
    stage, data = CropFlip(flip_p=0.0, preprocess=SPEC), photo()
    for u in stage.draws(1, 2, np.arange(12)):
        box = random_box(320, 240, u, stage.scale, stage.ratio)
        wanted = crop_resize(decode(data), box, (24, 24), "bicubic").astype(float)
        made = stage(data, u)
        assert made.shape == (3, 24, 24) and made.dtype == np.uint8
        assert np.abs(made - wanted).mean() < 1.5


def test_a_flip_mirrors_the_same_crop():
    u = CropFlip(preprocess=SPEC).draws(0, 0, np.arange(1))[0]
    straight, mirrored = (CropFlip(flip_p=p, preprocess=SPEC)(photo(), u) for p in (0.0, 1.0))
    np.testing.assert_array_equal(mirrored, straight[:, :, ::-1])


def test_boxes_lie_inside_and_reach_the_asked_area():
    draws = CropFlip(preprocess=SPEC).draws(0, 0, np.arange(2000))
    boxes = np.array([random_box(320, 240, u, (0.2, 0.5), (0.75, 1.3333)) for u in draws])
    x, y, width, height = boxes.T
    assert min(x.min(), y.min()) == 0 and (x + width).max() == 320 and (y + height).max() == 240
    share = width * height / (320 * 240)
    assert 0.19 < share.min() and share.max() < 0.51 and abs(share.mean() - 0.35) < 0.01
    assert random_box(1, 1000, draws[0], (0.2, 1.0), (0.5, 2.0))[2] == 1


def test_albumentations_stages_are_seeded_by_their_place():
    extra = {"ColorJitter": {"p": 1.0}, "CoarseDropout": {"p": 0.5}}
    stage = CropFlip(extra=extra, preprocess=SPEC)
    draws = stage.draws(0, 3, np.arange(6))
    first = [stage(photo(), u) for u in draws]
    other = CropFlip(extra=extra, preprocess=SPEC)
    np.testing.assert_array_equal(other(photo(), draws[4]), first[4])
    plain = CropFlip(preprocess=SPEC)
    assert all((image != plain(photo(), u)).any() for image, u in zip(first, draws, strict=True))


def test_unknown_stages_and_arguments_are_named():
    with pytest.raises(
        UserError, match=r"augment.extra.ColourJitter: unknown stage 'ColourJitter'; accepted: names of"
    ):
        CropFlip(extra={"ColourJitter": {}}, preprocess=SPEC)
    with pytest.raises(
        UserError, match=r"augment.extra.GaussianBlur: .*; accepted: the arguments of GaussianBlur"
    ):
        CropFlip(extra={"GaussianBlur": {"p": "often"}}, preprocess=SPEC)
    with pytest.raises(UserError, match=r"augment.ratio: \[2.0, 1.0\]"):
        CropFlip(ratio=(2.0, 1.0), preprocess=SPEC)


def test_what_is_no_picture_is_a_bad_image():
    stage = CropFlip(preprocess=SPEC)
    for data in (b"", b"<html>", photo()[:500]):
        with pytest.raises(BadImage):
            stage(data, stage.draws(0, 0, np.arange(1))[0])
