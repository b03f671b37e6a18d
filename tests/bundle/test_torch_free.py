"""A bundle in ONNX gives the evaluation's vectors where there is no torch."""

from __future__ import annotations

import numpy as np
import pytest
from small import anyone, of_bytes, order, written

from guie.bundle.check import read_manifest
from guie.bundle.verifying import hidden, verify
from guie.errors import UserError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    from guie.export import onnx

    place = tmp_path_factory.mktemp("onnx") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "INLINE_BYTES", 0)  # weights beside the file, as those of large models are
        return written(order(made.embedder, made.run, ("onnx",)), place)


def test_weights_that_lie_beside_the_model_are_of_the_bundle(folder):
    manifest = read_manifest(folder)
    assert manifest["models"][0]["parts"] == ["model.onnx.data"]
    assert "model.onnx.data" in manifest["files"]
    beside = folder / "model.onnx.data"
    kept = beside.read_bytes()
    beside.write_bytes(b"x" + kept[1:])
    with pytest.raises(UserError, match=r"model\.onnx\.data: changed"):
        verify(folder)
    beside.write_bytes(kept)


def test_it_embeds_odd_pictures_as_the_evaluation_does(made, folder, pictures, tmp_path):
    names = sorted(path.name for path in pictures.iterdir())
    out = tmp_path / "v.npy"
    done = anyone(folder, *names, "--out", str(out), without="guie,torch", cwd=pictures)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    expected = [of_bytes(made.embedder, (pictures / name).read_bytes()) for name in names]
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)


def test_whoever_has_it_can_verify_it(folder):
    before = sorted(path.name for path in folder.iterdir())
    done = anyone(folder, "--verify", without="guie,torch")
    assert done.returncode == 0, done.stderr
    assert "model.onnx: largest difference" in done.stdout
    assert done.stdout.splitlines()[-1] == f"{folder}: as it was exported"
    assert sorted(path.name for path in folder.iterdir()) == before


def test_guie_verifies_it_without_torch(folder):
    assert "torch" in hidden(folder)
    assert verify(folder)[2].startswith("model.onnx: largest difference")
