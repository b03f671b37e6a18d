import hashlib

import numpy as np
import pytest

from guie.datasets.toy import toy
from guie.errors import UserError
from guie.floors import FLOORS
from guie.images import decode


def contents(manifest):
    return [hashlib.sha256(manifest.read(i)).hexdigest() for i in range(len(manifest))]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return toy(instances=6, views=4, data_root=str(tmp_path_factory.mktemp("toy")))


def test_toy_is_the_same_for_the_same_seed_and_another_for_another(small, tmp_path):
    again = toy(instances=6, views=4, data_root=str(tmp_path))
    assert again.fingerprint() == small.fingerprint() and contents(again) == contents(small)
    other = toy(instances=6, views=4, seed=1, data_root=str(tmp_path))
    assert not set(contents(other)) & set(contents(small))


def test_toy_has_domains_views_and_unseen_things(small):
    assert len(small.domain_names) == 6 and len(small) == 6 * 6 * 4
    assert (np.bincount(small.labels) == 4).all()
    train, test = small.split("train"), small.split("test")
    assert not set(train.label_names) & set(test.label_names)
    assert len(test.domain_names) == 6 and test.num_classes == 12


def test_toy_pictures_are_small_jpegs(small):
    for row in range(0, len(small), 17):
        data = small.read(row)
        assert data[:2] == b"\xff\xd8" and 64 <= decode(data).shape[0] <= 96


def test_a_half_written_cache_is_drawn_again_and_a_whole_one_is_not(small, tmp_path):
    whole = toy(instances=2, views=2, data_root=str(tmp_path))
    before = contents(whole)
    stamp = (whole.root / "manifest.parquet").stat().st_mtime_ns
    toy(instances=2, views=2, data_root=str(tmp_path))
    assert (whole.root / "manifest.parquet").stat().st_mtime_ns == stamp
    (whole.root / "manifest.parquet").unlink()
    next((whole.root / "food").iterdir()).unlink()
    assert contents(toy(instances=2, views=2, data_root=str(tmp_path))) == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [whole.root.name]


@pytest.mark.parametrize(("key", "value"), [("instances", 1), ("views", 1), ("test_classes", 1.0)])
def test_toy_numbers_that_leave_nothing_are_refused(key, value, tmp_path):
    with pytest.raises(UserError, match=rf"dataset.toy.{key}: {value}; accepted"):
        toy(**{key: value}, data_root=str(tmp_path))


def test_neither_raw_pixels_nor_colours_find_the_thing_again(tmp_path):
    test = toy(data_root=str(tmp_path)).split("test")
    pictures = [decode(test.read(i)) for i in range(len(test))]
    found = {
        name: precision_at_5(np.stack([describe(picture).ravel() for picture in pictures]), test.labels)
        for name, describe in FLOORS.items()
    }
    assert found["raw_pixels"] <= 0.25 and found["colour_histogram"] <= 0.35
    # and they are no noise either: the things are there to be seen
    assert min(found.values()) > 0.05


def precision_at_5(vectors, labels):
    gram = vectors @ vectors.T
    np.fill_diagonal(gram, -np.inf)
    return (labels[np.argsort(-gram, axis=1)[:, :5]] == labels[:, None]).mean()
