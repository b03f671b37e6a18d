"""Several checkpoints, and what guie-eval fitted behind them, in one file: from commands to vectors."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from guie import assembly, checkpoint, embedding, embeddings, evaluating, exporting, souping
from guie.checkpoint import State
from guie.config.compose import composed
from guie.embed.pictures import vectors_of
from guie.embed.space import space_id
from guie.errors import UserError
from guie.export import formats, runtime, writing
from guie.export.source import Request
from guie.export.verify import describe, verify
from guie.train.distributed import World

TINY = ("backbone=drawing", "backbone.stages=[[4],[8]]", "backbone.image_px=16", "backbone.shrink=1")
TINY += ("backbone.centre=false", "neck=linear", "neck.embed_dim=8")
STEPS = ("postprocess=[negative_subtraction,pca]", "postprocess.negative_subtraction.neighbours=3")
STEPS += ("postprocess.pca.dim=5",)
SIZES = ((1, 1), (20, 41))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writing, "GOLDEN_SIZES", SIZES)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return three models by name as runs save them: of a and near, one is the other with some noise."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name, seed in (("a", 0), ("near", 0), ("b", 1)):
        cfg = composed("train", [*TINY, f"seed={seed}"])
        made = assembly.embedder(cfg).eval()
        if name == "near":
            noise = torch.Generator().manual_seed(5)
            with torch.no_grad():
                weight = made.neck.linear.weight
                weight.add_(torch.randn(weight.shape, generator=noise), alpha=float(weight.std()) / 3)
        meta = {"config": cfg, "preprocess": asdict(made.preprocess), "space_id": space_id(made)}
        state = State(1, {"embedder": made.state_dict()}, {}, meta)
        checkpoint.Store(folder / name / "checkpoints").save(state)
        found[name] = folder / name
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return 80 pictures of six classes in splits train, query and index."""
    root, draw = tmp_path_factory.mktemp("raw") / "set", np.random.default_rng(0)
    colours = draw.integers(0, 256, (6, 3))
    for i in range(80):
        name = f"{('train', 'train', 'query', 'index')[i % 4]}/{i // 4 % 6}/{i}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(colours[i // 4 % 6] + draw.integers(-90, 90, (20, 30, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / name)
    return root


def both(models, first="a", second="b"):
    return f"ckpt={{x:'{models[first]}',y:'{models[second]}'}}"


def evaluated(data, *words):
    pictures = ["dataset=folder", f"dataset.folder.root={data}", "floors=false", "threads=1", "device=cpu"]
    evaluating.of_model(composed("eval", [*pictures, *words]), None, World())


def embedded(data, *words):
    pictures = ["dataset=folder", f"dataset.folder.root={data}", "threads=1", "device=cpu"]
    embedding.embed_configured(composed("embed", [*pictures, *words]), World(), lambda *_: None)


def exported(*words):
    return exporting.export_configured(composed("export", [*words, "pt=model.pt"]))


def bank_of(data):
    return ["dataset@bank=folder", f"bank.folder.root={data}"]


@pytest.fixture(scope="module")
def fitted(models, data, tmp_path_factory):
    """Return what guie-eval leaves of both models side by side, with steps fitted on the training rows."""
    out = tmp_path_factory.mktemp("fitted") / "seen"
    evaluated(data, both(models), "weights={y:0.5}", *bank_of(data), *STEPS, f"out={out}")
    return out


def written(source, path, name="torchscript"):
    """Return a file of a source, loaded; not verified here."""
    facts = {"format": name, **Request().told(), **source.facts}
    formats.writer(name).write(source, Request(), path, facts)
    return runtime.load(path)


def pictures_of(count=5):
    drawn = np.random.default_rng(9).integers(0, 256, (count, 3, 26, 37), dtype=np.uint8)
    return drawn // np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None]


def by_hand(models, names, weights, folder=None, combine="concat"):
    """Return the vectors of `pictures_of` in float64: models, their sum or row, the steps in `folder`."""
    parts = []
    for name, weight in zip(names, weights, strict=True):
        made = vectors_of(assembly.trained_embedder(models[name])[0], list(pictures_of()))
        parts.append(weight * made.astype(np.float64))
    vectors = np.concatenate(parts, axis=1) if combine == "concat" else sum(parts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if folder is None:
        return vectors
    arrays = load_file(folder / "postprocess" / "postprocess.safetensors")
    bank = arrays["negative_subtraction/bank"].astype(np.float64)
    for row, vector in enumerate(vectors):
        nearest = sorted(range(len(bank)), key=lambda i: -(bank[i] @ vector))[:3]
        vectors[row] = vector - 0.35 * sum(bank[i] for i in nearest) / 3
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors @ arrays["pca/weight"].T.astype(np.float64) + arrays["pca/bias"]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def numbers(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def test_what_is_fitted_behind_two_models_is_evaluated_and_exported_in_one_space(models, fitted):
    found = exported(both(models), "weights={y:0.5}", f"fitted={fitted / 'postprocess'}")
    assert found.difference < 1e-5 and found.sizes == SIZES
    expected = by_hand(models, "ab", (1, 0.5), fitted)
    np.testing.assert_allclose(runtime.load("model.pt")(pictures_of()), expected, atol=2e-6)
    facts, seen = describe("model.pt"), numbers(fitted)
    assert facts["space_id"] == seen["space_id"] != seen["vectors_space_id"] == facts["vectors_space_id"]
    assert facts["weights"] == {"x": 1.0, "y": 0.5} == seen["weights"] and facts["embed_dim"] == 5
    assert list(facts["models"]) == ["x", "y"] and facts["combine"] == seen["combine"] == "concat"
    assert facts["postprocess"]["pca"]["dim"] == 5
    assert verify("model.pt").difference == found.difference


def test_the_steps_may_be_named_again_but_not_changed(models, fitted):
    words = (both(models), "weights={y:0.5}", f"fitted={fitted / 'postprocess'}", *STEPS)
    source, steps = exporting.chosen(composed("export", [*words, "pt=x.pt"]))
    assert len(steps) == len(source.layers) == 2 and source.facts["space_id"] == numbers(fitted)["space_id"]
    with pytest.raises(UserError, match=r"^postprocess\.pca\.dim: 4; accepted: 5, as .*postprocess has"):
        exported(*words, "postprocess.pca.dim=4")


def test_embedding_first_and_evaluating_then_fits_the_same(models, data, fitted):
    embedded(data, both(models), "weights={y:0.5}", "out=vectors")
    evaluating.of_saved(composed("eval", ["embeddings=vectors", "out=seen", *STEPS]))
    assert numbers("seen")["space_id"] == numbers(fitted)["space_id"]
    assert numbers("seen")["trained"] == numbers(fitted)["trained"]
    kept = [folder / "postprocess" / "postprocess.safetensors" for folder in (Path("seen"), fitted)]
    assert kept[0].read_bytes() == kept[1].read_bytes()


def test_of_each_model_the_first_numbers_are_kept_as_they_were_evaluated(models, tmp_path):
    words = [both(models), "weights={y:0.5}", "keep=3"]
    source, _ = exporting.chosen(composed("export", [*words, "pt=x.pt"]))
    assert source.facts["space_id"] == evaluating.trained_models(composed("eval", words), World()).space_id()
    parts = []
    for name, weight in (("a", 1.0), ("b", 0.5)):
        made = vectors_of(assembly.trained_embedder(models[name])[0], list(pictures_of()))[:, :3]
        parts.append(weight * made / np.linalg.norm(made, axis=1, keepdims=True))
    expected = np.concatenate(parts, axis=1) / np.sqrt(1.25)
    np.testing.assert_allclose(written(source, tmp_path / "model.pt")(pictures_of()), expected, atol=2e-6)


def test_a_soup_is_exported_as_any_checkpoint(models, data, tmp_path):
    words = [f"ckpt=['{models['a']}','{models['near']}']", "method=uniform", "out=soup", "device=cpu"]
    words += ["dataset=folder", f"dataset.folder.root={data}", "threads=1"]
    souping.soup(composed("soup", words), lambda *_: None)
    source, _ = exporting.chosen(composed("export", ["ckpt=soup", "pt=x.pt"]))
    made, near = (assembly.trained_embedder(models[name])[0] for name in ("a", "near"))
    with torch.no_grad():
        for mine, other in zip(made.parameters(), near.parameters(), strict=True):
            mine.copy_((mine.double() + other.double()) / 2)
    found = written(source, tmp_path / "model.pt")(pictures_of())
    np.testing.assert_allclose(found, vectors_of(made, list(pictures_of())), atol=2e-6)


def test_an_average_is_evaluated_where_models_share_a_space_and_exported_as_it_was(models, data):
    near = (both(models, "a", "near"), "weights={x:2}", "combine=average")
    with pytest.raises(
        UserError, match=r"^combine: average, not known to be of one space; accepted: with eval"
    ):
        exported(*near)
    evaluated(data, *near, "out=seen")
    embedded(data, *near, "out=vectors")
    space = numbers("seen")["space_id"]
    assert embeddings.load("vectors/folder").space_id == space
    found = exported(*near, "evaluation=seen")
    expected = by_hand(models, ("a", "near"), (2, 1), combine="average")
    np.testing.assert_allclose(runtime.load("model.pt")(pictures_of()), expected, atol=2e-6)
    assert describe("model.pt")["space_id"] == space and found.difference < 1e-5
    with pytest.raises(
        UserError, match=rf"^evaluation: seen is of space {space}; accepted: \w+, of these mod"
    ):
        exported(*near[::2], "evaluation=seen")


def test_models_that_share_no_space_are_not_averaged(models, data):
    for told in (evaluated, embedded):
        with pytest.raises(
            UserError, match=r"^combine: average of x and y, whose .* agree by -?0\.\d\d; accept"
        ):
            told(data, both(models), "combine=average", "out=seen")
    assert not list(Path("seen").rglob("*.npy"))  # before anything is embedded
    with pytest.raises(UserError, match=r"^dataset: nothing chosen"):
        evaluating.of_model(composed("eval", [both(models), "device=cpu"]), None, World())


SLOW = ("pt2", "onnx", "openvino")  # torch.export alone costs a dozen seconds, whatever it exports


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in formats.FORMATS],
)
def test_every_format_holds_two_models_and_what_was_fitted(name, models, fitted, tmp_path):
    for package in formats.FORMATS[name].packages:
        pytest.importorskip(package)
    words = [both(models), "weights={y:0.5}", f"fitted={fitted / 'postprocess'}", "pt=x"]
    source, steps = exporting.chosen(composed("export", words))
    path = tmp_path / f"model{formats.FORMATS[name].suffix}"
    found = written(source, path, name)(pictures_of())
    expected = exporting.evaluated(source, steps, list(pictures_of()))
    np.testing.assert_allclose(found, expected, atol=formats.tolerance(name, "fp32").largest)
    np.testing.assert_allclose(expected, by_hand(models, "ab", (1, 0.5), fitted), atol=2e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["weights={y:0.7}"], r"^.*postprocess: fitted in space \w+; accepted: \w+ \(fit again with it\)"),
        (["combine=average"], r"^.*postprocess: fitted in space \w+; accepted: \w+ \(fit again with it\)"),
        (["combine=mean"], r"^combine: 'mean'; accepted: concat, average"),
        (
            ["fitted=null", "postprocess=[pca]"],
            r"^postprocess\.pca: not fitted; accepted: fitted=FOLDER, the po",
        ),
        (
            ["fitted=null", "postprocess=[dba]"],
            r"^postprocess\.dba\._target_: DBA changes the gallery by its own",
        ),
        (
            ["fitted=null", "postprocess=[alpha_qe]"],
            r"^postprocess\.alpha_qe\._target_: AlphaQE asks the gallery",
        ),
        (
            ["fitted=null", "postprocess=[k_reciprocal]"],
            r"^postprocess\.k_reciprocal\._target_: KReciprocal or",
        ),
        (
            ["fitted=null", "postprocess=[prefix]"],
            r"^postprocess\.prefix\.dim: 64 of 16-d vectors; accepted: 1 ",
        ),
        (["fitted=nowhere"], r"^fitted: nowhere: no saved post-processing"),
        (["ckpt=none"], r"^ckpt: none; accepted: a run or checkpoint, or several by name"),
        (["keep=4"], r"^.*postprocess: fitted in space \w+; accepted: \w+ \(fit again with it\)"),
    ],
)
def test_what_no_file_can_hold_is_refused_in_one_line(more, said, models, fitted):
    words = [both(models), "weights={y:0.5}", f"fitted={fitted / 'postprocess'}", "pt=x.pt"]
    with pytest.raises(UserError, match=said):
        exporting.chosen(composed("export", [*words, *more]))


def test_a_map_from_a_file_needs_no_fit_and_where_it_lay_is_not_told(models, tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    save_file({"weight": weight}, tmp_path / "learnt.safetensors")
    words = [both(models), "postprocess=[linear]", f"postprocess.linear.path={tmp_path}/learnt.safetensors"]
    source, steps = exporting.chosen(composed("export", [*words, "pt=x.pt"]))
    assert source.facts["postprocess"] == {"linear": {"_target_": "guie.postprocess.maps.Linear"}}
    expected = by_hand(models, "ab", (1, 1)) @ weight.T.astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = exporting.evaluated(source, steps, list(pictures_of()))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(source.layers[0].weight, weight)


def test_a_folder_of_steps_names_nothing_but_steps(models, fitted, tmp_path):
    folder = tmp_path / "postprocess"
    folder.mkdir()
    for path in (fitted / "postprocess").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    plain = json.loads((folder / "postprocess.json").read_text())
    plain["steps"]["pca"]["_target_"] = "guie.launch.Launch"
    (folder / "postprocess.json").write_text(json.dumps(plain))
    with pytest.raises(
        UserError, match=r"pca: _target_ 'guie\.launch\.Launch'; accepted: guie\.postprocess and"
    ):
        exporting.chosen(composed("export", [both(models), f"fitted={folder}", "pt=x.pt"]))
