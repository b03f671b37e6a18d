"""guie-eval by official protocols, on drawn pictures: boxes, val rows, caps, distractors, steps, truth."""

import io
import json
import pickle

import numpy as np
import pytest
from commands import TINY, console, metrics, run
from PIL import Image

from guie import assembly, embeddings
from guie.bench import Bench
from guie.embed.reading import Reader
from guie.embed.space import space_id
from guie.embed.vectors import embed
from guie.errors import UserError
from guie.images import decode
from guie.views import Views

BACKBONE = ["ckpt=none", "backbone=small", "backbone.image_px=32", "floors=false", "threads=1"]


def picture(seed, size=(60, 40)):
    r = np.random.default_rng(seed)
    noise = r.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    made = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(made, "png")
    return made.getvalue()


@pytest.fixture(scope="module")
def oxford(tmp_path_factory):
    """Return a data root with a miniature of revisited Oxford: each query's box shows an easy picture."""
    root = tmp_path_factory.mktemp("oxford")
    place = root / "roxford5k"
    (place / "jpg").mkdir(parents=True)
    index, queries, graded = [f"all_{i}" for i in range(12)], [f"asked_{q}" for q in range(3)], []
    for i, name in enumerate(index):
        (place / "jpg" / f"{name}.jpg").write_bytes(picture(i))
    for q, name in enumerate(queries):
        wide = np.random.default_rng(100 + q).integers(0, 256, (90, 130, 3), dtype=np.uint8)
        wide[20:60, 30:90] = decode(picture(q))
        with (place / "jpg" / f"{name}.jpg").open("wb") as file:
            Image.fromarray(wide).save(file, "png")
        grades = {"easy": [q], "hard": [q + 3], "junk": [q + 6]}
        graded.append({"bbx": [30.0, 20.0, 90.0, 60.0], **grades})
    content = {"imlist": index, "qimlist": queries, "gnd": graded}
    (place / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))
    return root


@pytest.fixture(scope="module")
def cropped_run(oxford, tmp_path_factory):
    out = tmp_path_factory.mktemp("cropped")
    assert run("eval", "dataset=roxford5k", *BACKBONE, f"data_root={oxford}", f"out={out}") == 0
    return out


def test_queries_are_cropped_to_their_box_before_they_are_embedded(cropped_run):
    numbers = metrics(cropped_run)["trained"]["roxford5k"]
    assert numbers["mAP E"] == 1.0 and numbers["mP@1 E"] == 1.0
    assert numbers["queries"] == 3 and numbers["gallery"] == 12


def test_without_the_crop_the_vectors_are_others(oxford, cropped_run, tmp_path):
    words = ["dataset=roxford5k", "protocol.crops=[]", *BACKBONE, f"data_root={oxford}", f"out={tmp_path}"]
    assert run("eval", *words) == 0
    one, other = (embeddings.load(place / "embeddings" / "roxford5k") for place in (cropped_run, tmp_path))
    same = np.isclose(one.vectors, other.vectors, atol=1e-6).all(axis=1)
    assert same.tolist() == (np.asarray(one.splits) == "index").tolist()


def test_metrics_json_says_by_which_protocol(cropped_run):
    found = metrics(cropped_run)
    protocol = found["protocols"]["roxford5k"]
    assert (protocol["kind"], protocol["metric"], protocol["ks"]) == ("Revisited", "mAP M", [1, 5, 10])
    assert found["trained"]["merged"] == found["trained"]["roxford5k"]
    assert (cropped_run / "report.html").exists()


def test_saved_embeddings_keep_the_stated_pairs(cropped_run, tmp_path):
    place = cropped_run / "embeddings"
    truth = embeddings.load(place / "roxford5k").truth
    assert truth is not None and len(truth.query) == 9 and set(truth.relation) == {"easy", "hard", "junk"}
    assert run("eval", f"embeddings={place}", f"out={tmp_path}") == 0
    assert metrics(tmp_path)["trained"] == metrics(cropped_run)["trained"]
    assert metrics(tmp_path)["protocols"] == metrics(cropped_run)["protocols"]


@pytest.mark.parametrize("word", ["ckpt=runs/x", "dataset=toy", "backbone=small", "views=flip", "eval_cap=3"])
def test_what_would_be_embedded_is_not_passed_over_in_silence(cropped_run, word):
    key = word.partition("=")[0]
    with pytest.raises(UserError, match=f"^{key}: given with saved embeddings; accepted: one of the two$"):
        run("eval", f"embeddings={cropped_run / 'embeddings'}", word)


def test_views_are_summed_in_a_space_of_their_own_that_is_not_the_runs(tiny_run, tmp_path):
    words = [f"ckpt={tiny_run.folder}", f"data_root={tiny_run.data}", "threads=1", "device=cpu"]
    for name, more in (("plain", []), ("flip", ["views=flip", "thresholds=true"])):
        assert run("eval", *words, *more, f"out={tmp_path / name}") == 0
    plain, flip = (metrics(tmp_path / name) for name in ("plain", "flip"))
    made, meta = assembly.trained_embedder(tiny_run.folder)
    assert (plain["space_id"], flip["space_id"]) == (space_id(made), space_id(made, views=Views(flip=True)))
    rows = assembly.evaluation_rows(assembly.manifests(meta["config"]["eval_on"], str(tiny_run.data)))
    expected = embed(made, rows["toy"], Reader(threads=1, views=Views(flip=True))).vectors
    np.testing.assert_array_equal(embeddings.load(tmp_path / "flip" / "embeddings" / "toy").vectors, expected)
    assert flip["floors"] == plain["floors"] and "backbone" in flip["floors"]
    assert (tmp_path / "flip" / "thresholds.json").exists()
    assert not (tiny_run.folder / "thresholds.json").exists()


def test_one_process_of_many_evaluates_saved_embeddings(cropped_run, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, writes in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert run("eval", f"embeddings={cropped_run / 'embeddings'}", f"out={tmp_path / rank}") == 0
        assert (tmp_path / rank / "metrics.json").exists() == writes


def test_distractors_are_searched_with_and_never_right(oxford, cropped_run, drawn, tmp_path):
    more = oxford / "more"
    for i in range(30):
        (more / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        (more / f"class{i % 3}" / f"{i}.png").write_bytes(picture(500 + i))
    words = ["dataset=roxford5k", "distractors=folder", f"distractors.folder.root={more}"]
    assert run("eval", *words, *BACKBONE, f"data_root={oxford}", f"out={tmp_path}") == 0
    found = metrics(tmp_path)["trained"]
    alone, among = found["roxford5k"], found["roxford5k+folder"]
    assert alone["mAP H"] == metrics(cropped_run)["trained"]["roxford5k"]["mAP H"]
    assert among["gallery"] == 12 + 30 and among["mAP H"] <= alone["mAP H"]


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Return a csv of 12 classes of 4 pictures, split val, test and train by class."""
    root = tmp_path_factory.mktemp("classes")
    lines = ["file,label,split"]
    for i in range(48):
        name = f"{i}.png"
        (root / name).write_bytes(picture(i // 4 * 1000 + i % 2))
        lines.append(f"{name},c{i // 4},{('test', 'val', 'train')[i // 4 % 3]}")
    (root / "list.csv").write_text("\n".join(lines))
    return root


def of_csv(classes, out, *words):
    chosen = ["dataset=csv", f"dataset.csv.path={classes / 'list.csv'}", *BACKBONE]
    assert run("eval", *chosen, f"data_root={classes}", f"out={out}", *words) == 0
    return metrics(out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["postprocess=[pca_whitening]"],
            r"postprocess\.pca_whitening: no training vectors; accepted: bank=",
        ),
        (["postprocess=[pca_whitening]", "fitted=nowhere"], "nowhere"),
        (["fitted=nowhere"], r"fitted: nowhere without steps; accepted: with 'postprocess=\[NAME\]'"),
        (
            ["distractors=toy", "protocol=gpr1200"],
            "distractors: csv is searched by itself alone; accepted: a set with an index",
        ),
    ],
)
def test_steps_that_cannot_be_are_refused_before_anything_is_embedded(
    classes, tmp_path, monkeypatch, words, said
):
    monkeypatch.setattr(Bench, "embeddings", lambda *arguments: pytest.fail("embedded"))
    with pytest.raises(UserError, match=said):
        of_csv(classes, tmp_path / "x", *words)


def test_val_rows_are_evaluated_on_request(classes, tmp_path):
    test, val = of_csv(classes, tmp_path / "test"), of_csv(classes, tmp_path / "val", "split=val")
    assert val["trained"]["csv"]["queries"] == test["trained"]["csv"]["queries"] == 16
    files = embeddings.load(tmp_path / "val" / "embeddings" / "csv")
    assert set(files.splits) == {"val"}
    assert val["protocols"]["csv"]["asks"] == ["val"]
    with pytest.raises(UserError, match="split: 'query'; accepted: train, val, test"):
        of_csv(classes, tmp_path / "x", "split=query")


def test_a_cap_bounds_what_is_embedded(classes, tmp_path):
    numbers = of_csv(classes, tmp_path, "eval_cap=8")["trained"]["csv"]
    assert numbers["queries"] == 8 and numbers["gallery"] == 8
    with pytest.raises(UserError, match="eval_cap: 0; accepted: 1 or more pictures, or null for all"):
        of_csv(classes, tmp_path / "x", "eval_cap=0")


def test_training_is_watched_on_a_capped_set_and_ends_with_all_of_it(drawn, tmp_path):
    assert run("train", *TINY, "eval_cap=8", f"data_root={drawn}", f"run_dir={tmp_path}") == 0
    floors = json.loads((tmp_path / "floors_capped.json").read_text())
    assert floors["backbone"]["merged"]["queries"] == 8
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    watched = [line for line in lines if "mP@5" in line]
    assert watched[-1]["frozen_mP@5"] == floors["backbone"]["merged"]["mP@5"]
    found = metrics(tmp_path)
    assert found["trained"]["merged"]["queries"] == found["floors"]["backbone"]["merged"]["queries"] > 8
    assert "eval_cap: toy: during training on 8 of" in (tmp_path / "log.txt").read_text()


def test_post_processing_is_told_step_by_step(classes, tmp_path, capsys):
    steps = [
        "postprocess=[pca_whitening,dba]",
        "postprocess.pca_whitening.dim=4",
        "postprocess.dba.neighbours=2",
    ]
    bank = ["bank=csv", f"bank.csv.path={classes / 'list.csv'}"]
    found = of_csv(classes, tmp_path, *steps, *bank)
    assert [step["step"] for step in found["steps"]] == ["", "pca_whitening", "dba"]
    plain = of_csv(classes, tmp_path / "plain")
    assert found["steps"][0]["values"]["csv"] == plain["trained"]["csv"]["mP@5"]
    assert found["steps"][-1]["values"]["csv"] == found["trained"]["csv"]["mP@5"]
    assert found["space_id"] != found["vectors_space_id"] == plain["space_id"]
    said = capsys.readouterr().out
    assert "step by step" in said and "pca_whitening" in said
    again = of_csv(classes, tmp_path / "again", *steps, f"fitted={tmp_path / 'postprocess'}")
    assert again["trained"] == found["trained"] and again["space_id"] == found["space_id"]


def test_steps_that_need_training_vectors_say_so(classes, tmp_path):
    with pytest.raises(UserError, match=r"postprocess\.pca: no training vectors; accepted: bank=NAME"):
        of_csv(classes, tmp_path, "postprocess=[pca]", "postprocess.pca.dim=4")


def test_of_several_data_sets_missing_ones_are_skipped(classes, oxford, tmp_path, monkeypatch, capsys):
    (classes / "roxford5k").symlink_to(oxford / "roxford5k")
    words = ["dataset=[csv,sop,roxford5k]", f"dataset.csv.path={classes / 'list.csv'}", *BACKBONE]
    words += [f"data_root={classes}", f"out={tmp_path}"]
    code, lines = console(monkeypatch, capsys, "eval", *words)
    assert code == 0 and any("skipped sop" in line for line in lines)
    found = metrics(tmp_path)
    assert set(found["protocols"]) == {"csv", "roxford5k"}
    assert found["trained"]["merged"] == found["trained"]["csv"]
    assert json.loads((tmp_path / "metrics.json").read_text())["protocols"]["csv"]["kind"] == "Retrieval"
