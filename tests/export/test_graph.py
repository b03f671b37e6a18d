"""The resize of one graph gives the pixels of evaluation, to the last bit, whatever is looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from guie import resize
from guie.errors import UserError
from guie.export.golden import draw
from guie.export.graph import Axis, GraphPrepare, framed, half_even, prepared, stretched
from guie.types import Preprocess
from guie.views import Cut, Padded, View, Whole

SPEC = Preprocess(size_px=(32, 32))
SPECS = {
    "stretch": SPEC,
    "stretch to a rectangle": replace(SPEC, size_px=(24, 40), interpolation="bilinear"),
    "center": replace(SPEC, crop="center", crop_fraction=0.875),
    "center whole": replace(SPEC, crop="center"),
    "center of a rectangle": replace(
        SPEC, crop="center", crop_fraction=0.9, size_px=(24, 40), interpolation="bilinear"
    ),
    "pad": replace(SPEC, crop="pad", background=(10, 200, 30)),
    "pad to a rectangle": replace(SPEC, crop="pad", size_px=(24, 40)),
}
LOOKS = [
    Cut(0.9),
    Cut(0.8, "top_left"),
    Cut(0.7, "bottom_right", square=True),
    Padded(),
    Padded(0.9),
    Padded(0.8, level=127),
]
# One pixel; the network's own size; strips of both directions; 8 times as long as wide, where strips begin.
SIZES = [(1, 1), (32, 32), (37, 500), (224, 224), (640, 480), (3000, 40), (40, 3000), (1000, 2), (2, 1000)]
SIZES += [(31, 33), (9, 71), (9, 72), (9, 73), (71, 9), (72, 9), (73, 9), (20, 161), (161, 20)]


def drawn(size):
    """Return pictures of two kinds: blocks of many levels, and black and white, where filters clip."""
    blocks = draw(size, 2, seed=1)
    return np.concatenate([blocks, np.where(blocks > 100, np.uint8(255), np.uint8(0))])


def evaluated(pictures, view):
    parts = view.look(torch.from_numpy(pictures)).numpy()
    return np.stack([resize.apply(part.transpose(1, 2, 0).copy(), view.preprocess) for part in parts])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SPECS)
def test_every_pixel_is_that_of_the_evaluation(name, size):
    pictures = drawn(size)
    found = GraphPrepare(SPECS[name])(torch.from_numpy(pictures))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), evaluated(pictures, View(Whole(), SPECS[name])))


@pytest.mark.parametrize("look", LOOKS, ids=repr)
@pytest.mark.parametrize("name", ["stretch", "center of a rectangle", "pad"])
def test_a_look_is_part_of_the_graph(name, look):
    view = View(look, SPECS[name])
    for size in [(1, 1), (2, 3), (33, 20), (20, 33), (10, 10), (300, 41), (3, 200)]:
        pictures = drawn(size)
        found = prepared(view)(torch.from_numpy(pictures)).numpy()
        np.testing.assert_array_equal(found, evaluated(pictures, view), err_msg=str(size))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_a_photograph_is_resized_exactly(mode):
    view = View(Whole(), Preprocess(size_px=(224, 224), interpolation=mode))
    pictures = draw((1200, 1600), 1, seed=2)
    found = prepared(view)(torch.from_numpy(pictures)).numpy()
    np.testing.assert_array_equal(found, evaluated(pictures, view))


def all_weights(length, scaled, mode):
    """Return the weights (scaled,length) of a resize, in plain float64."""
    centres = (np.arange(scaled) + 0.5) * length / scaled
    x = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(length / scaled, 1)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    cubic = np.where(x < 1, near, np.where(x < 2, far, 0))
    kernel = cubic if mode == "bicubic" else np.maximum(1 - x, 0)
    return kernel / kernel.sum(1, keepdims=True)


def bits_behind_the_point(largest):
    """Return the precision of torch's weights, by the loop of its source (UpSampleKernel.cpp)."""
    for bits in range(22):
        if int(0.5 + largest * (1 << (bits + 1))) >= 1 << 15:
            return bits
    return 22


def filter_of(length, scaled, mode="bicubic"):
    prepare = GraphPrepare(replace(SPEC, interpolation=mode))
    line, _ = framed(Whole(), torch.empty(1, 3, length, 1))
    return prepare.filter(stretched(line, scaled))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_two_outputs_tell_how_many_bits_all_weights_have(mode):
    random = np.random.default_rng(0)
    pairs = [*random.integers(1, 60, (150, 2)), *random.integers(1, 700, (50, 2)), (17, 9), (33, 17), (1, 1)]
    for length, scaled in pairs:
        bits = bits_behind_the_point(all_weights(length, scaled, mode).max())
        assert filter_of(int(length), int(scaled), mode).unit == 2.0**bits, (length, scaled)


@pytest.mark.parametrize(("length", "scaled"), [(1, 224), (224, 224), (500, 224), (3000, 224), (8000, 32)])
def test_products_and_sums_are_whole_numbers_that_float32_and_shorter_factors_hold(length, scaled):
    parts = filter_of(length, scaled).parts
    torch.testing.assert_close(parts.bfloat16().float(), parts, rtol=0, atol=0)
    assert 255 * parts.abs().sum(2).max() < 2**24


def test_a_strip_has_pillows_weights_and_all_others_torchs():
    prepare = GraphPrepare(SPECS["center"])
    units = []
    for height in (285, 286, 320):  # of 40 columns: 256, 257, 288 rows for 32
        lines = framed(Whole(), torch.empty(1, 3, height, 40))
        rows, _ = prepare.centered(*lines)
        assert isinstance(rows, Axis)
        units.append((bool(rows.strip), float(prepare.filter(rows).unit) == 2.0**22))
    assert units == [(False, False), (True, True), (True, True)]


def test_pictures_of_one_known_size_that_fit_pass_as_they_are():
    pictures = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for name in ("stretch", "center whole", "pad"):
        assert GraphPrepare(SPECS[name])(pictures) is pictures
    assert GraphPrepare(SPECS["center"])(pictures) is not pictures
    assert GraphPrepare(SPEC, Cut(0.5))(pictures) is not pictures


def test_halves_go_to_the_even_number_as_in_python():
    numbers = range(200)
    assert half_even(torch.tensor(numbers)).tolist() == [round(number / 2) for number in numbers]


def test_a_look_of_ones_own_is_refused_by_name():
    class Swirl(nn.Module):
        """Something that no graph knows."""

    with pytest.raises(UserError, match=r"views.looks: a Swirl .*; accepted: format=torchscript, or looks"):
        prepared(View(Swirl(), SPEC))
