"""Whatever is changed in a bundle is found and named, also where the manifest was written anew to fit."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from small import copied

from guie.bundle import check, embed
from guie.bundle.verifying import alone, contradictions, verify
from guie.bundle.writing import write_manifest
from guie.errors import UserError
from guie.export import alone as running


@pytest.fixture
def folder(bundle, tmp_path):
    return copied(bundle, tmp_path)


def flipped(path, at=None):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(bytes(data))


def resigned(folder):
    """Write the manifest anew, as one does who wants a change to pass."""
    write_manifest(folder, check.read_manifest(folder)["models"])


def test_one_flipped_bit_in_any_file_is_found_and_named_before_anything_runs(folder, monkeypatch):
    monkeypatch.setattr(running, "package_folders", list)  # nothing to run with
    for name in sorted({*os.listdir(folder)} - {check.MANIFEST}):
        kept = (folder / name).read_bytes()
        flipped(folder / name)
        with pytest.raises(UserError, match=rf"^verify: .*/bundle: {name}: changed"):
            alone(folder)
        (folder / name).write_bytes(kept)


def test_every_byte_of_the_manifest_counts(folder):
    path = folder / "manifest.json"
    for at in np.linspace(0, path.stat().st_size - 1, 40).astype(int):
        kept = path.read_bytes()
        flipped(path, at)
        problems = check.verify(str(folder), None, run=False)[1]
        assert problems, f"byte {at}"
        path.write_bytes(kept)


def test_a_file_more_or_less_is_named(folder):
    (folder / "virus.py").write_text("")
    (folder / "__pycache__").mkdir()
    (folder / "model.pt").unlink()
    with pytest.raises(
        UserError, match=r"model\.pt: missing; __pycache__: not in manifest\.json; virus\.py: not in"
    ):
        verify(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"not json"])
def test_a_manifest_that_is_none_is_named(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json: changed"):
        verify(folder)


def test_a_manifest_may_not_name_files_elsewhere(folder):
    manifest = check.read_manifest(folder)
    manifest["files"]["../secret"] = manifest["files"]["card.md"]
    (folder / "manifest.json").write_bytes(check.sealed(manifest))
    with pytest.raises(ValueError, match=r"names \.\./secret, which is outside of the bundle"):
        check.read_manifest(folder)


@pytest.mark.parametrize("key", ["file", "golden"])
def test_a_manifest_may_not_name_models_that_it_does_not_list(folder, key):
    manifest = check.read_manifest(folder)
    manifest["models"][0][key] = "../model.pt"
    (folder / "manifest.json").write_bytes(check.sealed(manifest))
    with pytest.raises(UserError, match=r"names \.\./model\.pt, which is outside of the bundle"):
        verify(folder)
    with pytest.raises(ValueError, match=r"names \.\./model\.pt"):
        embed.Embedder(str(folder))


@pytest.mark.parametrize("rest", [{}, {"files": []}, {"files": {}, "models": 5}, {"files": 1, "models": []}])
def test_a_manifest_that_fits_its_own_sha256_and_is_none_is_named(folder, rest):
    (folder / "manifest.json").write_bytes(check.sealed({"format": check.FORMAT, **rest}))
    with pytest.raises(UserError, match=r"manifest\.json: changed, no bundle's"):
        verify(folder)


def changed_json(folder, name, change):
    told = json.loads((folder / name).read_text())
    change(told)
    (folder / name).write_text(json.dumps(told))
    resigned(folder)


def test_preprocessing_that_was_changed_with_its_manifest_contradicts_every_model(folder):
    changed_json(folder, "preprocess.json", lambda told: told["preprocess"].update(mean=[0, 0, 0]))
    found = list(contradictions(folder))
    assert [line.partition(": ")[0] for line in found] == ["preprocess.json"]
    assert "mean" in found[0]
    assert "model.pt" in found[0]


@pytest.mark.parametrize("name", ["golden.npz", "decoding.npz", "labels.csv"])
def test_what_the_models_were_written_with_cannot_be_exchanged(folder, name):
    flipped(folder / name)
    resigned(folder)
    assert list(contradictions(folder)) == [f"{name}: not the one that model.pt was written with"]


def test_thresholds_of_another_space_are_named(folder):
    changed_json(folder, "thresholds.json", lambda told: told.update(space_id="another"))
    assert any("thresholds.json: of space another" in line for line in contradictions(folder))


def test_a_card_of_another_space_is_named(folder):
    card = folder / "card.md"
    space = json.loads((folder / "preprocess.json").read_text())["space_id"]
    card.write_text(card.read_text().replace(space, "0123456789abcdef"))
    resigned(folder)
    assert list(contradictions(folder)) == [f"card.md: does not name the space {space}"]


def test_a_tolerance_that_was_widened_is_named(folder):
    manifest = check.read_manifest(folder)
    manifest["models"][0]["tolerance"]["largest"] = 2.0
    write_manifest(folder, manifest["models"])
    assert [line.split(",")[0] for line in contradictions(folder)] == [
        "manifest.json: tolerance is {'cosine': None"
    ]


def altered(folder, name):
    """Change a tensor inside the TorchScript file, its facts kept, and the manifest to fit."""
    path = str(folder / "model.pt")
    facts = {"guie.json": ""}
    program = torch.jit.load(path, _extra_files=facts)
    tensors = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    found = [tensor for key, tensor in tensors.items() if key.endswith(name)]
    assert found, sorted(tensors)
    with torch.no_grad():
        for tensor in found:
            tensor.mul_(1.01)
    torch.jit.save(program, path, _extra_files=facts)
    resigned(folder)


@pytest.mark.parametrize("name", ["pixel_scale", "layer.weight"])
def test_mean_and_std_or_weights_changed_inside_a_model_are_found_by_its_golden_pairs(folder, name):
    altered(folder, name)
    assert list(contradictions(folder)) == []
    with pytest.raises(
        UserError, match=r"^verify: .*: model\.pt: largest difference .*; accepted: largest 1e-05"
    ):
        verify(folder)


def test_a_decoder_that_reads_otherwise_is_found(folder, monkeypatch):
    text = (folder / "images.py").read_text()
    other = text.replace("upright = _upright(pixels, header.orientation)", "upright = pixels")
    assert other != text

    def beside(name):
        module = type(check)(name)
        exec(other if name == "images" else "", module.__dict__)
        return module

    problems = check.decoding(str(folder), beside)[1]
    assert problems == [
        f"decoding of turned.{kind}: 255 levels off; accepted: at most 2" for kind in ("jpg", "png")
    ]


def test_the_bundles_own_code_is_not_run_by_guie(folder):
    for name in ("embed.py", "check.py", "images.py", "runtime.py", "fresh.py"):
        (folder / name).write_text("raise SystemExit('run')")
    resigned(folder)
    assert len(alone(folder, run=False)) == 2
