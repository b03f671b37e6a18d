"""guie-clean from its command line to a list that trains."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guie import embeddings
from guie.cli import clean
from guie.datasets.known import opened
from guie.embeddings import picture_names
from guie.types import Embeddings

sys.path.insert(0, str(Path(__file__).parents[1] / "local"))
from scenes import TURN, scene, seen_again


@pytest.fixture
def pictures(tmp_path):
    """Two things three times each, and in each folder one picture of something else."""
    for label, seed in (("a", 0), ("b", 1)):
        (tmp_path / "raw" / label).mkdir(parents=True)
        views = [seen_again(scene(seed), view) for view in (np.eye(3), TURN, TURN @ TURN)]
        for number, image in enumerate([*views, scene(seed + 5)]):
            Image.fromarray(image).save(tmp_path / "raw" / label / f"{number}.png")
    return tmp_path


def saved(place):
    from guie.datasets.folder import folder

    rows = folder(str(place / "raw"), split="train", data_root=".")
    vectors = np.random.default_rng(0).standard_normal((len(rows), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = np.array(picture_names(rows, np.arange(len(rows))), dtype=object)
    same = np.full(len(rows), "", dtype=object)
    strings = {"files": names, "labels": same, "domains": same, "splits": same}
    embeddings.save(Embeddings(vectors, space_id="early", **strings), place / "vectors")


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["guie-clean", *arguments])
    code = 0
    try:
        clean.main()
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr()


def arguments(place, *more):
    source = ["dataset=folder", f"dataset.folder.root={place / 'raw'}", "dataset.folder.split=train"]
    limits = ["cleaning.min_support=1", "cleaning.min_inliers=20", "cleaning.neighbours=7", "workers=1"]
    return [*source, *limits, f"out={place / 'out'}", f"embeddings={place / 'vectors'}", *more]


def test_wrong_pictures_go_and_the_rest_is_a_data_set(pictures, monkeypatch, capsys):
    saved(pictures)
    code, said = run(monkeypatch, capsys, *arguments(pictures))
    assert code == 0 and "images" in said.out and "8 -> 6" in said.out
    assert not any(file.endswith("3.png") for file in opened(pictures / "out", "x").files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["embeddings=null"], "ckpt: not given; accepted: a run or checkpoint, or embeddings=PATH"),
        (["out=null"], "out: not given"),
        (["cleaning.min_support=0"], "cleaning.min_support: 0; accepted: 1 or more"),
        (["cleaning.min_suport=2"], "min_suport: unknown key; did you mean 'min_support'?"),
    ],
)
def test_mistakes_are_one_line(pictures, monkeypatch, capsys, change, message):
    saved(pictures)
    code, said = run(monkeypatch, capsys, *arguments(pictures, *change))
    assert code == 2 and message in said.err and said.err.count("\n") == 1
    assert not (pictures / "out").exists()
