import os
import signal

import numpy as np
import pytest
import torch

from guie.build import build
from guie.config.compose import composed, directory
from guie.data.augment import CropFlip, Plain
from guie.data.bad_images import BadImages
from guie.data.buckets import AspectBuckets, aspects, at_size
from guie.data.loader import Loader, sampler_facts, train_loader
from guie.data.pixels import open_pixels
from guie.data.sampling import PerClass, Shuffled
from guie.data.warp import Warp
from guie.errors import UserError
from guie.types import Preprocess

SPEC = Preprocess((16, 16))


def known(manifest, orientations=1):
    facts = sampler_facts(manifest, orientations=orientations)
    return {key: facts[key] for key in ("labels", "domains")}


def make(manifest, tmp_path, augment=None, *, sampler=Shuffled, orientations=1, max_share=0.5, **options):
    facts = known(manifest, orientations)
    augment = augment or Warp(preprocess=SPEC, num_steps=100)
    bad = BadImages(manifest, tmp_path / "run" / "bad_images.csv", max_share=max_share)
    return train_loader(
        manifest,
        sampler(**facts, batch_size=8, seed=5),
        augment,
        preprocess=SPEC,
        seed=5,
        cache_dir=tmp_path / "cache",
        bad_images=bad,
        orientations=orientations,
        **options,
    )


def gathered(loader, *stretch):
    batches = list(loader.batches(*stretch))
    fields = ("images", "labels", "domains", "ids")
    return {field: torch.cat([getattr(batch, field) for batch in batches]) for field in fields}


def same(first, second):
    return all(torch.equal(first[field], second[field]) for field in first)


@pytest.mark.parametrize(
    "augment", [Warp(preprocess=SPEC, num_steps=100), CropFlip(preprocess=SPEC), Plain(preprocess=SPEC)]
)
def test_a_run_cut_in_two_shows_what_a_straight_one_shows(pictures, tmp_path, augment):
    loader = make(pictures, tmp_path, augment)
    straight = gathered(loader, 0, 7)
    first, rest = gathered(loader, 0, 3), gathered(make(pictures, tmp_path, augment), 3, 7)
    assert same(straight, {field: torch.cat([first[field], rest[field]]) for field in first})
    assert straight["images"].shape == (56, 3, 16, 16)


def test_labels_domains_and_ids_belong_to_the_pictures(pictures, tmp_path):
    seen = gathered(make(pictures, tmp_path, Plain(preprocess=SPEC)), 0, 3)
    ids = seen["ids"]
    assert sorted(ids.tolist()) == list(range(24))
    assert torch.equal(seen["labels"], ids // 4) and torch.equal(seen["domains"], ids // 12)
    red = seen["images"][:, 0, 12, 12].float()
    assert (red - 10 * ids).abs().max() < 6


@pytest.mark.parametrize("augment", [Warp(preprocess=SPEC, num_steps=100), CropFlip(preprocess=SPEC)])
def test_two_ranks_or_two_pieces_show_the_batch_of_one(pictures, tmp_path, augment):
    loader = make(pictures, tmp_path, augment)
    whole = gathered(loader, 4, 5)
    ranks = [gathered(loader, 4, 5, rank, 2) for rank in range(2)]
    assert same(whole, {field: torch.cat([r[field] for r in ranks]) for field in whole})
    assert same(whole, gathered(loader, 4, 5, 0, 1, 2))
    assert len(list(loader.batches(4, 5, 0, 1, 2))) == 2


@pytest.mark.parametrize("augment", [Warp(preprocess=SPEC, num_steps=100), CropFlip(preprocess=SPEC)])
def test_worker_processes_show_what_the_thread_shows(pictures, tmp_path, augment):
    alone = gathered(make(pictures, tmp_path, augment), 2, 6)
    assert same(alone, gathered(make(pictures, tmp_path, augment, workers=2), 2, 6))


SAMPLERS = sorted(path.stem for path in (directory() / "sampler").glob("*.yaml"))


def by_sampler(name, manifest, tmp_path, **options):
    """Return a loader by the sampler's YAML, its templates shrunk."""
    node = composed("train", [f"sampler={name}"])["sampler"]
    if "sizes" in node:
        node["sizes"] = [[side // 32 for side in size] for size in node["sizes"]]
    sampler = build(node, where="sampler", **sampler_facts(manifest), batch_size=8, seed=5)
    augment = CropFlip(preprocess=SPEC)
    return train_loader(
        manifest, sampler, augment, preprocess=SPEC, seed=5, cache_dir=tmp_path / "cache", **options
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_ranks_of_two_workers_and_a_resumed_run_show_each_slot_once_and_the_same(name, shapes, tmp_path):
    straight = list(by_sampler(name, shapes, tmp_path).batches(0, 6))
    for rank in range(2):
        loader = by_sampler(name, shapes, tmp_path, workers=2)
        resumed = [*loader.batches(0, 2, rank, 2), *loader.batches(2, 6, rank, 2)]
        assert len(resumed) == 6
        for piece, whole in zip(resumed, straight, strict=True):
            mine = slice(rank * 4, rank * 4 + 4)  # of the eight slots: with both ranks each is seen once
            for field in ("images", "labels", "domains", "ids"):
                assert torch.equal(getattr(piece, field), getattr(whole, field)[mine]), field


def test_the_comparison_of_ranks_can_fail(shapes, tmp_path):
    first, second = (
        by_sampler("shuffled", shapes, tmp_path).batches(0, 1, rank, 2).__next__() for rank in (0, 1)
    )
    assert not torch.equal(first.ids, second.ids)


def test_pictures_of_a_step_have_the_size_of_their_bucket_and_their_own_shape(shapes, tmp_path):
    seen = list(by_sampler("aspect_buckets", shapes, tmp_path).batches(0, 12))
    wanted = {0: (11, 16), 1: (14, 14), 2: (16, 11)}  # wide, square, tall: 352x512, 448x448, 512x352 over 32
    for batch in seen:
        assert tuple(batch.images.shape[2:]) == wanted[int(batch.ids[0]) % 3]
        assert len(set((batch.ids % 3).tolist())) == 1
    assert {tuple(batch.images.shape[2:]) for batch in seen} == set(wanted.values())


def test_a_crop_keeps_its_range_of_aspects_relative_to_the_bucket():
    wide = at_size(CropFlip(ratio=(1.0, 1.0), preprocess=SPEC), (8, 16))
    assert wide.ratio == (2.0, 2.0) and wide.preprocess.size_px == (8, 16)
    assert at_size(Plain(preprocess=SPEC), (8, 16)).preprocess.size_px == (8, 16)


def test_cached_pictures_cannot_change_their_shape(shapes, tmp_path):
    sampler = AspectBuckets(labels=shapes.labels, aspects=aspects(shapes), batch_size=8, seed=0)
    with pytest.raises(UserError, match="augment: Warp has pictures of one size, the sampler has several"):
        train_loader(
            shapes,
            sampler,
            Warp(preprocess=SPEC, num_steps=9),
            preprocess=SPEC,
            seed=0,
            cache_dir=tmp_path,
        )


class Killer(Plain):
    """Kills the worker process it is called in."""

    def __call__(self, data, u):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_run_instead_of_hanging_it(pictures, tmp_path):
    loader = make(pictures, tmp_path, Killer(preprocess=SPEC), workers=1, timeout_s=60)
    with pytest.raises(RuntimeError, match=r"killed by signal|exited unexpectedly"):
        list(loader.batches(0, 2))


def test_turns_are_classes_of_their_own(pictures, tmp_path):
    loader = make(pictures, tmp_path, Plain(preprocess=SPEC), orientations=4)
    assert loader.num_classes == 24 and loader.steps_per_epoch == 12
    seen = gathered(loader, 0, 12)
    turns = seen["labels"] % 4
    assert torch.equal(seen["labels"] // 4, pictures_labels(pictures)[seen["ids"]])
    # the dark corner goes round against the clock: upper left, lower left, lower right, upper right
    corners = [(3, 3), (12, 3), (12, 12), (3, 12)]
    green = torch.stack([seen["images"][:, 1, y, x].float() for y, x in corners], dim=1)
    assert torch.equal(green.argmin(dim=1), turns)


def test_mirrored_orientations_are_classes_of_their_own_too(pictures, tmp_path):
    loader = make(pictures, tmp_path, Plain(preprocess=SPEC), orientations=8)
    seen = gathered(loader, 0, 24)
    shown = list(zip(seen["ids"].tolist(), seen["images"], (seen["labels"] % 8).tolist(), strict=True))
    plain = {i: image for i, image, orientation in shown if orientation == 0}
    for i, image, orientation in shown:
        expected = plain[i].flip(-1) if orientation >= 4 else plain[i]
        assert torch.equal(image, torch.rot90(expected, orientation % 4, (1, 2)))


def pictures_labels(manifest):
    return torch.from_numpy(manifest.labels)


@pytest.mark.parametrize("augment", [Warp(preprocess=SPEC, num_steps=100), CropFlip(preprocess=SPEC)])
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_pictures_are_replaced_by_the_next_of_their_class_and_listed(spoiled, tmp_path, augment, workers):
    loader = make(spoiled, tmp_path, augment, workers=workers)
    ids = gathered(loader, 0, 3)["ids"].tolist()
    wanted = [{5: 6, 9: 10}.get(row, row) for row in range(24)]
    assert sorted(ids) == sorted(wanted)
    lines = (tmp_path / "run" / "bad_images.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["file", "p05.jpg", "p09.jpg"]
    assert len(loader.bad_images) == 2


def test_too_many_bad_pictures_end_the_run_with_one_line(spoiled, tmp_path):
    message = (
        r"bad_images: 2 of 24 pictures \(8.3%\) cannot be used, listed in .*bad_images.csv; .* at most 5.0%"
    )
    with pytest.raises(UserError, match=message):
        make(spoiled, tmp_path, max_share=0.05)


def test_the_policy_fail_ends_the_run_at_the_first(spoiled):
    with pytest.raises(
        UserError, match=r"bad_images: p05.jpg cannot be used \(cut short\); accepted .* none"
    ):
        BadImages(spoiled, policy="fail").add(5, "cut short")
    with pytest.raises(UserError, match=r"bad_images: 'ignore'; accepted: skip, fail"):
        BadImages(spoiled, policy="ignore")


def test_a_resumed_run_keeps_its_list_and_counts_none_twice(spoiled, tmp_path):
    for row in (5, 9, 5):
        BadImages(spoiled, tmp_path / "b.csv", max_share=0.5).add(row, "reason, with a comma")
    assert len(BadImages(spoiled, tmp_path / "b.csv")) == 2


def test_where_nothing_can_be_read_the_run_says_so(pictures, tmp_path):
    for file in pictures.files:
        (pictures.root / file).write_bytes(b"<html>")
    with pytest.raises(UserError, match="none of 24 pictures can be read"):
        gathered(make(pictures, tmp_path, CropFlip(preprocess=SPEC), max_share=1.0), 0, 1)


def test_a_batch_stage_needs_cached_pictures(pictures):
    facts = known(pictures)
    with pytest.raises(UserError, match="augment: Warp works on cached pictures"):
        Loader(
            pictures, Shuffled(**facts, batch_size=8, seed=0), Warp(preprocess=SPEC, num_steps=100), seed=0
        )


def test_leaving_early_stops_the_thread(pictures, tmp_path):
    loader = make(pictures, tmp_path, sampler=PerClass)
    for batch in loader.batches(0, 1000):
        assert batch.labels.reshape(2, 4).unique(dim=1).shape == (2, 1)
        break


def test_the_pixel_cache_is_the_evaluation_preprocessing_and_is_built_once(pictures, tmp_path):
    from guie.resize import load

    told = []
    cache = open_pixels(pictures, SPEC, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (24, 24) and len(cache) == 24
    for row in (0, 11, 23):
        np.testing.assert_array_equal(cache[np.array([row])][0], load(pictures.read(row), SPEC))
    told.clear()
    again = open_pixels(pictures, SPEC, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert again.folder == cache.folder and not told
    assert open_pixels(pictures, Preprocess((8, 8)), tmp_path).folder != cache.folder
    assert open_pixels(pictures.select(range(9)), SPEC, tmp_path).folder != cache.folder
    bright = Preprocess((16, 16), mean=(0.5, 0.5, 0.5))
    assert open_pixels(pictures, bright, tmp_path).folder == cache.folder


def test_an_unfinished_pixel_cache_is_built_again(pictures, tmp_path):
    cache = open_pixels(pictures, SPEC, tmp_path)
    wanted = cache[np.arange(24)]
    (cache.folder / "pixels.json").unlink()
    (cache.folder / "pixels.u8").write_bytes(b"")
    np.testing.assert_array_equal(open_pixels(pictures, SPEC, tmp_path)[np.arange(24)], wanted)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_the_pixel_cache_lists_bad_pictures(spoiled, tmp_path):
    cache = open_pixels(spoiled, SPEC, tmp_path)
    assert sorted(cache.bad) == [5, 9] and "p09.jpg" in cache.bad[9]
