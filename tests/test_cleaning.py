"""Label cleaning keeps what neighbours of the same label verify."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guie import cleaning
from guie.cleaning import Cleaning, believed, clean, same_label_neighbours
from guie.datasets.known import opened
from guie.datasets.manifest import from_columns
from guie.errors import UserError

sys.path.insert(0, str(Path(__file__).parent / "local"))
from scenes import TURN, scene, seen_again

SETTINGS = Cleaning(neighbours=9, candidates=4, min_inliers=15, min_support=1, min_images=2, max_px=240)


@pytest.fixture
def rows(tmp_path):
    """Two landmarks in three views each, one wrong picture in the first, one unreadable; a class of one."""
    (tmp_path / "raw").mkdir()
    views = [np.eye(3), TURN, TURN @ TURN]
    pictures = {f"a{i}": seen_again(scene(0), view) for i, view in enumerate(views)}
    pictures |= {f"b{i}": seen_again(scene(1), view) for i, view in enumerate(views)}
    pictures |= {"wrong": scene(7), "alone": scene(8)}
    labels = ["a"] * 3 + ["b"] * 3 + ["a", "c", "b"]
    for name, image in pictures.items():
        Image.fromarray(image).save(tmp_path / "raw" / f"{name}.png")
    (tmp_path / "raw" / "bad.png").write_bytes(b"no picture")
    files = [f"{name}.png" for name in [*pictures, "bad"]]
    return from_columns("views", tmp_path / "raw", {"file": files, "label": labels})


@pytest.fixture
def vectors():
    v = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_verified_pictures_stay_and_the_result_opens_as_a_data_set(
    rows, vectors, tmp_path, workers, monkeypatch
):
    monkeypatch.setattr(cleaning, "SHARD_ROWS", 3)
    told = []
    left = clean(
        rows, vectors, SETTINGS, tmp_path / "out", workers=workers, progress=lambda *x: told.append(x)
    )
    assert sorted(left.files) == ["a0.png", "a1.png", "a2.png", "b0.png", "b1.png", "b2.png"]
    again = opened(tmp_path / "out", "views")
    assert again.files.tolist() == left.files.tolist() and again.read(0) == left.read(0)
    found = json.loads((tmp_path / "out" / "cleaning.json").read_text())
    assert found["images"] == {"before": 9, "after": 6} and found["classes"] == {"before": 3, "after": 2}
    assert found["images_by_support"] == {"0": 3, "1": 6}
    assert told[-1] == (9, 9)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) in ([], [".guie"])


def test_a_killed_job_goes_on_with_the_shards_it_has(rows, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(cleaning, "SHARD_ROWS", 3)
    real, calls = cleaning.shard_support, []

    def dies(job):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(len(job[0]))
        return real(job)

    monkeypatch.setattr(cleaning, "shard_support", dies)
    with pytest.raises(KeyboardInterrupt):
        clean(rows, vectors, SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    with pytest.raises(UserError, match=r"unfinished work with other min_support; accepted: a new folder"):
        clean(rows, vectors, Cleaning(**{**SETTINGS.__dict__, "min_support": 2}), tmp_path / "out")
    calls.clear()
    monkeypatch.setattr(cleaning, "shard_support", lambda job: calls.append(len(job[0])) or real(job))
    left = clean(rows, vectors, SETTINGS, tmp_path / "out")
    assert len(left) == 6 and sum(calls) < len(rows)
    with pytest.raises(UserError, match=r"is finished; accepted: a new folder"):
        clean(rows, vectors, SETTINGS, tmp_path / "out")


def test_neighbours_of_the_same_label_come_by_similarity():
    r = np.random.default_rng(3)
    labels, v = r.integers(0, 4, 40), r.standard_normal((40, 6)).astype(np.float32)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    found = same_label_neighbours(labels, v, Cleaning(neighbours=15, candidates=5))
    for row in range(40):
        order = [int(i) for i in np.argsort(-(v @ v[row]), kind="stable") if i != row][:15]
        expected = [i for i in order if labels[i] == labels[row]][:5]
        assert found[row][found[row] >= 0].tolist() == expected


def test_thresholds_are_at_least_and_small_classes_go():
    labels, support = np.array([0, 0, 0, 1, 1, 2]), np.array([3, 2, 4, 3, 0, 9])
    assert believed(labels, support, Cleaning(min_support=3, min_images=2)).tolist() == [
        True, False, True, False, False, False,
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"cleaning\.min_support: 0; accepted: 1 or more"):
        Cleaning(min_support=0).check()


def test_nothing_left_is_an_error(rows, vectors, tmp_path):
    with pytest.raises(UserError, match=r"no label is believed; accepted: a lower min_inliers"):
        clean(rows, vectors, Cleaning(min_inliers=100000), tmp_path / "out")
