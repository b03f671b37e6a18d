"""A run as a Hugging Face folder, read back: the same space, the same vectors, nothing of the machine."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from guie import assembly, checkpoint, evaluating, huggingface
from guie.checkpoint import State
from guie.cli import export
from guie.config.compose import composed
from guie.embed.space import space_id
from guie.errors import UserError
from guie.publishing import story

SMALL = ["backbone=small", "backbone.image_px=32", "head=matryoshka", "tracker=none"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Return a run's folder with a checkpoint as training leaves it: an average, a refitted neck, a head."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    cfg = composed("train", [*SMALL, f"run_dir={folder}", "data_root=/data/of/a/machine"])
    cfg = {**cfg, "ckpt": "/runs/of/a/machine/before"}
    embedder = assembly.embedder(cfg).eval()
    averaged = {name: value * 1.5 for name, value in embedder.state_dict().items()}
    averaged = {n: v if v.is_floating_point() else embedder.state_dict()[n] for n, v in averaged.items()}
    refit = {name: value + 0.25 for name, value in averaged.items() if name == "neck.linear.weight"}
    parts = {"embedder": embedder.state_dict(), "ema": averaged, "refit": refit, "head": {"w": torch.ones(3)}}
    embedder.load_state_dict(averaged | refit)
    meta = {"config": cfg, "preprocess": asdict(embedder.preprocess), "space_id": space_id(embedder)}
    meta |= {"data": {"toy": {"images": 384, "classes": 48}}}
    checkpoint.save(folder / "checkpoints", State(7, parts, {"best": None}, meta))
    return folder


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    told = story.publish_configured(composed("export", [f"ckpt={trained}", f"huggingface={folder}"]))
    assert f"read back as space {assembly.trained_embedder(trained)[1]['space_id']}" in told
    return folder


@pytest.fixture
def copied(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def sealed(folder: Path, **changes: bytes) -> Path:
    """Write other files into a folder and a manifest that agrees with them, as its maker could."""
    listed = json.loads((folder / "manifest.json").read_bytes())
    for name, data in changes.items():
        name = name.replace("_", ".")
        (folder / name).write_bytes(data)
        listed["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(listed, separators=(",", ":")))
    return folder


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_bytes())


def test_the_folder_holds_what_the_hub_expects_and_no_pickle(published):
    assert {path.name for path in published.iterdir()} == {*huggingface.FETCHED, "README.md"}
    with safe_open(published / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert config(published)["library_name"] == "guie"


def test_the_weights_are_those_for_use_averaged_and_refitted(trained, published):
    state = checkpoint.read(trained)
    with safe_open(published / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(state.parts["ema"])
        for name in file.keys():
            expected = state.parts["refit"].get(name, state.parts["ema"][name])
            assert torch.equal(file.get_tensor(name), expected)


def test_it_is_read_back_as_the_same_space_and_gives_the_same_vectors(trained, published):
    (one, meta), (two, again) = map(assembly.trained_embedder, (trained, published))
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(one(pictures).z, two(pictures).z)
    assert meta["space_id"] == again["space_id"] == config(published)["space_id"] == space_id(two)
    assert one.preprocess == two.preprocess
    assert again["step"] == 7 and again["ckpt"] == str(published)


def test_a_prefix_keeps_its_width_and_all_numbers_can_be_asked_for_again(trained, tmp_path):
    words = [f"ckpt={trained}", f"huggingface={tmp_path / 'cut'}", "keep=16"]
    story.publish_configured(composed("export", words))
    made, meta = assembly.trained_embedder(tmp_path / "cut")
    whole, _ = assembly.trained_embedder(trained)
    assert made.embed_dim == config(tmp_path / "cut")["embed_dim"] == 16
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    first = torch.nn.functional.normalize(whole(pictures).z[:, :16])
    np.testing.assert_allclose(made(pictures).z.detach(), first.detach(), atol=1e-6)
    story.publish_configured(
        composed("export", [f"ckpt={tmp_path / 'cut'}", f"huggingface={tmp_path / 'all'}", "keep=64"])
    )
    widened = assembly.trained_embedder(tmp_path / "all")[1]["space_id"]
    assert meta["space_id"] != widened == space_id(whole)


def test_a_published_folder_is_published_again_as_it_was(published, tmp_path):
    story.publish_configured(composed("export", [f"ckpt={published}", f"huggingface={tmp_path / 'again'}"]))
    for name in ("model.safetensors", "config.json", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (published / name).read_bytes()


def test_nothing_of_the_machine_is_told(published):
    text = (published / "config.json").read_text() + (published / "README.md").read_text()
    assert "of/a/machine" not in text and str(published.parent) not in text
    kept = config(published)["config"]
    assert kept["ckpt"] == "before"
    assert not story.OF_THE_MACHINE & kept.keys()


def test_paths_keep_their_last_name_and_other_words_stay():
    given = {"a": ["/x/y.csv", "~/z", "runs/a", "s/t/", 3], "b": {"c": None, "d": (1.5, "hf-hub:o/n")}}
    expected = {"a": ["y.csv", "z", "runs/a", "s/t/", 3], "b": {"c": None, "d": [1.5, "hf-hub:o/n"]}}
    assert story.portable(given) == expected


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_any_flipped_bit_is_refused(copied, name):
    good = (copied / name).read_bytes()
    for place in (0, len(good) // 2, len(good) - 1):
        (copied / name).write_bytes(good[:place] + bytes([good[place] ^ 2]) + good[place + 1 :])
        with pytest.raises(UserError, match=r"copy: .* is damaged"):
            checkpoint.read(copied)


def test_the_card_may_be_edited(copied):
    (copied / "README.md").write_text("mine")
    checkpoint.read(copied)


def test_a_folder_that_was_sealed_anew_tells_the_space_that_it_makes(copied):
    told = config(copied)
    told["preprocess"]["mean"] = [0.1, 0.2, 0.3]
    sealed(copied, config_json=json.dumps(told).encode())
    made, meta = assembly.trained_embedder(copied)
    assert meta["space_id"] == space_id(made) != told["space_id"]


def test_what_a_later_version_may_state_is_named(copied):
    told = config(copied)
    told["preprocess"]["gamma"] = 2.2
    sealed(copied, config_json=json.dumps(told).encode())
    with pytest.raises(UserError, match=r"copy: preprocess: .*'gamma'; accepted: that of this version"):
        assembly.trained_embedder(copied)
    del told["preprocess"]["gamma"], told["config"]["seed"]
    sealed(copied, config_json=json.dumps(told).encode())
    with pytest.raises(UserError, match=r"lacks 'config\.seed', so guie did not write it"):
        assembly.trained_embedder(copied)


class Malice:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_pickle_under_the_name_of_weights_is_not_loaded(copied, capsys):
    sealed(copied, model_safetensors=pickle.dumps(Malice()))
    with pytest.raises(UserError, match=r"model\.safetensors is no safetensors file"):
        checkpoint.read(copied)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("part", ["backbone", "pool", "neck"])
@pytest.mark.parametrize("target", ["os.system", "subprocess.run", "guie.train.optim.adamw"])
def test_foreign_code_is_not_named(copied, part, target):
    told = config(copied)
    told["config"][part]["_target_"] = target
    sealed(copied, config_json=json.dumps(told).encode())
    with pytest.raises(UserError, match=rf"{part}: _target_ '{target}'; accepted: guie\.models"):
        assembly.trained_embedder(copied)


def test_a_folder_of_another_library_is_named(copied, tmp_path):
    sealed(copied, config_json=b'{"architectures": ["ViT"]}')
    with pytest.raises(UserError, match=r"config\.json lacks 'config', so guie did not write it"):
        checkpoint.read(copied)
    (copied / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"copy has no manifest\.json; accepted: a Hugging Face folder of guie"
    ):
        checkpoint.read(copied)


def test_weights_alone_are_no_run_to_resume_and_have_no_head(published, tmp_path):
    from guie import runfolder

    with pytest.raises(UserError, match=r"^resume: .*weights alone; accepted: ckpt="):
        runfolder.check(tmp_path / "new", {}, str(published))
    with pytest.raises(UserError, match="head"):
        checkpoint.read(published, parts=("head",))


def test_results_of_this_space_stand_in_the_card_as_the_hub_reads_them(trained, tmp_path):
    space = assembly.trained_embedder(trained)[1]["space_id"]
    numbers = {"mP@5": 0.5, "mP@5_interval": [0.25, 0.75], "queries": 8}
    evaluated = {"space_id": space, "trained": {"toy": numbers, "merged": numbers}}
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "metrics.json").write_text(json.dumps(evaluated))
    words = [f"ckpt={trained}", f"huggingface={tmp_path / 'a|b'}", f"evaluation={tmp_path / 'eval'}"]
    story.publish_configured(composed("export", words))
    read = ModelCard.load(tmp_path / "a|b" / "README.md")
    (result,) = read.data.eval_results
    assert (result.dataset_name, result.metric_name, result.metric_value) == ("toy", "mP@5", 0.5)
    assert read.data.library_name == "guie" and read.data.pipeline_tag == "image-feature-extraction"
    assert "| toy | mP@5 | 0.5000 | 0.2500 to 0.7500 |  | 8 |" in read.text
    assert "| one | toy | 384 | 48 |" in read.text and "The run `before` is named as one" in read.text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no metrics.json to read"),
        ('{"space_id": "x", "trained": {}}', "is of space x; accepted: [0-9a-f]{16}"),
    ],
)
def test_an_evaluation_that_is_none_of_this_space_is_refused_where_it_was_asked_for(
    trained, tmp_path, content, told
):
    if content:
        (tmp_path / "metrics.json").write_text(content)
    words = [f"ckpt={trained}", f"huggingface={tmp_path / 'out'}", f"evaluation={tmp_path}"]
    with pytest.raises(UserError, match=rf"^evaluation: .*{told}"):
        story.publish_configured(composed("export", words))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "word",
    ["format=onnx", "precision=bf16", "views=flip", "ckpt_cls=x", "batch=2", "pixels=normalised", "fitted=x"],
)
def test_what_only_a_file_can_be_is_refused(trained, tmp_path, word):
    words = [f"ckpt={trained}", f"huggingface={tmp_path / 'out'}", word]
    with pytest.raises(UserError, match=rf"^{word.partition('=')[0]}: .* with huggingface"):
        export.run(composed("export", words))
    assert not (tmp_path / "out").exists()


def test_several_runs_are_no_folder(trained, tmp_path):
    words = [f"ckpt={{a:'{trained}',b:'{trained}'}}", f"huggingface={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"^ckpt: .* with huggingface; accepted: one run or checkpoint"):
        story.publish_configured(composed("export", words))


def test_a_folder_that_reads_back_as_something_else_never_gets_its_name(trained, copied, monkeypatch):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    honest = checkpoint._tensor_bytes

    def tampered(tensors, told=None):
        return honest({n: v + 1 if n == "neck.linear.bias" else v for n, v in tensors.items()}, told)

    monkeypatch.setattr(checkpoint, "_tensor_bytes", tampered)
    words = [f"ckpt={trained}", f"huggingface={copied}", "overwrite=true"]
    with pytest.raises(
        UserError, match=r"^huggingface: read back as space \w{16}; accepted: \w{16}, the run"
    ):
        story.publish_configured(composed("export", words))
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]


def test_a_full_disk_leaves_the_older_folder(trained, copied, monkeypatch):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_durably", fail)
    words = [f"ckpt={trained}", f"huggingface={copied}", "overwrite=true"]
    with pytest.raises(UserError, match="No space left on device; nothing was replaced"):
        story.publish_configured(composed("export", words))
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_name_on_the_hub_is_a_checkpoint_that_stays_as_it_is(published, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "3" * 40
    place = tmp_path / "models--owner--name"
    shutil.copytree(published, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface._fetched.cache_clear()
    try:
        _, meta = assembly.trained_embedder("hf-hub:owner/name")
        home = evaluating._home(Path("hf-hub:owner/name"))
    finally:
        huggingface._fetched.cache_clear()
    assert meta["space_id"] == config(published)["space_id"]
    assert home == Path("runs") / "eval-owner--name-3333333"
    assert evaluating._home(published) == Path("runs") / "eval-model"
