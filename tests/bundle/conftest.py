"""One bundle, written once, that tests look at or copy before they change it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from small import evaluation_folder, model, order, run_folder, written

from guie.bundle.decoding import odd_pictures
from guie.embed.space import space_id
from guie.export.torchscript import torchscript_allowed

TOY = {"toy": {"_target_": "guie.datasets.toy.toy"}}


@pytest.fixture(autouse=True)
def deprecated_torchscript():
    with torchscript_allowed():
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> SimpleNamespace:
    """Return `folder`, the `embedder` in it, its `run` and its `evaluation`."""
    place, embedder = tmp_path_factory.mktemp("bundles"), model()
    run = run_folder(place / "run", TOY, ("one", "two, or more", "three"))
    evaluation = evaluation_folder(place / "evaluation", space_id(embedder))
    with torchscript_allowed():
        folder = written(order(embedder, run, evaluation=evaluation), place / "bundle")
    return SimpleNamespace(folder=folder, embedder=embedder, run=run, evaluation=evaluation)


@pytest.fixture
def bundle(made) -> Path:
    return made.folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Return a folder of odd pictures: grey, palette, CMYK, turned by EXIF, 16 bits, transparent ..."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, data in odd_pictures().items():
        (folder / name).write_bytes(data)
    return folder
