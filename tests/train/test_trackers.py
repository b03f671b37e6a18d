"""Trackers that are packages of their own, with modules in their place that write down what they are told."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import settings, task, train

from guie.build import build, resolve
from guie.config.compose import composed
from guie.errors import UserError
from guie.train.hooks import Hook, JsonLines, TensorBoard
from guie.train.trackers import MLflow, Wandb, check, metric_name

CONFIG = {"seed": 0, "optim": {"lr": 0.1}, "dataset": {"toy": {"views": 4}}, "stages": None}


class Recorder:
    """An object that writes down every call of its methods; `answers` by name are what they return."""

    def __init__(self, calls, **answers):
        self.calls, self.answers = calls, answers

    def __getattr__(self, name):
        def called(*args, **named):
            self.calls.append((name, args, named))
            return self.answers.get(name)

        return called


@pytest.fixture
def calls():
    return []


@pytest.fixture
def wandb(monkeypatch, calls):
    run = Recorder(calls)
    run.id = "w1"
    monkeypatch.setitem(sys.modules, "wandb", Recorder(calls, init=run))


@pytest.fixture
def mlflow(monkeypatch, calls):
    run = SimpleNamespace(info=SimpleNamespace(run_id="m1"))
    client = Recorder(calls, create_run=run, create_experiment="7")
    module = Recorder(calls, MlflowClient=client)
    module.entities = SimpleNamespace(Metric=lambda *values: values)
    monkeypatch.setitem(sys.modules, "mlflow", module)


def named(calls, name):
    return [(args, kwargs) for called, args, kwargs in calls if called == name]


def test_wandb_gets_config_name_and_measurements_by_step_and_is_finished(tmp_path, wandb, calls):
    folder = tmp_path / "my-run"
    folder.mkdir()
    tracker = Wandb(project="p", mode="offline", folder=str(folder), config=CONFIG)
    train(task(), settings(), hooks=[tracker])
    ((_, begun),) = named(calls, "init")
    assert (begun["project"], begun["mode"], begun["name"]) == ("p", "offline", "my-run")
    assert begun["config"] == CONFIG and begun["dir"] == str(folder) and begun["id"] is None
    logged = named(calls, "log")
    assert [kwargs["step"] for _, kwargs in logged] == sorted(kwargs["step"] for _, kwargs in logged)
    assert logged[-1][1]["step"] == 12
    assert {"loss", "lr", "epoch"} <= set(logged[-1][0][0]) and "step" not in logged[-1][0][0]
    assert calls[-1] == ("finish", (), {"exit_code": 0})


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(tmp_path, wandb, calls):
    for first in (0, 5):
        tracker = Wandb(folder=str(tmp_path), config=CONFIG)
        tracker.start(first, 10)
        tracker.close()
    assert [kwargs["id"] for _, kwargs in named(calls, "init")] == [None, "w1"]
    assert json.loads((tmp_path / "tracker.json").read_text()) == {"wandb": "w1"}


def test_mlflow_gets_config_name_and_measurements_by_step_and_is_finished(tmp_path, mlflow, calls):
    folder = tmp_path / "my-run"
    folder.mkdir()
    train(task(), settings(), hooks=[MLflow(uri="file:x", folder=str(folder), config=CONFIG)])
    assert named(calls, "MlflowClient") == [((), {"tracking_uri": "file:x"})]
    assert named(calls, "create_run") == [(("7",), {"run_name": "my-run"})]
    params = {args[1]: args[2] for args, _ in named(calls, "log_param")}
    assert params == {"seed": "0", "optim.lr": "0.1", "dataset.toy.views": "4", "stages": "None"}
    name, value, _, step = named(calls, "log_batch")[-1][1]["metrics"][1]
    assert (name, step) == ("loss", 12) and isinstance(value, float)
    assert calls[-1] == ("set_terminated", ("m1",), {"status": "FINISHED"})


@pytest.mark.parametrize(("kind", "end"), [(Wandb, {"exit_code": 1}), (MLflow, {"status": "FAILED"})])
def test_a_run_that_an_exception_ends_is_finished_as_failed(tmp_path, wandb, mlflow, calls, kind, end):
    def broken(start, stop):
        raise RuntimeError("no more pictures")
        yield

    made = task()
    made.batches = broken
    with pytest.raises(RuntimeError, match="no more pictures"):
        train(made, settings(), hooks=[kind(folder=str(tmp_path), config=CONFIG)])
    assert calls[-1][2] == end


class Failing(Hook):
    """A tracker that does not answer from its second record on; it counts what it is told."""

    package = "mlflow"

    def __init__(self, close=False):
        self.told, self.closed, self._close = 0, 0, close

    def record(self, values):
        self.told += 1
        if self.told > 1:
            raise ConnectionError("no answer\nfrom host")

    def close(self):
        self.closed += 1
        if self._close:
            raise ConnectionError("no answer")


@pytest.mark.parametrize("close", [False, True])
def test_a_tracker_that_fails_is_warned_of_once_and_training_goes_on_without_it(tmp_path, caplog, close):
    failing, lines = Failing(close), JsonLines(tmp_path / "metrics.jsonl")
    summary = train(task(), settings(), hooks=[failing, lines])
    assert summary.step == summary.steps == len((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (failing.told, failing.closed) == (2, 1)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["tracker: mlflow failed (no answer from host); training goes on without it"]


def test_a_hook_that_cannot_start_lets_those_before_it_close(tmp_path):
    class Refusing(Hook):
        def start(self, step, steps):
            raise UserError("tracker: wandb cannot begin")

    started = Failing()
    with pytest.raises(UserError, match="wandb cannot begin"):
        train(task(), settings(), hooks=[started, Refusing()])
    assert (started.told, started.closed) == (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_metrics_jsonl_ends_the_run_with_the_cure():
    other = Failing()
    message = (
        r"/dev/full: step 1 could not be written \(No space left on device\); accepted: room on that disk"
    )
    with pytest.raises(UserError, match=message):
        train(task(), settings(), hooks=[JsonLines(Path("/dev/full")), other])
    assert (other.told, other.closed) == (0, 1)


@pytest.mark.parametrize(("kind", "name"), [(Wandb, "wandb"), (MLflow, "mlflow")])
def test_a_package_that_is_not_installed_is_told_with_the_cure(monkeypatch, kind, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"tracker: {name} is not installed .*pip install 'guie\[{name}\]'"):
        check(kind)
    check(TensorBoard)


@pytest.mark.parametrize(("kind", "name"), [(Wandb, "wandb"), (MLflow, "mlflow")])
def test_a_tracker_that_cannot_begin_is_one_line(tmp_path, monkeypatch, kind, name):
    def refuses(**_):
        raise RuntimeError("no key\nconfigured")

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=refuses, MlflowClient=refuses))
    tracker = kind(folder=str(tmp_path), config=CONFIG)
    with pytest.raises(UserError, match=rf"tracker: {name} cannot begin \(no key configured\); accepted: "):
        tracker.start(0, 10)
    tracker.close()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_each_is_a_choice_of_the_group(tmp_path, wandb, mlflow, name):
    node = composed("train", [f"tracker={name}"])["tracker"]
    tracker = build(node, where="tracker", folder=str(tmp_path), config=CONFIG)
    assert tracker.package == name
    check(resolve(node["_target_"]))


def test_names_are_such_that_mlflow_takes_them():
    assert metric_name("mP@5/a b") == "mP_at_5/a b"
    assert metric_name("loss [x]") == "loss _x_"
