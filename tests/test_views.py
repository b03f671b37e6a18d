import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as torchvision

from guie import resize
from guie.build import build
from guie.config.compose import composed
from guie.config.folders import directory
from guie.embed.reading import looks
from guie.errors import UserError
from guie.export.prepare import Prepare
from guie.export.torchscript import torchscript_allowed
from guie.types import Preprocess
from guie.views import Classifier, Cut, Padded, Views, Whole, combined

SIZES = [(9, 12), (13, 8), (7, 7), (1, 5), (40, 3)]
SPECS = [
    Preprocess(size_px=(8, 8)),
    Preprocess(size_px=(6, 8), crop="center", crop_fraction=0.9),
    Preprocess(size_px=(8, 8), crop="pad", interpolation="bilinear"),
]
LOOKS = [
    Whole(),
    Cut(),
    Cut(0.6, "bottom_left"),
    Cut(0.875, "top_right", square=True),
    Padded(),
    Padded(0.9),
    Padded(most_px=16),
]


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()


@pytest.mark.parametrize("size", SIZES)
def test_a_cut_is_a_share_of_each_side_rounded_down_and_its_middle_is_that_of_torchvision(size):
    image = tensor(picture(*size))
    rows, columns = (max(int(0.9 * side), 1) for side in size)
    assert torch.equal(Cut(0.9)(image), torchvision.center_crop(image, [rows, columns]))
    assert torch.equal(Cut(0.9, "top_left")(image), image[:, :, :rows, :columns])
    assert torch.equal(Cut(0.9, "bottom_right")(image), image[:, :, size[0] - rows :, size[1] - columns :])
    side = max(int(0.875 * min(size)), 1)
    found = Cut(0.875, "top_right", square=True)(image)
    assert torch.equal(found, image[:, :, :side, size[1] - side :])


@pytest.mark.parametrize("size", SIZES)
def test_a_padded_picture_stands_in_the_middle_of_a_square_an_odd_rest_behind_it(size):
    image, side = picture(*size), max(size)
    square = np.full((side, side, 3), 7, np.uint8)
    above, before = (side - size[0]) // 2, (side - size[1]) // 2
    square[above : above + size[0], before : before + size[1]] = image
    assert torch.equal(Padded(level=7)(tensor(image)), tensor(square))
    seen = int(0.9 * side)
    assert torch.equal(Padded(0.9, 7)(tensor(image)), torchvision.center_crop(tensor(square), [seen, seen]))


def test_a_strip_is_reduced_before_its_square_would_take_all_memory():
    found = Padded(most_px=64)(tensor(picture(3, 20_000)))
    assert found.shape == (1, 3, 64, 64) and found.dtype == torch.uint8
    assert int((found.amax((0, 1, 3)) > 0).sum()) == 1


@pytest.mark.parametrize("spec", SPECS)
def test_the_whole_picture_is_what_evaluation_sees_to_the_last_bit(spec):
    (view,) = Views().of(spec)
    for size in SIZES:
        shown = view.look(tensor(picture(*size)))[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(
            resize.apply(shown, view.preprocess), resize.apply(picture(*size), spec)
        )


@pytest.mark.parametrize("look", LOOKS, ids=repr)
def test_a_scripted_view_shows_a_network_what_embedding_shows_it(look):
    class Rows:
        def read(self, row):
            return rows[row]

        def crop(self, row):
            return None

    rows = [encoded(picture(*size)) for size in SIZES]
    views = Views({"one": look}, scales=(1.0, 1.5))
    for spec in SPECS:
        network = type("Network", (), {"preprocess": spec})
        seen = looks(Rows(), network, views)
        with torchscript_allowed():
            scripted = [
                (torch.jit.script(view.look), torch.jit.script(Prepare(view.preprocess)))
                for view in views.of(spec)
            ]
        for row, size in enumerate(SIZES):
            both = tensor(np.stack([picture(*size)] * 2)[0]).expand(2, -1, -1, -1)
            for (shown, prepare), ours in zip(scripted, seen(0, row), strict=True):
                found = prepare(shown(both))
                assert found.shape[0] == 2
                np.testing.assert_array_equal(found[1].numpy(), ours)


def encoded(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def test_scales_come_in_multiples_and_no_smaller_than_allowed():
    spec = Preprocess(size_px=(224, 160))
    sizes = [v.preprocess.size_px for v in Views(scales=(0.75, 1, 1.25), multiple_px=32, min_px=128).of(spec)]
    assert sizes == [(160, 128), (224, 160), (288, 192)]
    assert [v.preprocess.size_px for v in Views(scales=(0.01,)).of(spec)] == [(2, 2)]


def test_every_look_is_taken_at_every_scale_and_mirrored_and_parts_lose_the_margin():
    spec = Preprocess(crop="center", crop_fraction=0.9)
    views = Views({"all": Whole(), "part": Cut(), "none": None}, scales=(1.0, 2.0), flip=True).of(spec)
    told = [(type(v.look).__name__, v.preprocess.size_px[0], v.mirrored) for v in views]
    assert told == [
        (look, side, mirrored)
        for look in ("Whole", "Cut")
        for side in (224, 448)
        for mirrored in (False, True)
    ]
    assert [v.preprocess.crop_fraction for v in views] == [0.9] * 4 + [1.0] * 4


def test_a_stated_crop_brings_every_look_to_the_network():
    spec = Preprocess(crop="center", crop_fraction=0.9)
    looks = {"all": Whole(), "part": Cut()}
    for crop in ("stretch", "pad"):
        assert [view.preprocess.crop for view in Views(looks, crop=crop).of(spec)] == [crop, crop]
    assert [view.preprocess.crop for view in Views(looks).of(spec)] == ["center", "center"]


def test_the_sum_of_views_is_of_unit_length():
    parts = [torch.randn(5, 3) for _ in range(4)]
    by_hand = []
    for row in range(5):
        total = sum(part[row].double() for part in parts)
        by_hand.append(total / total.norm())
    torch.testing.assert_close(combined(iter(parts)), torch.stack(by_hand).float())


def test_the_key_changes_with_every_setting_and_not_with_names():
    keys = {
        Views({"one": look}, **rest).key
        for look in (Whole(), Cut(), Cut(0.8), Cut(square=True), Cut(place="top_left"), Padded(), Padded(0.9))
        for rest in (
            {},
            {"scales": (2.0,)},
            {"flip": True},
            {"summed": "raw"},
            {"min_px": 9},
            {"crop": "pad"},
        )
    }
    assert len(keys) == 7 * 6
    assert Views({"a": Cut()}).key == Views({"b": Cut(), "c": None}).key
    assert Views().key == Views({"a": Whole()}).key


def preset(name, *overrides):
    things = ["apparel", "packaged", "toys"]
    classifier = Classifier(things, torch.zeros(3, 2), torch.zeros(3), "drawn", "drawn")
    node = composed("embed", ["dataset=toy", f"views={name}", *overrides])["views"]
    return build(node, where="views", classifier=classifier)


def test_every_preset_shows_as_many_views_as_it_says():
    names = {path.stem for path in (directory() / "views").glob("*.yaml")}
    found = {name: len(preset(name).of(Preprocess())) for name in names}
    assert found == {
        "classifier_tta": 4,
        "flip": 2,
        "scales": 3,
        "scales_flip": 6,
        "five_crop": 5,
        "padded": 3,
    }
    assert len(preset("five_crop", "views.looks.middle=null", "views.flip=true").of(Preprocess())) == 8
    assert preset("padded", "views.looks.middle.share=0.5").key != preset("padded").key


@pytest.mark.parametrize("size", [(50, 81), (60, 40)])
def test_system_a_sees_what_pillow_pads_crops_and_resizes(size):
    spec, image = Preprocess(size_px=(32, 32)), Image.fromarray(picture(6, 5)).resize(size[::-1])
    side = max(size)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - size[1]) // 2, (side - size[0]) // 2))
    seen = int(0.9 * side)
    first = round((side - seen) / 2)
    shown = [image, square, square.crop((first, first, first + seen, first + seen))]
    for view, expected in zip(preset("padded").of(spec), shown, strict=True):
        wanted = np.asarray(expected.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
        part = view.look(tensor(np.array(image)))[0].permute(1, 2, 0).numpy()
        found = resize.apply(part, view.preprocess).transpose(1, 2, 0)
        assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Views(scales=()), r"views\.scales: \[\]; accepted: one or more, each above 0"),
        (lambda: Views(scales=(1.0, 0.0)), r"views\.scales: \[1\.0, 0\.0\]; accepted"),
        (lambda: Views(summed="mean"), r"views\.summed: 'mean'; accepted: unit, raw"),
        (lambda: Views(multiple_px=0), r"views\.multiple_px: 0; accepted: 1 or more"),
        (lambda: Cut(1.5), r"views\.looks: share 1\.5; accepted: above 0, up to 1"),
        (lambda: Cut(place="left"), r"views\.looks: place 'left'; accepted: middle, top_left"),
    ],
)
def test_mistakes_name_their_key(make, said):
    with pytest.raises(UserError, match=said):
        make()
