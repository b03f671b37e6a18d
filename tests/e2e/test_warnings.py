"""What makes a result doubtful is said by the command and kept with its numbers."""

import json
from types import SimpleNamespace

import pytest
import timm
import torch
from commands import SMALL, TOY, console, metrics
from safetensors.torch import save_file

from guie import assembly, rehearsal, training
from guie.config.compose import composed
from guie.safety import shortfalls


def test_metrics_json_says_what_is_below_the_frozen_baseline_and_log_txt_warned(tiny_run):
    found = metrics(tiny_run.folder)
    expected = shortfalls(found["trained"], found["floors"])
    assert found["below_frozen"] == [one._asdict() for one in expected]
    assert found["leakage"] == []
    warned = [line for line in (tiny_run.folder / "log.txt").read_text().splitlines() if "WARNING" in line]
    last = [line for line in warned if f"step {found['step']}: mP@5 below the frozen backbone" in line]
    assert len(last) == bool(expected)


def better(node):
    """Return metrics in which every mP@5 is out of reach."""
    if not isinstance(node, dict):
        return node
    return {name: 1.5 if name == "mP@5" else better(value) for name, value in node.items()}


def test_guie_eval_warns_and_keeps_what_is_below(tiny_run, tmp_path, monkeypatch, capsys):
    floors = {"backbone": better(metrics(tiny_run.folder)["trained"])}
    monkeypatch.setattr("guie.bench.Bench.floors", lambda *_: floors)
    words = [f"ckpt={tiny_run.folder}", f"out={tmp_path}", f"data_root={tiny_run.data}", "threads=1"]
    code, lines = console(monkeypatch, capsys, "eval", *words)
    assert code == 0
    (warned,) = [line for line in lines if line.startswith("WARNING: mP@5 below the frozen backbone: ")]
    assert warned.endswith(" and 3 more")
    below = metrics(tmp_path)["below_frozen"]
    assert [one["where"] for one in below][:2] == ["merged", "toy/building"] and len(below) == 7
    assert below[0]["frozen"] == 1.5


def test_an_evaluation_in_training_warns_with_its_step(tiny_run, tmp_path, caplog):
    numbers = metrics(tiny_run.folder)["trained"]
    (tmp_path / "floors.json").write_text(json.dumps({"backbone": better(numbers)}))
    bench = SimpleNamespace(
        evaluation=lambda _: SimpleNamespace(metrics=numbers, named={"toy": "mP@5"}),
        embeddings=lambda _: None,
        sets=["toy"],
    )
    with caplog.at_level("WARNING", "guie"):
        found = training._evaluated(bench, None, tmp_path, 7)
    assert found["frozen_mP@5"] == 1.5 and found["mP@5"] == numbers["merged"]["mP@5"]
    (record,) = caplog.records
    assert record.getMessage().startswith("step 7: mP@5 below the frozen backbone: ")


def test_each_evaluation_stands_beside_the_frozen_baseline(tiny_run):
    lines = [json.loads(line) for line in (tiny_run.folder / "metrics.jsonl").read_text().splitlines()]
    frozen = metrics(tiny_run.folder)["floors"]["backbone"]["merged"]["mP@5"]
    assert [line["frozen_mP@5"] for line in lines if "mP@5" in line] == [frozen, frozen]


def test_the_floors_are_in_the_log_before_the_first_step(tiny_run):
    lines = (tiny_run.folder / "log.txt").read_text().splitlines()
    floors = next(i for i, line in enumerate(lines) if "floors (mP@5, merged index): " in line)
    assert floors < next(i for i, line in enumerate(lines) if "training: step 0" in line)
    assert "backbone" in lines[floors]


def test_with_pretrained_weights_the_frozen_baseline_is_made_of_them(tmp_path):
    words = ["backbone=resnet50", "backbone.name=resnet18", "backbone.image_px=32"]
    cfg = composed("train", [*words, "backbone.pretrained=false", "seed=1"])
    weights = assembly.untrained_embedder(cfg).backbone.model.state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    cfg = composed("train", [*words, f"backbone.pretrained={tmp_path / 'weights.safetensors'}", "seed=2"])
    frozen, trained = assembly.untrained_embedder(cfg), assembly.embedder(cfg)
    for made in (frozen, trained):
        state = made.backbone.model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in weights.items())
    assert not list(frozen.neck.parameters())


@pytest.fixture
def told(monkeypatch, capsys, tmp_path, drawn):
    """Return a call that runs guie-train on the tiny set, in an empty folder, and gives what it said."""
    monkeypatch.chdir(tmp_path)

    def told_by(*words, data=TOY):
        given = [*SMALL, *data, f"data_root={drawn}", "run_dir=run", *words]
        code, lines = console(monkeypatch, capsys, "train", *given)
        assert not (tmp_path / "run").exists()
        return code, lines

    return told_by


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trainer.batch_size=2"],
            "sampler.k: 4 images per class, views 1, in a batch of 2; accepted: k x views",
        ),
        (
            ["trainer.accumulate=3"],
            "trainer.batch_size: 16 over 1 ranks x 3 accumulated pieces; accepted: a multi",
        ),
        (
            ["backbone=resnet50", "backbone.pretrained=no.pth"],
            "backbone.pretrained: there is no file 'no.pth'; acce",
        ),
        (["head.num_classes=7"], "head.num_classes: "),
        (["leakage=perhaps"], "leakage: 'perhaps'; accepted: warn, refuse, ignore"),
        (["launch.processes=0"], "launch.processes: 0; accepted: 1 or more, or null"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_no_folder(told, words, message):
    code, lines = told(*words)
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith(f"guie-train: {message}")


@pytest.mark.parametrize(
    "words",
    [
        ["backbone=resnet50"],
        [
            "head=distill_embedding",
            "backbone@head.teacher=resnet50",
            "backbone=resnet50",
            "backbone.pretrained=null",
            "backbone.name=resnet10t",
        ],
    ],
    ids=["backbone", "teacher"],
)
def test_weights_that_cannot_be_downloaded_are_one_line_and_leave_no_folder(told, words, monkeypatch):
    created = timm.create_model

    def without_network(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return created(name, pretrained=pretrained, **options)

    monkeypatch.setattr("timm.create_model", without_network)
    code, lines = told(*words)
    assert code == 2 and len(lines) == 1
    assert "cannot be had (no route to host); give a local file" in lines[0]
    assert "backbone.pretrained=null for random weights" in lines[0]


@pytest.fixture
def lists(tmp_path):
    """Return the words that train on one list and evaluate on another, which share a class and a picture."""
    (tmp_path / "train.csv").write_text("file,label\na.png,cat\nb.png,dog\nc.png,dog\n")
    (tmp_path / "test.csv").write_text("file,label,split\nc.png,cow,test\nd.png,cow,test\ne.png,cat,test\n")
    chosen = [("dataset", "train"), ("eval_on", "test")]
    return [w for key, name in chosen for w in (f"{key}=[csv]", f"{key}.csv.path={tmp_path / name}.csv")]


def test_shared_classes_are_refused_where_asked(told, lists):
    code, lines = told("leakage=refuse", "trainer.batch_size=4", data=lists)
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith(
        "guie-train: leakage: 1 of 2 classes of eval_on.csv are trained on, too (cat); "
    )


def test_shared_classes_and_pictures_are_told_by_a_dry_run(lists, tmp_path):
    cfg = composed("train", [*SMALL, *lists, f"data_root={tmp_path}", "trainer.batch_size=4", "device=cpu"])
    assert rehearsal.described(cfg, 1).splitlines()[3:5] == [
        "WARNING     leakage: 1 of 2 classes of eval_on.csv are trained on, too (cat)",
        "WARNING     leakage: 1 of 3 pictures of eval_on.csv are among those of dataset.csv "
        f"({tmp_path}/c.png)",
    ]
