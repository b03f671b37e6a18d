import numpy as np
import pytest
import torch

from guie.data.draws import uniforms
from guie.data.warp import Warp, cached_preprocess
from guie.errors import UserError
from guie.types import Preprocess

STILL = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip_p": 0.0, "colour_p": 0.0}
SPEC = Preprocess((16, 16))


def pictures(batch=12, side=16):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, 3, side, side), dtype=np.uint8))


def warped(images, step=0, **options):
    warp = Warp(**{**STILL, **options}, preprocess=SPEC, num_steps=100)
    return warp(images, warp.draws(7, step, np.arange(len(images))))


def test_no_change_gives_the_pictures_back():
    images = pictures()
    torch.testing.assert_close(warped(images), images.float(), atol=1e-2, rtol=0)
    torch.testing.assert_close(warped(images, fill="random"), images.float(), atol=1e-2, rtol=0)


def test_a_flip_is_a_flip():
    images = pictures()
    torch.testing.assert_close(warped(images, flip_p=1.0), images.flip(3).float(), atol=1e-2, rtol=0)
    torch.testing.assert_close(warped(images, vflip_p=1.0), images.flip(2).float(), atol=1e-2, rtol=0)


def test_quarter_turns_are_exact_turns_of_all_four_kinds():
    images = pictures(64)
    made = warped(images, quarter_turns_p=1.0)
    turns = [torch.rot90(images, q, (2, 3)).float() for q in range(4)]
    error = torch.stack([(made - turned).abs().amax((1, 2, 3)) for turned in turns])
    assert error.amin(0).max() < 0.1 and len(error.argmin(0).unique()) == 4


def test_a_crop_is_the_resized_part():
    # a ramp stays a ramp under any affine map: its slope is the crop's width, its start the crop's left edge
    ramp = torch.arange(64, dtype=torch.uint8).expand(40, 3, 64, 64).contiguous() * 2
    warp = Warp(**{**STILL, "scale": (0.25, 0.25)}, preprocess=SPEC, num_steps=100)
    u = warp.draws(3, 0, np.arange(40))
    made = warp(ramp, u)[:, 0, 8]
    step = made[:, 9] - made[:, 8]
    torch.testing.assert_close(step, torch.full((40,), 2 * 32 / 16.0), atol=1e-2, rtol=0)
    left = made[:, 8] - 8.5 * step
    wanted = 2 * (u[:, 2].float() * 32 - 0.5)
    torch.testing.assert_close(left, wanted, atol=0.05, rtol=0)


def test_crops_stay_inside_and_have_the_asked_area_and_aspect():
    warp = Warp(scale=(0.2, 0.6), ratio=(0.5, 2.0), flip_p=0.0, preprocess=SPEC, num_steps=100)
    matrix = warp.matrix(warp.draws(1, 0, np.arange(5000)).float())
    wide, high = matrix[:, 0, 0], matrix[:, 1, 1]
    assert (wide * high).min() > 0.15 and (wide * high).max() < 0.601
    assert (matrix[:, 0, 2].abs() + wide).max() <= 1 + 1e-5 and (
        matrix[:, 1, 2].abs() + high
    ).max() <= 1 + 1e-5
    assert 0.3 < (wide > high).float().mean() < 0.7


@pytest.mark.parametrize(("fill", "value"), [("black", 0.0), ("white", 255.0), ("grey", 127.5)])
def test_zooming_out_shows_the_fill_around_the_picture(fill, value):
    images = torch.full((30, 3, 16, 16), 77, dtype=torch.uint8)
    warp = Warp(**STILL, zoom_out=4.0, zoom_out_p=1.0, fill=fill, preprocess=SPEC, num_steps=100)
    u = warp.draws(0, 0, np.arange(30))
    u[:, 10 - 1] = 1.0  # the draw of the factor: all the way
    made = warp(images, u)
    assert (made[:, :, 0, 0] == value).all() and (made[:, :, 8, 8] - 77).abs().max() < 0.1


def test_edge_fill_continues_the_picture_and_random_fill_is_one_colour_each():
    images = torch.full((30, 3, 16, 16), 77, dtype=torch.uint8)
    options = {"zoom_out": 4.0, "zoom_out_p": 1.0}
    assert (warped(images, **options, fill="edge") - 77).abs().max() < 0.1
    corner = warped(images, **options, fill="random")[:, :, 0, 0]
    assert len(corner.round().unique(dim=0)) > 20


def test_colours_are_brightness_then_contrast_about_the_mean_grey_then_saturation():
    images = pictures(20, 32).double()
    warp = Warp(brightness=0.4, contrast=0.5, saturation=0.6, colour_p=1.0, preprocess=SPEC, num_steps=100)
    u = warp.draws(2, 0, np.arange(20))
    luma = torch.tensor([100.0]).expand(20)
    matrix, offset = warp.colour_matrix(u.float(), luma)
    for b in range(20):
        bright, steep, vivid = (
            1 + r * (2 * float(u[b, p]) - 1) for r, p in ((0.4, 15), (0.5, 16), (0.6, 17))
        )
        colour = images[b, :, 3, 5].numpy()
        grey = colour @ [0.299, 0.587, 0.114]
        wanted = (grey + vivid * (colour - grey)) * bright
        wanted = (wanted - bright * 100) * steep + bright * 100
        made = matrix[b].double().numpy() @ colour + offset[b].double().numpy()
        np.testing.assert_allclose(made, wanted, atol=1e-3)


def test_grey_and_inverted_pictures():
    images = pictures()
    grey = warped(images, grey_p=1.0)
    assert (grey[:, 0] - grey[:, 1]).abs().max() < 1e-3 and (grey[:, 0] - grey[:, 2]).abs().max() < 1e-3
    torch.testing.assert_close(warped(images, invert_p=1.0), 255 - images.float(), atol=1e-2, rtol=0)


def test_hue_turns_keep_the_sum_of_the_channels():
    images = torch.randint(
        100, 150, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    made = warped(images, hue=0.5, colour_p=1.0, brightness=0.0, contrast=0.0, saturation=0.0)
    torch.testing.assert_close(made.sum(1), images.float().sum(1), atol=0.1, rtol=0)
    assert (made - images).abs().max() > 10


def test_blur_smooths_without_moving_and_only_some_pictures():
    images = torch.zeros((200, 3, 16, 16), dtype=torch.uint8)
    images[:, :, 8, 8] = 160
    made = warped(images, blur_p=0.5)
    peak = made[:, 0, 8, 8]
    assert 70 < int((peak > 159.9).sum()) < 140 and peak.min() < 60
    place = torch.arange(16.0)
    torch.testing.assert_close(
        (made[:, 0].sum(1) * place).sum(1) / made[:, 0].sum((1, 2)), torch.full((200,), 8.0)
    )


def test_cut_out_paints_a_grey_rectangle_of_at_most_the_asked_area():
    images = torch.zeros((300, 3, 16, 16), dtype=torch.uint8)
    hidden = (warped(images, cutout=0.25, cutout_p=0.5)[:, 0] == 127.5).float()
    area = hidden.mean((1, 2))
    assert 100 < int((area > 0).sum()) < 200 and area.max() <= 0.33
    filled = hidden.amax(1).sum(1) * hidden.amax(2).sum(1) / 256
    torch.testing.assert_close(filled, area)


def test_every_choice_belongs_to_its_place_in_the_global_batch():
    images = pictures(16)
    warp = Warp(
        rotate_degrees=30,
        zoom_out=1.5,
        zoom_out_p=0.5,
        hue=0.1,
        cutout=0.2,
        blur_p=0.5,
        preprocess=SPEC,
        num_steps=100,
    )
    whole = warp(images, warp.draws(0, 5, np.arange(16)))
    half = warp(images[8:], warp.draws(0, 5, np.arange(8, 16)))
    torch.testing.assert_close(whole[8:], half, atol=1e-3, rtol=0)
    assert (whole - warp(images, warp.draws(0, 6, np.arange(16)))).abs().max() > 10
    assert whole.min() >= 0 and whole.max() <= 255 and whole.dtype == torch.float32


def test_draws_are_those_of_the_draws_module():
    warp = Warp(preprocess=SPEC, num_steps=100)
    np.testing.assert_array_equal(
        warp.draws(1, 2, np.arange(3)).numpy()[:, :-1], uniforms(1, 2, np.arange(3), warp.num_draws)
    )


def test_pictures_grow_with_the_share_of_training_and_end_at_the_nets_size():
    warp = Warp(growth={8: 0.25, 12: 0.5}, preprocess=SPEC, num_steps=40)
    sides = [
        warp(pictures(2), warp.draws(0, step, np.arange(2))).shape[-1] for step in (0, 9, 10, 19, 20, 39)
    ]
    assert sides == [8, 8, 12, 12, SPEC.size_px[1], SPEC.size_px[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scale": (0.8, 0.2)},
            r"augment.scale: \[0.8, 0.2\]; accepted: two numbers above 0, the smaller first",
        ),
        ({"flip_p": 1.5}, r"augment.flip_p: 1.5; accepted: 0 to 1"),
        ({"fill": "pink"}, r"augment.fill: 'pink'; accepted: black, white, grey, random, mixed, edge"),
        ({"growth": {48: 0.5, 40: 0.9}}, r"augment.growth: .*accepted: side: share of training, both rising"),
        ({"zoom_out": 0.5}, r"augment.zoom_out: 0.5; accepted: 1 or more"),
    ],
)
def test_mistakes_name_their_key(options, message):
    with pytest.raises(UserError, match=message):
        Warp(**options, preprocess=SPEC, num_steps=100)


def test_the_cache_holds_whole_pictures():
    assert cached_preprocess(Preprocess((64, 48), crop="center"), 80).size_px == (80, 80)
    assert cached_preprocess(Preprocess(crop="center"), 80).crop == "stretch"
    assert cached_preprocess(Preprocess(crop="pad"), 80).crop == "pad"
