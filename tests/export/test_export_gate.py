"""System A's classifier-TTA: every picture as its page says, in evaluation and in the file."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from system_a import THINGS, AnySize, by_the_page, classifier_of, clip, preset, small_system

from guie.datasets.manifest import from_columns
from guie.embed.reading import Reader
from guie.embed.space import feature_space, space_id
from guie.embed.vectors import embed
from guie.errors import UserError
from guie.export.composed import Lowering, composed
from guie.export.drawn import CLEAR, drawing, picked
from guie.export.golden import draw
from guie.export.prepare import prepared
from guie.export.source import Request, Source
from guie.export.torchscript import program, torchscript_allowed, write
from guie.models.pooling import GeM
from guie.views import Cut, Gate, Group, Padded, Views, Whole

# Square; wide and tall, with even and odd padding; one pixel; strips.
SIZES = [(40, 40), (33, 33), (1, 1), (30, 50), (50, 30), (31, 50), (50, 31), (2, 1), (5, 200), (300, 4)]
TWICE = [size for size in SIZES for _ in range(6)]


@pytest.fixture(scope="module")
def embedder():
    return small_system()


@pytest.fixture(scope="module")
def classifier(embedder):
    return classifier_of(embedder)


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(0)
    found = []
    for height, width in TWICE:
        blocks = draw.integers(0, 256, (3, -(-height // 9), -(-width // 9)), dtype=np.uint8)
        found.append(blocks.repeat(9, 1).repeat(9, 2)[:, :height, :width])
    return found


@pytest.fixture(scope="module")
def told(embedder, classifier, pictures):
    """Return the vectors and branches of the page."""
    found = [by_the_page(embedder, classifier, torch.from_numpy(picture)) for picture in pictures]
    return np.stack([vector for vector, _ in found]), [branch for _, branch in found]


def saved(folder, pictures):
    names = [f"{number}.png" for number in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / name)
    return from_columns("drawn", folder, {"file": names, "label": names})


def test_every_branch_is_taken(told):
    branches = told[1]
    assert {name: branches.count(name) > 3 for name in set(branches)} == {
        "square": True,
        "thing": True,
        "other": True,
    }


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_evaluation_gives_what_the_page_says_of_each_picture(
    embedder, classifier, pictures, told, batch_size, tmp_path
):
    views = preset("classifier_tta", classifier)
    reader = Reader(batch_size=batch_size, threads=1, views=views)
    found = embed(embedder, saved(tmp_path, pictures), reader).vectors
    np.testing.assert_allclose(found, told[0], atol=2e-6)


def ran(program, images):
    with torch.inference_mode():
        return program(images).numpy()


def shapes(pictures):
    """Yield the pictures of each size as a batch, and which they are."""
    for start in range(0, len(pictures), 6):
        yield slice(start, start + 6), torch.from_numpy(np.stack(pictures[start : start + 6]))


@pytest.fixture(scope="module")
def script(embedder, classifier, tmp_path_factory):
    """Return the program of gated views, written and read again."""
    path = tmp_path_factory.mktemp("written") / "model.pt"
    source = Source({"": embedder}, views=preset("classifier_tta", classifier))
    write(source, Request(), path, {})
    with torchscript_allowed():
        return torch.jit.load(str(path))


def test_the_file_gives_what_the_page_says_of_each_picture_of_a_batch(script, pictures, told):
    for rows, batch in shapes(pictures):
        for images in (batch, batch.float()):
            np.testing.assert_allclose(ran(script, images), told[0][rows], atol=2e-6)
        for one in range(6):
            found = ran(script, batch[one : one + 1])
            np.testing.assert_allclose(found, told[0][rows][one : one + 1], atol=2e-6)


def general(classifier, **rest):
    """Return gated views at two scales with mirror images; the classifier reads what is not summed."""
    looks = {"whole": Whole(), "corner": Cut(0.7, "top_left"), "padded": Padded(0.9)}
    groups = {"some": Group(["apparel", "meme", "dishes"], ["corner", "padded"])}
    gate = Gate(["padded"], groups, **rest, classifier=classifier)
    return Views(looks, scales=(1.0, 1.5), flip=True, gate=gate)


@pytest.mark.parametrize("rest", [{"square": ["corner"]}, {}], ids=["shortcut", "all asked"])
def test_any_looks_scales_and_mirrors_are_chosen_in_the_file_as_in_evaluation(pictures, rest, tmp_path):
    embedder = small_system(kind=AnySize)
    views, pictures = general(classifier_of(embedder), **rest), pictures[6:30]
    found = embed(embedder, saved(tmp_path, pictures), Reader(batch_size=16, threads=1, views=views)).vectors
    with torchscript_allowed():
        script = program(Source({"": embedder}, views=views), Request())
    for rows, batch in shapes(pictures):
        np.testing.assert_allclose(ran(script, batch), found[rows], atol=2e-6)


def test_two_programs_without_branches_say_together_what_one_with_branches_says(
    embedder, classifier, pictures, told
):
    source = Source({"": embedder}, views=preset("classifier_tta", classifier))
    for rows, batch in shapes(pictures):
        is_square = batch.shape[2] == batch.shape[3]
        lowering = Lowering(prepared, lambda network, example: network, "square" if is_square else "other")
        found = ran(composed(source, Request(), lowering), batch)
        np.testing.assert_allclose(found, told[0][rows], atol=2e-6)


def test_a_picture_passes_the_network_once_for_each_of_its_views(
    embedder, classifier, pictures, told, tmp_path
):
    views, passed = preset("classifier_tta", classifier), []
    due = sum({"square": 1, "other": 2, "thing": 3}[branch] for branch in told[1])
    hook = embedder.backbone.register_forward_hook(lambda module, given, found: passed.append(len(found)))
    try:
        embed(embedder, saved(tmp_path, pictures), Reader(batch_size=20, threads=1, views=views))
        in_evaluation = sum(passed)
        eager = composed(
            Source({"": embedder}, views=views), Request(), Lowering(prepared, lambda one, _: one)
        )
        for _, batch in shapes(pictures):
            ran(eager, batch)
    finally:
        hook.remove()
    assert (in_evaluation, sum(passed) - in_evaluation) == (due, due)


def test_the_network_is_in_the_file_once_whatever_number_of_views_it_has(embedder, classifier, tmp_path):
    sizes = []
    for views in (None, preset("classifier_tta", classifier)):
        write(Source({"": embedder}, views=views), Request(), tmp_path / "model.pt", {})
        with zipfile.ZipFile(tmp_path / "model.pt") as archive:
            sizes.append(sum(one.file_size for one in archive.infolist() if "/data/" in one.filename))
    own = classifier.weight.nbytes + classifier.bias.nbytes
    assert own < sizes[1] - sizes[0] < own + 200


def test_a_space_is_refused_to_a_gate_that_knows_other_features(embedder):
    views = preset("classifier_tta", classifier_of(small_system(seed=1)))
    with pytest.raises(UserError, match=r"ckpt_cls: trained on other features \(\w+\) than this model has"):
        space_id(embedder, views=views)


@pytest.mark.parametrize("change", ["weights", "mean", "setting"])
def test_features_are_those_of_weights_normalisation_and_settings(change):
    one, other = small_system(), small_system()
    assert feature_space(one) == feature_space(other)
    other.neck.linear.weight.data += 1  # of the neck the classifier sees nothing
    other.use_preprocess(replace(other.preprocess, crop="center"))
    assert feature_space(one) == feature_space(other)
    if change == "weights":
        other.backbone.layers[0].bias.data[0] += 1e-6
    if change == "mean":
        other.use_preprocess(replace(other.preprocess, mean=(0.5, 0.5, 0.5)))
    if change == "setting":
        one.pool, other.pool = GeM(p=3.0), GeM(p=2.0)
    assert feature_space(one) != feature_space(other)


def test_golden_pictures_take_every_set_of_looks_that_noise_takes_and_clearly(embedder, classifier, caplog):
    views = preset("classifier_tta", classifier)
    with caplog.at_level("INFO", "guie"):
        images = drawing(Source({"": embedder}, views=views))(((1, 1), (20, 30)), 8, 0)
    np.testing.assert_array_equal(images[0], draw((1, 1), 8, 0))
    branches = []
    for picture in images[1]:
        feature = clip(embedder, torch.from_numpy(picture))
        scores = classifier.weight.double().numpy() @ feature + classifier.bias.double().numpy()
        things = np.isin(np.arange(11), THINGS)
        branches.append(bool(things[scores.argmax()]))
        other = np.flatnonzero(things != branches[-1])
        steps = (
            classifier.weight.double().numpy()[scores.argmax()] - classifier.weight.double().numpy()[other]
        )
        away = (scores.max() - scores[other]) / np.linalg.norm(steps, axis=1) / np.linalg.norm(feature)
        assert away.min() > CLEAR
    assert sorted(set(branches)) == [False, True]
    assert caplog.messages == ["golden pictures take 2 of the gate's 2 sets of looks"]


def test_pictures_are_picked_by_turns_the_clearest_first_and_unclear_ones_last():
    looks = np.array([0, 0, 0, 1, 1, 0])
    distances = np.array([0.1, 0.5, 0.01, 0.3, np.nan, np.inf])
    assert picked(looks, distances, 6).tolist() == [5, 3, 1, 0, 4, 2]
    assert picked(looks, distances, 2).tolist() == [5, 3]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_clear_pictures_keep_their_looks(embedder, classifier, precision):
    source = Source({"": embedder}, views=preset("classifier_tta", classifier))
    sizes = ((20, 30), (41, 17))
    images = drawing(source)(sizes, 8, 0)
    with torchscript_allowed():
        script = program(source, Request(precision))
    for pictures in images:
        told = [by_the_page(embedder, classifier, torch.from_numpy(picture))[0] for picture in pictures]
        assert (ran(script, torch.from_numpy(pictures)) * np.stack(told)).sum(1).min() > 0.999
