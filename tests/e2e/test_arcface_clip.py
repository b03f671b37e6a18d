"""The preset arcface_clip, with a small ViT in the place of the large one: a head on cached features."""

import json

import numpy as np
import open_clip
import pytest
import torch
from commands import TOY, loaded, metrics, run

from guie import assembly, checkpoint, embeddings
from guie.config.compose import composed
from guie.images import decode

SMALL_VIT = "guie-small-vit"
MINIATURE = [
    "+exp=arcface_clip",
    f"backbone.name={SMALL_VIT}",
    "backbone.pretrained=null",
    *TOY,
    "trainer.batch_size=24",
    "trainer.epochs=30",
    "trainer.eval_every=0",
    "trainer.save_every=0",
    "trainer.log_every=1",
    "optim.lr=1e-2",
    "tracker=none",
    "hw.threads=1",
]


@pytest.fixture(scope="module", autouse=True)
def small_vit(tmp_path_factory):
    """Register a small ViT with open_clip's own mechanism."""
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    (folder / f"{SMALL_VIT}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def trained(small_vit, tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("runs") / "clip"
    assert run("train", *MINIATURE, f"data_root={drawn}", f"run_dir={folder}") == 0
    return folder


def test_the_preset_is_a_frozen_clip_tower_with_a_margin_head_on_cached_features():
    cfg = composed("train", ["+exp=arcface_clip"])
    assert cfg["preset"] == "arcface_clip"
    assert cfg["backbone"]["_target_"] == "guie.models.backbones.OpenClip"
    assert cfg["backbone"]["pretrained"] == "laion2b_s34b_b79k"
    assert cfg["trainer"]["freeze_backbone"] and cfg["trainer"]["cache_features"]
    assert cfg["neck"]["embed_dim"] == 64
    assert cfg["head"]["_target_"] == "guie.heads.margin.SubCenterArcFace"


def test_only_the_neck_learns_and_the_loss_falls(trained):
    saved = checkpoint.read(checkpoint.locate(trained, "last"))
    start = assembly.embedder(composed("train", MINIATURE)).state_dict()
    moved = {name for name in start if not torch.equal(start[name], saved.parts["embedder"][name])}
    assert moved and all(name.startswith("neck.") for name in moved)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_features_are_computed_once(trained, drawn, tmp_path, monkeypatch):
    (cached,) = (drawn / ".guie").glob("features-*.npy")
    assert np.load(cached, mmap_mode="r").shape == (72, 32)
    monkeypatch.setattr("guie.embed.features._make", None)  # calling it would fail
    monkeypatch.setattr("guie.training.conclude", lambda job: None)
    monkeypatch.setattr("guie.bench.Bench.floors", lambda *_: {})
    monkeypatch.setattr("guie.training._evaluated", lambda *_: {"mP@5": 0.0})
    run("train", *MINIATURE, "head.margin=0.3", f"data_root={drawn}", f"run_dir={tmp_path / 'again'}")


def test_it_evaluates_and_exports(trained, drawn, tmp_path):
    again = [f"ckpt={trained}", f"out={tmp_path / 'eval'}", f"data_root={drawn}", "threads=1"]
    assert run("eval", *again) == 0
    assert metrics(tmp_path / "eval")["trained"] == metrics(trained)["trained"]
    assert run("export", f"ckpt={trained}", f"pt={tmp_path / 'model.pt'}") == 0
    found = embeddings.load(trained / "embeddings" / "toy")
    root = assembly.manifests(composed("train", MINIATURE)["eval_on"], str(drawn))["toy"].root
    picture = decode((root / found.files[3]).read_bytes())
    given = loaded(tmp_path / "model.pt")(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])
    assert np.abs(given[0].detach().numpy() - found.vectors[3]).max() < 1e-5
