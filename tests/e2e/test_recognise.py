"""guie-recognise from its command line to predictions.csv: votes, pictures, a trained judge, mistakes."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import quiet_afterwards
from PIL import Image

from guie import embeddings
from guie.build import build
from guie.cli import recognise as command
from guie.config.compose import composed
from guie.local import rerank
from guie.metrics.recognition import evaluate

sys.path.insert(0, str(Path(__file__).parents[1] / "local"))
from scenes import TURN, scene, seen_again

LABELS = "abcd"


@pytest.fixture
def data(tmp_path):
    """Return a folder of four scenes, each asked for twice and three times in the index."""
    root = tmp_path / "raw"
    views = [np.eye(3), TURN, TURN @ TURN]
    for number, label in enumerate(LABELS):
        for split, matrices in (("query", views[:2]), ("index", [TURN @ v for v in views])):
            (root / split / label).mkdir(parents=True)
            for i, matrix in enumerate(matrices):
                Image.fromarray(seen_again(scene(number), matrix)).save(
                    root / split / label / f"{split[0]}{i}.png"
                )
    return root


@pytest.fixture
def saved(data, tmp_path):
    """Return a call that saves embeddings of these pictures, whose labels are seen through noise."""
    cfg = composed("eval", ["dataset=folder", f"dataset.folder.root={data}"])
    rows = build(cfg["dataset"]["folder"], data_root="data")

    def made(name, seed=0, noise=0.3, space=None):
        r = np.random.default_rng(seed)
        vectors = np.eye(4, 8)[rows.labels] + noise * r.standard_normal((len(rows), 8))
        found = embeddings.from_manifest(vectors.astype(np.float32), rows, space_id=space or name)
        return embeddings.save(found, tmp_path / name)

    return made


@pytest.fixture
def say(monkeypatch, capsys, tmp_path):
    """Return a call of the command that gives its exit code and what it says, mistakes last."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("GUIE_DEBUG", raising=False)

    def said(*words):
        monkeypatch.setattr(sys, "argv", ["guie-recognise", *words])
        code = 0
        with quiet_afterwards():
            try:
                command.main()
            except SystemExit as end:
                code = int(end.code or 0)
        found = capsys.readouterr()
        return code, [*found.out.splitlines(), *found.err.splitlines()]

    return said


def predictions(folder):
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def numbers(lines):
    return {line.split()[0]: float(line.split()[1]) for line in lines if line[:3] in ("GAP", "ACC")}


def test_votes_are_written_and_scored_as_the_metric_does(say, saved, tmp_path):
    folder = saved("e", noise=0.6)
    code, lines = say(f"embeddings={folder}", f"out={tmp_path / 'out'}", "recognise.neighbours=3")
    assert code == 0
    found, part = predictions(tmp_path / "out"), embeddings.load(folder)
    asked = part.splits == "query"
    assert [row["file"] for row in found] == part.files[asked].tolist()
    codes = [
        np.array([LABELS.index(x) for x in labels])
        for labels in ([row["label"] for row in found], part.labels[asked])
    ]
    expected = evaluate(codes[0], np.array([float(row["score"]) for row in found]), codes[1])
    assert numbers(lines) == {name: round(value, 4) for name, value in expected.items()}
    assert 0 < expected["GAP"] < 1


def test_system_e0_looks_at_the_pictures_and_goes_on_from_what_is_kept(
    say, data, saved, tmp_path, monkeypatch
):
    words = [f"embeddings={saved('e', noise=0.6)}", "dataset=folder", f"dataset.folder.root={data}"]
    plain = numbers(say(*words, f"out={tmp_path / 'plain'}", "recognise.neighbours=3")[1])
    kept = [f"recognise.local.path={tmp_path / 'kept'}", "recognise.local.matcher.max_px=240"]
    code, lines = say(*words, *kept, "recognise=system_e0", f"out={tmp_path / 'out'}")
    assert code == 0 and numbers(lines)["GAP"] > plain["GAP"]
    monkeypatch.setattr(rerank, "decode", None)
    again = say(*words, *kept, "recognise=system_e0", f"out={tmp_path / 'again'}")
    assert numbers(again[1]) == numbers(lines)
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (
        tmp_path / "out" / "predictions.csv"
    ).read_bytes()


def test_a_trained_judge_is_saved_and_applied(say, saved, tmp_path):
    pytest.importorskip("lightgbm", reason="extra gbdt")
    models = f"embeddings={{a:{saved('a')},b:{saved('b', 1, 0.8)}}}"
    words = [
        models,
        "weights={b:0}",
        f"nothing={{a:{saved('n', 2, 9.0, 'a')}}}",
        "recognise=system_c",
        "recognise.local=null",
    ]
    quick = ["recognise.confidence.seeds=2", "recognise.confidence.rounds=3"]
    code, lines = say(*words, *quick, "fit=true", f"out={tmp_path / 'judge'}")
    assert code == 0 and lines[-1] == f"recognise.confidence.path={tmp_path / 'judge'}"
    code, lines = say(*words, lines[-1], f"out={tmp_path / 'out'}")
    assert code == 0 and len(predictions(tmp_path / "out")) == 8
    assert all(0 < float(row["score"]) < 1 for row in predictions(tmp_path / "out"))
    judge, wrong = f"recognise.confidence.path={tmp_path / 'judge'}", f"out={tmp_path / 'wrong'}"
    told = "guie-recognise: confidence: neighbours: 5; accepted: 10, as it was trained with"
    assert say(*words, judge, "recognise.neighbours=5", wrong)[1][-1] == told
    saved("a", space="other")
    words[2] = f"nothing={{a:{saved('n', 2, 9.0, 'other')}}}"
    told = "guie-recognise: confidence: space of a: other; accepted: a, as it was trained with"
    assert say(*words, judge, wrong)[1][-1] == told and not (tmp_path / "wrong").exists()


def test_mistakes_are_one_line(say, saved, tmp_path):
    folder, other = saved("e"), saved("o")
    for words, message in (
        (["embeddings=x"], "out: not given; accepted: a folder for what is predicted or trained"),
        (["out=x"], "embeddings: not given; accepted: saved embeddings, or several as {a:PATH,b:PATH}"),
        (
            ["out=x", f"embeddings={folder}", "weights={b:1}"],
            "weights.b: no such model among the embeddings; accepted: all",
        ),
        (
            ["out=x", f"embeddings={folder}", "weights={all:-1}"],
            "weights.all: -1; accepted: a number of 0 or more",
        ),
        (
            ["out=x", f"embeddings={folder}", "weights=0.5"],
            "weights: 0.5; accepted: a number by model, as {a:0.5,b:1}",
        ),
        (["out=x", f"embeddings=[{folder},{folder}]"], "embeddings: ["),
        (
            ["out=x", f"embeddings={folder}", "recognise=penalised", "recognise.penalty.nearest=0"],
            "recognise.penalty.nearest: 0; accepted: 1 or more",
        ),
        (
            ["out=x", f"embeddings={folder}", "recognise=system_e0"],
            "pictures: none, embeddings alone; accepted: ",
        ),
        (
            ["out=x", f"embeddings={folder}", "recognise.neighbors=3"],
            "recognise.neighbors: unknown key; did you mean",
        ),
        (["out=x", f"embeddings={folder}", f"nothing={other}"], "nothing: all is of space o; accepted: e"),
        (
            ["out=x", f"embeddings={folder}", "fit=true"],
            "recognise.confidence: none; accepted: a confidence model",
        ),
    ):
        code, lines = say(*words)
        assert code == 2 and lines[-1].startswith(f"guie-recognise: {message}"), lines
    assert not (tmp_path / "x").exists()


def test_recognising_saved_embeddings_imports_no_torch():
    code = "import guie.recognise.story, guie.local.rerank, guie.recognise.confidence, sys;"
    heavy = ["torch", "cv2", "lightgbm", "kornia", "pandas", "faiss"]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print([n for n in {heavy} if n in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
