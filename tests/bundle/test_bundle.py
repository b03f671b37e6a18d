"""A bundle holds all that is handed over, whole or not at all, and runs where there is no guie."""

from __future__ import annotations

import ast
import csv
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from small import SPEC, anyone, copied, evaluation_folder, model, of_bytes, order, run_folder, written

from guie.bundle import check, embed, verifying
from guie.bundle.verifying import SHIPPED, verify
from guie.bundle.writing import check_folder, check_request, write_labels
from guie.errors import UserError
from guie.export.source import Request, Source

FILES = {
    "LICENSE-guie.txt",
    "card.md",
    "check.py",
    "decoding.npz",
    "embed.py",
    "fresh.py",
    "golden.npz",
    "images.py",
    "labels.csv",
    "licences.json",
    "manifest.json",
    "model.pt",
    "preprocess.json",
    "requirements.txt",
    "runtime.py",
    "thresholds.json",
}
# What the shipped scripts may import: the standard library, what reads pictures, what runs models.
ALLOWED = {*sys.stdlib_module_names, "numpy", "PIL", "simplejpeg", "torch", "onnxruntime", "openvino"}


def test_a_bundle_holds_what_is_handed_over_and_nothing_else(bundle):
    assert {path.name for path in bundle.iterdir()} == FILES
    assert set(check.read_manifest(bundle)["files"]) == FILES - {"manifest.json"}


def test_it_is_verified_as_it_was_written(bundle):
    lines = verify(bundle)
    assert lines[1] == "decoding: 11 odd pictures, largest difference 0 levels"
    assert [line.split(":")[0] for line in lines[2:]] == ["model.pt"]
    assert {path.name for path in bundle.iterdir()} == FILES


def test_it_embeds_odd_pictures_as_the_evaluation_does_with_torch_alone(made, pictures):
    names = sorted(path.name for path in pictures.iterdir())
    done = anyone(made.folder, *names, without="guie,onnxruntime", cwd=pictures)
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert [row[0] for row in rows] == names
    expected = [of_bytes(made.embedder, (pictures / name).read_bytes()) for name in names]
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), expected, atol=1e-5)


def test_the_odd_pictures_are_odd_enough_to_tell_decoders_apart(made, pictures):
    from PIL import Image

    differing = []
    for path in pictures.iterdir():
        with Image.open(path) as picture:
            naive = np.asarray(picture.convert("RGB"))
        ours = verifying.images.decode(path.read_bytes(), background=SPEC.background)
        differing += [path.name] if check.apart(naive, ours) > check.PIXEL_LEVELS else []
    assert {"turned.jpg", "turned.png", "alpha.png", "grey_alpha.png", "palette.png", "deep_grey.png"} <= set(
        differing
    )


def test_whoever_lacks_the_engine_is_told_what_was_not_run(bundle):
    done = anyone(bundle, "--verify", without="guie,torch")
    assert done.returncode == 1
    assert "model.pt: not run, torch is not installed" in done.stdout
    assert "wrong: no model can be run here; accepted: pip install -r requirements.txt" in done.stdout
    done = anyone(bundle, "a.jpg", without="guie,torch")
    told = ["embed.py: torch is not installed; pip install -r requirements.txt"]
    assert (done.returncode, done.stderr.splitlines()) == (2, told)


def test_a_bad_picture_has_a_row_that_is_nan_and_a_reason(bundle, pictures, tmp_path):
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html>")
    paths = [str(tmp_path / "page.jpg"), str(pictures / "grey.jpg"), str(tmp_path / "gone.jpg")]
    done = anyone(bundle, *paths, "--out", str(tmp_path / "v.npy"), without="guie")
    assert done.returncode == 1
    assert [line.split(": ", 1)[0] for line in done.stderr.splitlines()] == [paths[0], paths[2]]
    assert "not a picture" in done.stderr
    assert np.isnan(np.load(tmp_path / "v.npy")).any(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "accepted: pictures, or --verify"),
        (("a.jpg", "--verify"), "accepted: pictures, or --verify"),
        (("a.jpg", "--model", "model.xml"), "model: model.xml; accepted: model.pt"),
        (("a.jpg", "--out", "v.txt"), "out: v.txt; accepted: a name that ends in .npy or .csv"),
    ],
)
def test_a_mistake_on_its_command_line_is_one_line(bundle, arguments, told):
    done = anyone(bundle, *arguments)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]


def test_what_is_shipped_is_what_guie_runs_itself_and_needs_no_guie(bundle):
    for path in SHIPPED:
        assert (bundle / path.name).read_bytes() == path.read_bytes()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= ALLOWED, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module.partition(".")[0] in ALLOWED, path


def test_the_licence_of_the_scripts_comes_with_them(bundle):
    assert "Apache License" in (bundle / "LICENSE-guie.txt").read_text()


def test_requirements_name_what_reads_pictures_and_runs_the_models(bundle):
    lines = (bundle / "requirements.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["numpy", "pillow", "simplejpeg", "torch"]


def test_labels_are_the_classes_in_the_order_of_their_numbers(bundle):
    rows = list(csv.DictReader((bundle / "labels.csv").read_text().splitlines()))
    assert [(row["id"], row["label"]) for row in rows] == [
        ("0", "one"),
        ("1", "two, or more"),
        ("2", "three"),
    ]


def test_models_of_the_same_classes_share_their_labels_and_others_do_not(made, tmp_path):
    other = run_folder(tmp_path / "other", {}, ("something", "else"))
    same = made.run / "checkpoints" / "step_000001"
    assert write_labels(tmp_path, {"a": made.run, "b": same}) == ["labels.csv"]
    assert write_labels(tmp_path, {"a": made.run, "b": other}) == ["labels-a.csv", "labels-b.csv"]
    assert write_labels(tmp_path, {"": made.run, "ckpt_cls": other}) == ["labels-ckpt_cls.csv", "labels.csv"]
    assert write_labels(tmp_path, {"a": tmp_path / "nowhere"}) == []
    assert write_labels(tmp_path, {"": tmp_path / "nowhere", "ckpt_cls": other}) == ["labels-ckpt_cls.csv"]


def test_labels_of_a_run_in_stages_are_those_of_its_last_stage(tmp_path):
    for stage, labels in (("1-first", ("a", "b")), ("2-last", ("c",))):
        run_folder(tmp_path / "run" / stage, {}, labels)
    write_labels(tmp_path, {"": tmp_path / "run"})
    assert (tmp_path / "labels.csv").read_text().splitlines()[1:] == ["0,c,toy/c"]


def test_the_table_of_licences_has_weights_data_and_packages(bundle):
    rows = json.loads((bundle / "licences.json").read_text())
    named = {row["of"]: row["name"] for row in rows}
    assert named["weights"].startswith("resnet50")
    assert named["data"] == "toy"
    assert {row["name"].split()[0] for row in rows if row["of"] == "runs it"} >= {"numpy", "torch"}


def test_a_failed_export_leaves_what_was_there(made, tmp_path):
    folder = copied(made.folder, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    wrong = replace(
        order(made.embedder, made.run),
        evaluate=lambda pictures: np.eye(8, dtype=np.float32)[[0] * len(pictures)],
    )
    with pytest.raises(UserError, match=r"model\.pt failed: largest difference"):
        written(wrong, folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_bundle_is_replaced_whole_where_that_is_asked(made, tmp_path):
    folder = copied(made.folder, tmp_path)
    with pytest.raises(UserError, match="exists; choose another name or say overwrite=true"):
        written(order(made.embedder, made.run), folder)
    assert written(order(made.embedder, made.run), folder, overwrite=True) == folder
    assert {path.name for path in folder.iterdir()} == FILES - {"thresholds.json"}
    assert list(tmp_path.iterdir()) == [folder]
    assert oct(folder.stat().st_mode)[-3:] == oct(made.run.stat().st_mode)[-3:]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    assert check_folder(tmp_path / "mine") == tmp_path / "mine"  # empty
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        UserError, match=r"mine is no bundle \(manifest.json: No such file.*accepted: a new name"
    ):
        check_folder(tmp_path / "mine", overwrite=True)


def test_a_place_that_cannot_be_written_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match=r"^bundle: the folder .*nowhere does not exist"):
        check_folder(tmp_path / "nowhere" / "bundle")
    with pytest.raises(UserError, match=r"^bundle: .* MB free; the export needs about"):
        check_folder(tmp_path / "bundle", need_bytes=1 << 60)


def test_an_evaluation_of_another_model_is_refused_before_anything_is_written(made, tmp_path):
    evaluation = evaluation_folder(tmp_path / "evaluation", "another")
    wanted = order(made.embedder, made.run, evaluation=evaluation)
    with pytest.raises(UserError, match=r"^evaluation: .* is of space another; accepted: [0-9a-f]{16}"):
        written(wanted, tmp_path / "bundle")
    with pytest.raises(
        UserError, match=r"^evaluation: .*no metrics.json to read .*accepted: the folder of an eval"
    ):
        written(replace(wanted, evaluation=tmp_path), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [evaluation]


def test_what_a_bundle_could_not_keep_is_refused(made):
    wanted = order(made.embedder, made.run, request=Request(pixels="normalised"))
    with pytest.raises(UserError, match=r"^pixels: normalised in a bundle.*accepted: levels"):
        check_request(wanted)
    other = model(replace(SPEC, background=(0, 0, 0)))
    several = replace(wanted, request=Request(), source=Source({"a": made.embedder, "b": other}))
    with pytest.raises(
        UserError, match=r"^ckpt: models that see transparency on .*accepted in a bundle: one"
    ):
        check_request(several)


def test_a_model_of_one_size_and_batch_says_so_and_is_fed_whole_batches(bundle, pictures):
    reader = embed.Embedder.__new__(embed.Embedder)
    reader.told = {"preprocess": {"background": [255, 255, 255]}, "size_px": [40, 48], "batch": 4}
    reader.images, seen = verifying.images, []
    reader.run = lambda images: seen.append(images.shape) or np.arange(4.0)[:, None]
    assert reader.read(pictures / "grey.jpg") == [0.0]
    assert seen == [(4, 3, 40, 48)]
    with pytest.raises(verifying.images.BadImage, match=r"48 x 40 px .*accepted by this model: 40 x 48"):
        reader.read(pictures / "turned.jpg")
