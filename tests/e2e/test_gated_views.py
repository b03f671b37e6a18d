"""A classifier that chooses views (ckpt_cls): evaluated, embedded and exported alike; what is refused."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from commands import CLI, TINY, console, run
from PIL import Image

from guie import assembly, checkpoint, embeddings, runfolder
from guie.checkpoint import State
from guie.cli import embed as command
from guie.config.compose import composed
from guie.datasets.guie130k import CLASSES
from guie.embed.space import space_id
from guie.export import writing
from guie.export.torchscript import torchscript_allowed

NETWORK = [*TINY, "backbone.crop=stretch"]
SIZES = [(20, 30), (31, 18), (24, 24), (9, 40)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder of sixteen pictures in four sizes, four classes in splits query and index."""
    root, draw = tmp_path_factory.mktemp("raw") / "set", np.random.default_rng(0)
    for i in range(16):
        path = root / ("query" if i < 4 else "index") / str(i % 4) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (*SIZES[i // 4], 3), dtype=np.uint8)).save(path)
    return root


def saved(folder, *words, head=None, names=None):
    """Write a run as training leaves it, its backbone that of seed 0."""
    torch.manual_seed(0)
    cfg = composed("train", [*NETWORK, *words])
    made = assembly.embedder(cfg).eval()
    parts = {"embedder": made.state_dict()} | ({"head": head} if head else {})
    meta = {"config": cfg, "preprocess": asdict(made.preprocess), "space_id": space_id(made)}
    checkpoint.Store(folder / "checkpoints").save(State(1, parts, {}, meta))
    if names:
        runfolder.write_labels(folder, names)
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder of two models, a and b, and the gate of their backbone."""
    folder = tmp_path_factory.mktemp("runs")
    made = saved(folder / "a", "neck=bn_linear", "neck.embed_dim=8", "side_inputs=true")
    saved(folder / "b", "neck=linear", "neck.embed_dim=8")
    draw = torch.Generator().manual_seed(1)
    head = {
        "weight": 20 * torch.randn(11, made.backbone.out_dim, generator=draw),
        "bias": torch.zeros(11),
    }
    saved(folder / "gate", "head=classifier_tta", "neck=identity", head=head, names=list(CLASSES))
    return folder


@pytest.fixture
def words(data, runs, monkeypatch, tmp_path):
    monkeypatch.setitem(CLI, "embed", command)
    monkeypatch.chdir(tmp_path)
    pictures = ["dataset=folder", f"dataset.folder.root={data}"]
    return [*pictures, f"ckpt={runs / 'a'}", f"ckpt_cls={runs / 'gate'}", "device=cpu", "threads=1"]


def test_what_is_evaluated_is_embedded_and_exported(words, runs, data, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "GOLDEN_SIZES", ((1, 1), (24, 24), (20, 30)))
    assert run("eval", *words, "batch_size=3", "floors=false", f"out={tmp_path / 'evaluated'}") == 0
    assert run("embed", *words, "batch_size=5", f"out={tmp_path / 'vectors'}") == 0
    models = [word for word in words if word.startswith("ckpt")]
    assert run("export", *models, f"pt={tmp_path / 'model.pt'}") == 0
    with torchscript_allowed():
        files = {"guie.json": ""}
        program = torch.jit.load(str(tmp_path / "model.pt"), _extra_files=files)
    embedded = embeddings.load(tmp_path / "vectors" / "folder")
    evaluated = embeddings.load(tmp_path / "evaluated" / "embeddings" / "folder")
    assert embedded.space_id == evaluated.space_id == json.loads(files["guie.json"])["space_id"]
    told = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    assert told["ckpt_cls"] == str(runs / "gate") and told["space_id"] == embedded.space_id
    by_name = dict(zip(evaluated.files.tolist(), evaluated.vectors, strict=True))
    for name, vector in zip(embedded.files.tolist(), embedded.vectors, strict=True):
        np.testing.assert_allclose(by_name[name], vector, atol=1e-6)
        image = np.array(Image.open(data / name)).transpose(2, 0, 1)[None]
        np.testing.assert_allclose(program(torch.from_numpy(image)).detach()[0], vector, atol=1e-5)


def test_another_classifier_is_another_space(words, runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs / "gate", other)
    state = checkpoint.read(other)
    state.parts["head"]["bias"][3] += 1e-3
    checkpoint.Store(other / "checkpoints").save(state)
    spaces = set()
    for gate in (runs / "gate", other):
        views = assembly.views(composed("embed", [*words, f"ckpt_cls={gate}"]))
        spaces.add(space_id(assembly.trained_embedder(runs / "a")[0], views=views))
    plain = space_id(assembly.trained_embedder(runs / "a")[0])
    assert len(spaces | {plain}) == 3


def test_models_of_one_backbone_share_a_classifier(words, runs, tmp_path):
    both = f"ckpt={{a:{runs / 'a'},b:{runs / 'b'}}}"
    assert run("embed", *words, both, f"out={tmp_path / 'vectors'}") == 0
    assert embeddings.load(tmp_path / "vectors" / "folder").vectors.shape == (16, 16)


def test_a_classifier_of_another_backbone_is_refused(words, runs, tmp_path, monkeypatch, capsys):
    saved(tmp_path / "other", "seed=1", "neck=linear")
    for name, rest in (("embed", [f"out={tmp_path / 'vectors'}"]), ("eval", [f"out={tmp_path / 'eval'}"])):
        code, lines = console(monkeypatch, capsys, name, *words, f"ckpt={tmp_path / 'other'}", *rest)
        assert code == 2
        assert "ckpt_cls: trained on other features (" in lines[-1]
        assert lines[-1].endswith("with the same frozen backbone and pooling")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ["ckpt_cls=null", "views=classifier_tta"],
            "ckpt_cls: not given; accepted: a run of head=classifier_tta",
        ),
        (["views=flip"], "ckpt_cls: given, but nothing is chosen by it; accepted: with views=classifier_tta"),
        (["ckpt_cls=nowhere"], "ckpt_cls: nowhere holds no checkpoint; accepted: a run folder"),
        (
            ["views.gate.groups.things.classes=[apparell]"],
            "views.gate.groups.things.classes: 'apparell'; accepted: apparel, artwork",
        ),
        (["views.looks.middle=null"], "views.gate.otherwise: 'middle'; accepted: whole, padded, centre"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(words, change, said, monkeypatch, capsys, tmp_path):
    code, lines = console(monkeypatch, capsys, "embed", *words, *change, f"out={tmp_path / 'v'}")
    assert (code, len(lines)) == (2, 1) and said in lines[0]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_format_whose_program_does_the_same_for_every_picture_is_refused_at_once(
    words, name, monkeypatch, capsys, tmp_path
):
    models = [word for word in words if word.startswith("ckpt")]
    for place in (f"pt={tmp_path / 'model'}", f"bundle={tmp_path / 'bundle'}"):
        code, lines = console(monkeypatch, capsys, "export", *models, "ckpt=nowhere", place, f"format={name}")
        assert (code, len(lines)) == (2, 1)
        assert f"format: {name} with gated views, but its programs do the same" in lines[0]
        assert "accepted: torchscript, pt2, or views without a gate" in lines[0]


def test_a_run_that_learned_something_else_or_has_lost_its_labels_is_no_classifier(words, runs, tmp_path):
    torch.manual_seed(0)
    saved(tmp_path / "arcface", "neck=linear", head={"weight": torch.zeros(11, 8)}, names=list(CLASSES))
    shutil.copytree(runs / "gate", tmp_path / "lost")
    (tmp_path / "lost" / "labels.parquet").unlink()
    for name, said in (
        ("arcface", "has the head guie.heads.*; accepted: a run of head=classifier_tta"),
        ("lost", "names 0 of its 11 classes; accepted: a whole run folder"),
    ):
        with pytest.raises(Exception, match=said):
            assembly.views(composed("embed", [*words, f"ckpt_cls={tmp_path / name}"]))
