"""One bundle in two formats, written once, that tests look at or copy before they change it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from small import evaluation_folder, model, order, run_folder, written

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
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    place, embedder = tmp_path_factory.mktemp("bundles"), model()
    run = run_folder(place / "run", TOY, ("one", "two, or more", "three"))
    evaluation = evaluation_folder(place / "evaluation", space_id(embedder))
    with torchscript_allowed():
        wanted = order(embedder, run, ("onnx", "torchscript"), evaluation=evaluation)
        folder = written(wanted, place / "bundle")
    return SimpleNamespace(folder=folder, embedder=embedder, run=run, evaluation=evaluation)


@pytest.fixture
def bundle(made) -> Path:
    return made.folder
