"""guie-soup on tiny runs: means of weights written out, what is chosen, what is refused."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from commands import CLI, TINY, console, quiet_afterwards, run

from guie import assembly, checkpoint, souping
from guie.checkpoint import State
from guie.cli import soup as command
from guie.config.compose import composed
from guie.errors import UserError
from guie.souping import blended, refuse_differing


@pytest.fixture(scope="module")
def runs(tmp_path_factory, drawn):
    """Runs from one start, as they are saved: b and c near a, noise far from it."""
    folder = tmp_path_factory.mktemp("soup")
    cfg = composed("train", [*TINY, "neck=bn_linear", f"data_root={drawn}"])
    embedder = assembly.embedder(cfg)
    meta = {"config": cfg, "preprocess": asdict(embedder.preprocess), "space_id": "a"}
    state = State(3, {"embedder": embedder.state_dict()}, {}, meta)
    checkpoint.Store(folder / "a" / "checkpoints").save(state)
    for name, length in (("b", 1e-3), ("c", 3e-3), ("noise", 0.5)):
        parts = {"embedder": moved(state.weights, length)}
        checkpoint.Store(folder / name / "checkpoints").save(replace(state, parts=parts))
    return folder


def moved(weights, length):
    draw = torch.Generator().manual_seed(int(length * 1e4))
    return {
        name: value + length * torch.randn(value.shape, generator=draw)
        if value.is_floating_point() and "running" not in name and name != "pool.p"  # a fixed exponent
        else value
        for name, value in weights.items()
    }


@pytest.fixture
def cook(drawn):
    """Return guie-soup on the tiny toy set."""
    chosen = ["dataset=toy", *TINY[:2], f"data_root={drawn}", "device=cpu"]

    def cooked(*overrides):
        with quiet_afterwards():
            command.run(composed("soup", [*chosen, *overrides]))

    return cooked


def weights(path):
    return checkpoint.read(path, "last").weights


def ckpt(runs, *names):
    return f"ckpt=[{','.join(str(runs / name) for name in names)}]"


def test_a_uniform_soup_is_the_mean_and_evaluates_as_a_run(runs, cook, drawn, tmp_path, capsys):
    cook(ckpt(runs, "a", "b", "c"), "method=uniform", f"out={tmp_path / 'soup'}")
    found, parts = weights(tmp_path / "soup"), [weights(runs / name) for name in "abc"]
    for name, value in found.items():
        expected = np.mean([np.asarray(part[name], np.float64) for part in parts], axis=0)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=name)
    assert capsys.readouterr().out.splitlines()[0].split() == ["weights", "mP@5"]
    table = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert [row["weights"] for row in table["rows"][:3]] == [str(runs / name) for name in "abc"]
    assert run("eval", f"ckpt={tmp_path / 'soup'}", f"data_root={drawn}", "floors=false") == 0
    metrics = json.loads(next((tmp_path / "soup").glob("eval/*/metrics.json")).read_text())
    assert metrics["trained"]["merged"]["mP@5"] == pytest.approx(table["rows"][3]["mP@5"])
    embedder, meta = assembly.trained_embedder(tmp_path / "soup")
    assert meta["space_id"] != checkpoint.read(runs / "a", "last").meta["space_id"]
    assert meta["soup"]["chosen"] == [str(runs / name) for name in "abc"] and not embedder.training


@pytest.fixture
def refitted(runs, tmp_path):
    """The runs a and b, b's average kept, with necks refitted to their own features."""
    for name in "ab":
        state = checkpoint.read(runs / name, "last")
        refit = {key: value + 9.0 for key, value in state.weights.items() if key.startswith("neck.")}
        ema = {} if name == "a" else {"ema": moved(state.weights, 2e-3)}
        parts = {**state.parts, **ema, "refit": refit}
        checkpoint.Store(tmp_path / name / "checkpoints").save(replace(state, parts=parts))
    return tmp_path


def trained(path):
    parts = checkpoint.read(path, "last").parts
    return parts.get("ema") or parts["embedder"]


def test_refitted_necks_are_left_out_of_soup_and_curve_and_the_result_can_be_refitted(
    refitted, cook, drawn, capsys
):
    soup, curve, end = (refitted / name for name in ("soup", "curve", "end"))
    cook(ckpt(refitted, "a", "b"), "method=uniform", f"out={soup}")
    for name, value in checkpoint.read(soup, "last").weights.items():
        mean = (trained(refitted / "a")[name].double() + trained(refitted / "b")[name].double()) / 2
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"WARNING: {refitted / 'a'}, {refitted / 'b'}: the refitted neck was left out; ")

    cook(f"wise={refitted / 'b'}", f"start={refitted / 'a'}", "points=2", f"out={curve}")
    table = json.loads((curve / "soup.json").read_text())
    chosen = trained(refitted / ("b" if table["alpha"] else "a"))
    assert all(torch.equal(value, chosen[name]) for name, value in weights(curve).items())

    cure = said.partition("guie-train as before with ")[2].split()
    assert run("train", *TINY, "neck=bn_linear", f"data_root={drawn}", f"run_dir={end}", *cure) == 0
    found, began = checkpoint.read(end, "last"), weights(soup)
    assert not [name for name, value in found.trained.items() if not torch.equal(value, began[name])]
    assert not torch.equal(found.weights["neck.linear.weight"], began["neck.linear.weight"])


class Judge:
    """A kitchen whose metric falls with the distance of the one weight from 1."""

    def __init__(self):
        self.told = []

    def score(self, tried, **named):
        self.told.append(named["weights"])
        return -abs(float(tried["w"]) - 1)


def test_a_greedy_soup_leaves_out_what_lowers_the_metric(monkeypatch):
    values = {"high": 1.5, "low": 0.4, "far": 9.0, "near": 1.1}
    states = {name: State(1, {"embedder": {"w": torch.tensor(value)}}) for name, value in values.items()}
    monkeypatch.setattr(souping, "_read", states.get)
    judge = Judge()
    found = souping._greedy(judge, {name: -abs(value - 1) for name, value in values.items()})
    # near (1.1) with high is 1.3: left out; near with low is .75: left out; none may lower the metric
    assert found.facts["chosen"] == ["near"] and len(judge.told) == 3
    states["low"] = State(1, {"embedder": {"w": torch.tensor(0.95)}})
    found = souping._greedy(judge, {"near": -0.1, "low": -0.05, "far": -8.0, "high": -0.5})
    assert found.facts["chosen"] == ["low", "near"]
    assert found.facts["score"] == pytest.approx(-0.025, abs=1e-6)


def test_a_curve_runs_from_the_start_to_the_tuned_weights_and_its_best_is_kept(runs, cook, tmp_path):
    cook(f"wise={runs / 'a'}", f"start={runs / 'noise'}", "points=3", f"out={tmp_path}")
    table = json.loads((tmp_path / "soup.json").read_text())
    assert [row["alpha"] for row in table["rows"]] == [0.0, 0.5, 1.0]
    best = max(table["rows"], key=lambda row: (row["mP@5"], row["alpha"]))
    assert (table["alpha"], table["score"]) == (best["alpha"], best["mP@5"])
    noise, tuned, found = (weights(path) for path in (runs / "noise", runs / "a", tmp_path))
    for name, value in found.items():
        expected = (1 - best["alpha"]) * noise[name].double() + best["alpha"] * tuned[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_start_is_the_runs_own_checkpoint_else_its_pretrained_backbone(runs, monkeypatch):
    state = checkpoint.read(runs / "a", "last")
    config = {**state.meta["config"], "ckpt": str(runs / "b")}
    cfg = {"start": None, "wise": "a"}
    found = souping._start(cfg, replace(state, meta={**state.meta, "config": config}))
    assert all(torch.equal(value, weights(runs / "b")[name]) for name, value in found.items())
    with pytest.raises(UserError, match="wise: a began with random weights; accepted: start=PATH"):
        souping._start(cfg, state)
    began = assembly.embedder(state.meta["config"])
    monkeypatch.setattr(souping.assembly, "embedder", lambda config: began)
    config = {**state.meta["config"], "backbone": {"_target_": "x", "pretrained": True}}
    found = souping._start(cfg, replace(state, meta={**state.meta, "config": config}))
    for name, value in found.items():
        source = began.state_dict() if name.startswith("backbone.") else state.weights
        assert torch.equal(value, source[name]), name
    refit = {"refit": {"neck.linear.weight": torch.zeros(64, 64)}}
    again = replace(state, parts={**state.parts, **refit}, meta={**state.meta, "config": config})
    assert torch.equal(souping._start(cfg, again)["neck.linear.weight"], found["neck.linear.weight"])


def state_of(**config):
    chosen = {"backbone": {"name": "x", "drop_path": 0.0}, "pool": {"p": 3.0}, "neck": {"dim": 4}, **config}
    meta = {"config": chosen, "preprocess": {"size_px": [32, 32]}}
    return State(1, {"embedder": {"neck.weight": torch.ones(2, 2)}}, {}, meta)


def test_runs_of_other_architectures_are_refused_with_what_differs():
    one = state_of()
    refuse_differing("a", one, "b", state_of(backbone={"name": "x", "drop_path": 0.3}))
    with pytest.raises(UserError, match=r"a and b differ in backbone\.name: 'x' and 'y'; accepted: one arch"):
        refuse_differing("a", one, "b", state_of(backbone={"name": "y", "drop_path": 0.0}))
    other = replace(one, meta={**one.meta, "preprocess": {"size_px": [64, 64]}})
    with pytest.raises(UserError, match=r"differ in preprocess\.size_px: \[32, 32\] and \[64, 64\]"):
        refuse_differing("a", one, "b", other)
    wider = replace(one, parts={"embedder": {"neck.weight": torch.ones(3, 2)}})
    with pytest.raises(UserError, match=r"differ in neck\.weight: \(2, 2\) and \(3, 2\)"):
        refuse_differing("a", one, "b", wider)


def test_whole_numbers_are_not_blended():
    counts = {"n": torch.tensor(3), "w": torch.tensor([1.0])}
    found = blended(counts, {"n": torch.tensor(9), "w": torch.tensor([2.0])}, 0.25)
    assert int(found["n"]) == 3 and float(found["w"]) == 1.25


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out=x"], "ckpt: accepted: ckpt='[runs/a,runs/b]' for a soup, or else wise=runs/a for a curve"),
        (["out=x", "ckpt=runs/a"], "ckpt: runs/a; accepted: two runs or more, in brackets"),
        (["out=x", "ckpt=[a,b]", "method=best"], "method: 'best'; accepted: greedy, uniform"),
        (["out=x", "ckpt=[a,b]", "alpha=1"], "alpha: unknown key; did you mean 'data_root'?"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path, arguments, said):
    monkeypatch.setitem(CLI, "soup", command)
    monkeypatch.chdir(tmp_path)
    code, lines = console(monkeypatch, capsys, "soup", *arguments)
    assert (code, lines[0].split(":")[0]) == (2, "guie-soup")
    assert len(lines) == 1 and said.split(";")[0] in lines[0]


def test_a_metric_that_does_not_exist_and_a_full_folder_are_refused(runs, cook, tmp_path):
    with pytest.raises(UserError, match=r"metric: 'mp5'; accepted: .*mP@5"):
        cook(ckpt(runs, "a", "b"), "metric=mp5", f"out={tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"out: .* is not empty; accepted: a folder that is new or empty"):
        cook(ckpt(runs, "a", "b"), f"out={tmp_path}")
