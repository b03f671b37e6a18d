import io
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import fork, wait

from guie.data.bad_images import BadImages
from guie.data.mixup import Mixup
from guie.data.sampling import Shuffled
from guie.embed.batches import CachedBatches
from guie.embed.features import DrawnViews, augmented_views, cache_features
from guie.embed.reading import Job, Reader, looks
from guie.embed.space import space_id
from guie.embed.vectors import embed
from guie.errors import UserError
from guie.models.backbones import Timm
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import MAC, RMAC, Average, GeM
from guie.resize import load
from guie.train.synced_bn import synchronise

READER = Reader(batch_size=4, threads=2)
N = 11


def by_hand(embedder, manifest):
    embedder.eval()
    pictures = [torch.from_numpy(load(manifest.read(i), embedder.preprocess)) for i in range(len(manifest))]
    with torch.no_grad():
        found = [(embedder.features(p[None])[0], embedder(p[None]).z[0]) for p in pictures]
    embedder.train()
    return (torch.stack(column).numpy() for column in zip(*found, strict=True))


def test_vectors_are_those_of_one_picture_at_a_time(embedder, manifest):
    found = embed(embedder, manifest, READER)
    np.testing.assert_allclose(found.vectors, list(by_hand(embedder, manifest))[1], atol=1e-6)
    assert found.vectors.dtype == np.float32
    assert list(found.labels) == [str(i % 3) for i in range(N)]
    assert found.space_id == space_id(embedder)
    assert embedder.training


def test_the_space_changes_with_a_weight(embedder):
    before = space_id(embedder)
    weights = {name: value.clone() for name, value in embedder.state_dict().items()}
    weights["neck.1.bias"][0] += 1e-6
    assert space_id(embedder, weights) != before


def test_bad_pictures_are_left_out_and_listed_or_end_the_run(embedder, manifest, tmp_path):
    (tmp_path / "5.png").write_bytes(b"")
    (tmp_path / "7.png").unlink()
    listed = BadImages(manifest, tmp_path / "bad_images.csv", max_share=0.5)
    found = embed(embedder, manifest, READER, bad_images=listed)
    assert list(found.files) == [f"{i}.png" for i in range(N) if i not in (5, 7)]
    assert len((tmp_path / "bad_images.csv").read_text().splitlines()) == 3
    with pytest.raises(UserError, match=r"bad_images: .*5\.png"):
        embed(embedder, manifest, READER, bad_images=BadImages(manifest, policy="fail"))


def test_a_killed_job_continues_without_gaps_and_computes_no_row_twice(embedder, manifest, tmp_path):
    whole = embed(embedder, manifest, READER)

    def killed():
        def progress(done, total):
            if done == 8:
                os.kill(os.getpid(), signal.SIGKILL)

        embed(embedder, manifest, READER, folder=tmp_path / "work", progress=progress)

    assert wait(fork(killed, tmp_path / "log")) == -signal.SIGKILL, (tmp_path / "log").read_text()
    counts = []
    found = embed(
        embedder, manifest, READER, folder=tmp_path / "work", progress=lambda done, total: counts.append(done)
    )
    assert counts == [11]
    np.testing.assert_array_equal(found.vectors, whole.vectors)
    assert not list((tmp_path / "work").glob("*.npy"))


def test_features_are_computed_once_and_are_the_networks_in_half_precision(embedder, manifest, tmp_path):
    calls = []
    cached = cache_features(embedder, manifest, tmp_path / "c", READER, progress=lambda d, n: calls.append(d))
    assert calls == [4, 8, 11]
    features = next(by_hand(embedder, manifest))
    assert cached.features.dtype == np.float16
    np.testing.assert_allclose(cached.features[0], features, rtol=1e-3, atol=1e-4)
    again = cache_features(embedder, manifest, tmp_path / "c", READER, progress=lambda d, n: calls.append(d))
    assert calls == [4, 8, 11]
    assert again.path == cached.path


def test_the_cache_key_follows_weights_pictures_preprocessing_and_views_but_not_the_neck(
    embedder, manifest, tmp_path
):
    def path(**changes):
        return cache_features(
            embedder,
            changes.get("rows", manifest),
            tmp_path / "c",
            READER,
            **{key: value for key, value in changes.items() if key == "views"},
        ).path

    first = path()
    with torch.no_grad():
        embedder.neck[1].weight.add_(1)
    assert path() == first
    seen = {first, path(rows=manifest.select(np.arange(5)))}
    seen.add(path(views=DrawnViews(1, lambda view, row: np.zeros((3, 4, 4), np.uint8), "black")))
    embedder.backbone[1].running_mean.add_(1)
    seen.add(path())
    embedder.preprocess = type(embedder.preprocess)(size_px=(4, 4), interpolation="bilinear")
    seen.add(path())
    assert len(seen) == 5


def test_features_of_another_pooling_are_other_features(embedder, manifest, tmp_path):
    paths = set()
    spaces = set()
    for embedder.pool in (Average(), MAC(), GeM(eps=1e-6), GeM(eps=1e-3), RMAC(2), RMAC(3)):
        paths.add(cache_features(embedder, manifest, tmp_path / "c", READER).path)
        spaces.add(space_id(embedder))
    assert len(paths) == len(spaces) == 6


def test_settings_without_a_weight_make_other_spaces_and_how_it_stands_does_not():
    def named(seed=0, **settings):
        torch.manual_seed(seed)
        backbone = Timm("resnet10t", pretrained=False, image_px=32, **settings)
        return Embedder(backbone, Average(), Linear(4, in_dim=backbone.out_dim))

    plain = named()
    spaces = {space_id(made) for made in (plain, named(trim=True), named(options={"output_stride": 16}))}
    assert len(spaces) == 3
    before = space_id(plain)
    plain.freeze_backbone()
    assert space_id(plain.train()) == before == space_id(named(checkpointing=False))
    synchronise(plain)
    for module in plain.modules():
        module._is_cut_over_ranks = True  # FSDP marks modules so
    assert space_id(plain) == before


def test_views_are_kept_apart_and_drawn_as_a_function_of_the_step(embedder, manifest, tmp_path):
    def picture(view, row):
        return np.full((3, 4, 4), 10 * view + row, np.uint8)

    cached = cache_features(embedder, manifest, tmp_path / "c", READER, views=DrawnViews(3, picture, "flat"))
    assert cached.features.shape == (3, N, 16)
    facts = {"labels": manifest.labels, "domains": manifest.domains}
    sampler = Shuffled(**facts, batch_size=8, seed=1)
    source = CachedBatches(cached, sampler, manifest.labels, manifest.domains, seed=5)
    straight = list(source.batches(0, 6))
    for later, batch in zip(source.batches(3, 6), straight[3:], strict=True):
        torch.testing.assert_close(later.images, batch.images, rtol=0, atol=0)
    halves = [list(source.batches(0, 6, rank, 2)) for rank in (0, 1)]
    for step, batch in enumerate(straight):
        together = torch.cat([halves[rank][step].images for rank in (0, 1)])
        torch.testing.assert_close(together, batch.images, rtol=0, atol=0)
        np.testing.assert_array_equal(batch.labels, manifest.labels[batch.ids])
    used = {tuple(map(float, row)) for batch in straight for row in batch.images}
    assert len(used) > N  # more than one view of some pictures


def test_mixup_blends_rows_of_the_global_batch_as_a_function_of_the_step(embedder, manifest, tmp_path):
    cached = cache_features(embedder, manifest, tmp_path / "c", READER)
    labels, domains = manifest.labels, manifest.domains
    sampler = Shuffled(labels=labels, domains=domains, batch_size=8, seed=1)
    mixup = Mixup(alpha=1.0, p=0.5, stop=30, seed=5)
    source = CachedBatches(cached, sampler, labels, domains, seed=5, mixup=mixup)
    straight = list(source.batches(0, 40))
    blended = [batch for batch in straight if batch.mixed is not None]
    assert 5 < len(blended) < 25
    assert all(batch.mixed is None for batch in straight[30:])
    features = torch.from_numpy(cached.features[0].astype(np.float32))
    for batch in blended:
        mixed = batch.mixed
        expected = mixed.share * features[batch.ids] + (1 - mixed.share) * features[mixed.ids]
        torch.testing.assert_close(batch.images, expected)
        assert sorted(mixed.ids.tolist()) == sorted(batch.ids.tolist())
        np.testing.assert_array_equal(mixed.labels, labels[mixed.ids])
    assert len({float(batch.mixed.share) for batch in blended}) == len(blended)
    later = next(source.batches(7, 8))
    torch.testing.assert_close(later.images, straight[7].images, rtol=0, atol=0)
    halves = [list(source.batches(0, 40, rank, 2)) for rank in (0, 1)]
    for step, batch in enumerate(straight):
        pair = [halves[rank][step] for rank in (0, 1)]
        torch.testing.assert_close(torch.cat([b.images for b in pair]), batch.images, rtol=0, atol=0)
        if batch.mixed is not None:
            assert torch.cat([b.mixed.labels for b in pair]).tolist() == batch.mixed.labels.tolist()


def test_rows_without_features_are_replaced_by_their_class(embedder, manifest, tmp_path):
    (tmp_path / "4.png").write_bytes(b"")
    listed = BadImages(manifest, max_share=0.5)
    cached = cache_features(embedder, manifest, tmp_path / "c", READER, bad_images=listed)
    sampler = Shuffled(labels=manifest.labels, domains=manifest.domains, batch_size=N, seed=1)
    source = CachedBatches(cached, sampler, manifest.labels, manifest.domains, seed=0)
    batch = next(source.batches(0, 1))
    assert sorted(batch.ids.tolist()) == [0, 1, 2, 3, 5, 6, 7, 7, 8, 9, 10]
    assert bool(torch.isfinite(batch.images).all())


def test_augmented_views_depend_on_seed_view_and_row_only(manifest):
    class Shift:
        stage = "sample"

        def draws(self, seed, step, slots):
            return np.array([[seed, step, slot] for slot in slots], float)

        def __call__(self, data, u):
            assert Image.open(io.BytesIO(data)).size[0] == 12
            return u

    views = augmented_views(Shift(), manifest, 2, seed=9, key="shift")
    assert views.picture(1, 3).tolist() == [9, 1, 3]
    assert views.key != augmented_views(Shift(), manifest, 2, seed=8, key="shift").key


def test_views_of_cached_pictures_are_those_of_the_batch_stage(manifest, tmp_path):
    from guie.data.pixels import open_pixels
    from guie.data.warp import Warp, cached_preprocess
    from guie.types import Preprocess

    spec = Preprocess(size_px=(8, 8))
    warp = Warp(preprocess=spec, num_steps=100)
    with pytest.raises(
        UserError, match=r"trainer\.cache_views: 2 by Warp without cached pictures; accepted: 1"
    ):
        augmented_views(warp, manifest, 2, seed=9, key="warp")
    pixels = open_pixels(manifest, cached_preprocess(spec, warp.cached_px), tmp_path / "p")
    views = augmented_views(warp, manifest, 2, seed=9, key="warp", pixels=pixels)
    rows = np.arange(N)
    together = warp(torch.from_numpy(pixels[rows]), warp.draws(9, 1, rows))
    for row in (0, 5):
        np.testing.assert_allclose(views.picture(1, row), together[row], atol=1e-3)


def test_a_picture_whose_vector_is_not_finite_is_named(embedder, manifest):
    def forward(images, rows):
        return torch.from_numpy(np.where(rows == 7, np.nan, 1.0))[:, None]

    job = Job(manifest, looks(manifest, embedder, None), READER, BadImages(manifest))
    with pytest.raises(UserError, match=r"not finite in float32, of 1 pictures such as 7\.png; accepted"):
        list(job.computed(job.cut(range(N)), forward, 1, np.dtype(np.float32)))


def test_features_too_large_for_half_precision_are_refused(embedder, manifest, tmp_path):
    embedder.pool = torch.nn.Threshold(1e6, 1e6)
    with pytest.raises(UserError, match="not finite in float16"):
        cache_features(embedder, manifest, tmp_path / "c", READER)
