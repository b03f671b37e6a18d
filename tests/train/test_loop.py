import json
import logging
import os
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks import logs, run_ranks
from tiny import STEPS_PER_EPOCH, TinyEmbedder, TinyHead, batches, settings, task, train

from guie import checkpoint
from guie.errors import UserError
from guie.train.distributed import Hardware, World
from guie.train.engine import Engine
from guie.train.hooks import Hook, JsonLines, LogLines, TensorBoard
from guie.train.loop import fit
from guie.train.model import load_weights
from guie.train.optim import Rates, adamw, parameter_groups, sgd
from guie.train.pieces import split
from guie.train.progress import Lines, duration
from guie.train.settings import Settings
from guie.train.task import Run
from guie.types import Mixed


class Send(Hook):
    def __init__(self, number, step):
        self.number, self.step = number, step

    def tick(self, step):
        if step == self.step:
            os.kill(os.getpid(), self.number)


class Heard(Hook):
    def __init__(self):
        self.records = []

    def record(self, values):
        self.records.append(dict(values))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_tells_the_exit_code(tmp_path, number, code):
    stopped = train(task(), settings(), folder=tmp_path / "a", hooks=[Send(number, 5)])
    assert (stopped.step, stopped.exit_code) == (6, code)
    state = checkpoint.read(tmp_path / "a", "last")
    assert state.step == 6
    ended = train(task(), settings(), folder=tmp_path / "a", resume=state)
    assert (ended.step, ended.exit_code) == (12, 0)
    train(task(), settings(), folder=tmp_path / "b")
    a, b = (checkpoint.weights_digest(checkpoint.read(tmp_path / n).weights) for n in "ab")
    assert a == b


def test_an_evaluation_that_a_signal_prevented_is_made_on_resuming(tmp_path):
    seen = []

    def evaluate(embedder, step):
        seen.append(step)
        return {"mP@5": 0.5}

    first = task(evaluate=evaluate)
    train(first, settings(eval_every=1), folder=tmp_path, hooks=[Send(signal.SIGTERM, 3)])
    assert seen == []
    state = checkpoint.read(tmp_path, "last")
    train(task(evaluate=evaluate), settings(eval_every=1), folder=tmp_path, resume=state)
    assert seen == [4, 8, 12]


@pytest.mark.parametrize("poison", [0, 5])
def test_a_loss_that_is_not_finite_stops_before_a_checkpoint_and_names_step_and_ids(tmp_path, poison):
    made = task(batches=batches(poison=poison))
    ids = ", ".join(str(100 * poison + i) for i in range(8))
    expected = f"loss of batch ids [{ids}] at step {poison + 1} is not finite"
    with pytest.raises(UserError, match=re.escape(expected)):
        train(made, settings(save_steps=1), folder=tmp_path)
    saved = checkpoint.steps(tmp_path)
    assert not saved if poison == 0 else saved[-1].name == f"step_{poison:06d}"
    for folder in saved:
        weights = checkpoint.read(folder).weights
        assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_a_bad_loss_on_one_rank_stops_all_and_names_only_its_ids(tmp_path):
    def poisoned(world):
        made = task(0, world, batches=batches(0, world, poison=2))
        with pytest.raises(UserError, match=r"loss of batch ids \[200, 201, 202, 203\] at step 3"):
            train(made, settings(), world=world)

    assert run_ranks(2, poisoned, tmp_path) == [0, 0], logs(tmp_path)


def test_two_ranks_stop_at_the_same_step_when_one_is_asked(tmp_path):
    def asked(world):
        hooks = [Send(signal.SIGTERM, 3)]
        summary = train(task(0, world), settings(), folder=tmp_path / "c", world=world, hooks=hooks)
        assert (summary.step, summary.exit_code) == (4, 143)

    assert run_ranks(2, asked, tmp_path / "r") == [0, 0], logs(tmp_path / "r")


def test_loss_falls_and_best_and_last_are_kept(tmp_path):
    heard = Heard()
    scores = iter([0.2, 0.9, 0.5, 0.4, 0.3])
    made = task(evaluate=lambda embedder, step: {"mP@5": next(scores)}, steps_per_epoch=8)
    one = next(batches()(0, 1))
    made.batches = lambda start, stop: iter([one] * (stop - start))
    summary = train(made, settings(epochs=5, eval_every=1, keep=2), folder=tmp_path, hooks=[heard])
    losses = [record["loss"] for record in heard.records if "loss" in record]
    assert losses[-1] < losses[0] / 2
    assert summary.best == {"metric": "mP@5", "score": 0.9, "step": 16}
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step_000016", "step_000032", "step_000040"]
    assert checkpoint.read(tmp_path).step == 16
    assert checkpoint.read(tmp_path, "last").step == 40


def test_what_is_evaluated_and_saved_for_use_is_the_average(tmp_path):
    seen = []

    def evaluate(embedder, step):
        assert not embedder.training
        seen.append({name: value.clone() for name, value in embedder.state_dict().items()})
        return {}

    made = task(evaluate=evaluate)
    train(made, settings(ema_decay=0.9), folder=tmp_path)
    state = checkpoint.read(tmp_path)
    for name, value in state.weights.items():
        torch.testing.assert_close(seen[-1][name], value, rtol=0, atol=0)
        assert not torch.equal(state.parts["embedder"][name], value)
        torch.testing.assert_close(made.embedder.state_dict()[name], state.parts["embedder"][name])


def refit_to_twos(embedder):
    for value in embedder.neck.state_dict().values():
        value.fill_(2)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_refitted_neck_is_evaluated_and_saved_for_use_beside_the_trained_one(tmp_path, ema_decay):
    seen = []
    made = task(evaluate=lambda embedder, step: seen.append(embedder.neck[1].bias.clone()) or {})
    made.refit = refit_to_twos
    train(made, settings(ema_decay=ema_decay, eval_every=1), folder=tmp_path)
    state = checkpoint.read(tmp_path, "last")
    assert (seen[-1] == 2).all() and not any((bias == 2).any() for bias in seen[:-1])
    assert (state.weights["neck.1.weight"] == 2).all()
    assert not (state.weights["backbone.0.weight"] == 2).any()
    assert not (made.embedder.neck[1].weight == 2).any()
    for name, value in state.parts["embedder"].items():
        torch.testing.assert_close(made.embedder.state_dict()[name], value, rtol=0, atol=0)


def test_more_epochs_go_on_from_the_trained_neck_and_refit_again(tmp_path):
    made = task()
    made.refit = refit_to_twos
    train(made, settings(epochs=1), folder=tmp_path)
    state = checkpoint.read(tmp_path, "last")
    again = task()
    calls = []
    again.refit = lambda embedder: calls.append(embedder.neck[1].bias.clone())
    train(again, settings(epochs=1), folder=tmp_path, resume=state)
    assert not calls
    train(again, settings(epochs=2), folder=tmp_path, resume=state)
    assert len(calls) == 1 and not (calls[0] == 2).any()


def test_the_average_is_the_recursion_written_out():
    from guie.train.average import Average, ema_weight

    module = torch.nn.Linear(2, 1, bias=False).double()
    ema = Average(module, lambda update: ema_weight(update, 0.5))
    average = module.weight.detach().clone()
    for n in range(1, 12):
        with torch.no_grad():
            module.weight.add_(n)
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(ema.average["weight"], average)


def test_a_frozen_backbone_keeps_weights_and_statistics(tmp_path):
    made = task(norm=True)
    before = {name: value.clone() for name, value in made.embedder.backbone.state_dict().items()}
    neck = made.embedder.neck[1].weight.detach().clone()
    train(made, settings(freeze_backbone=True))
    for name, value in made.embedder.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(made.embedder.neck[1].weight, neck)


def test_cached_features_train_as_pictures_do(tmp_path):
    from dataclasses import replace

    made = task(norm=True)
    made.embedder.eval()

    def cached(start, stop):
        for batch in batches()(start, stop):
            with torch.no_grad():
                features = made.embedder.features(batch.images)
            yield replace(batch, images=features)

    options = settings(freeze_backbone=True)
    train(task(norm=True), options, folder=tmp_path / "pictures")
    made.batches, made.features = cached, True
    train(made, options, folder=tmp_path / "features")
    a, b = (checkpoint.read(tmp_path / name).weights for name in ("pictures", "features"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_to_the_norm_that_is_asked():
    made = task()
    engine = Engine(made, settings(clip_norm=1e-3), Hardware(), World(), Run())
    batch = next(batches()(0, 1))
    engine.gradients(batch)
    norms = engine.update(batch)
    clipped = torch.nn.utils.get_total_norm([p.grad for part in engine.parts.values() for p in part])
    assert float(norms["grad_norm"]) > 0.01
    assert float(clipped) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_head_sees_fp32_and_training_goes_on_under_autocast(tmp_path, precision):
    seen = []

    class Head(TinyHead):
        def forward(self, output, batch):
            seen.append((output.z.dtype, torch.is_autocast_enabled("cpu")))
            return super().forward(output, batch)

    made = task()
    made.head = Head()
    made.optimizer = adamw(embedder=made.embedder, head=made.head)
    run = Run(store=checkpoint.Store(tmp_path))
    fit(made, settings(epochs=1), Hardware(precision=precision, channels_last=True), World(), run)
    assert set(seen) == {(torch.float32, False)}
    scaler = checkpoint.read(tmp_path).training["scaler"]
    assert bool(scaler) == (precision == "fp16")


def test_metrics_are_strict_json_with_rate_norm_and_speed(tmp_path):
    made = task(evaluate=lambda embedder, step: {"mP@5": float("nan")})
    train(made, settings(log_every=2, eval_every=1), hooks=[JsonLines(tmp_path / "metrics.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [2, 4, 6, 8, 10, 12]
    norms = {"grad_norm", "grad_norm/backbone", "grad_norm/neck", "grad_norm/head"}
    assert set(steps[0]) == {"step", "epoch", "loss", "accuracy", "lr", "images_per_s", *norms}
    assert [line["mP@5"] for line in lines if "mP@5" in line] == [None] * 3


def test_a_measurement_to_watch_that_does_not_exist_is_named():
    made = task(evaluate=lambda embedder, step: {"R@1": 0.5, "mP@5": 0.4})
    with pytest.raises(UserError, match=r"trainer\.monitor: 'mp5'; accepted: R@1, mP@5"):
        train(made, settings(monitor="mp5"))


def test_the_log_tells_where_training_begins_and_each_evaluation(caplog):
    made = task(evaluate=lambda embedder, step: {"mP@5": 0.25})
    with caplog.at_level(logging.INFO, "guie"):
        train(made, settings(), hooks=[LogLines(logging.getLogger("guie"))])
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "training: step 0 of 12"
    assert said[-1] == "step 12  epoch 3  mP@5 0.25"
    assert len(said) == 3  # steps are told every half minute


def test_tensorboard_writes_scalars(tmp_path):
    train(task(), settings(epochs=1), hooks=[TensorBoard(folder=str(tmp_path))])
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_progress_on_a_pipe_is_plain_lines_with_rate_and_time_left():
    import io

    stream = io.StringIO()
    train(task(), settings(epochs=1), hooks=[Lines(stream, every_s=0)])
    last = stream.getvalue().splitlines()[-1]
    assert re.fullmatch(r"step 4/4 .*loss .* steps/s, 0:00:00 left", last)
    assert duration(3725) == "1:02:05"


def test_the_progress_bar_runs_without_a_terminal():
    from guie.train.progress import Bar

    train(task(), settings(epochs=1), hooks=[Bar()])


def test_parameters_are_grouped_by_part_and_decay():
    embedder, head = TinyEmbedder(norm=True), TinyHead()
    groups = parameter_groups(embedder, head, Rates(0.1, backbone_lr_factor=0.1, head_lr_factor=10), 0.05)
    seen = {group["name"]: (group["lr"], group["weight_decay"], len(group["params"])) for group in groups}
    assert seen == {
        "backbone": (pytest.approx(0.01), 0.05, 1),
        "backbone.no_decay": (pytest.approx(0.01), 0.0, 2),
        "embedder": (0.1, 0.05, 1),
        "embedder.no_decay": (0.1, 0.0, 1),
        "head": (1.0, 0.05, 1),
    }
    assert len(sgd(embedder=embedder, head=head).param_groups) == 5


def test_micro_batches_cover_the_batch_once_and_are_never_empty():
    batch = next(batches()(0, 1))
    for pieces in (1, 3, 8, 20):
        parts = split(batch, pieces)
        assert len(parts) == min(pieces, 8)
        np.testing.assert_array_equal(torch.cat([part.ids for part in parts]), batch.ids)


def test_of_blended_pictures_both_labels_losses_count_in_their_shares():
    made = task(features=False)
    engine = Engine(made, settings(accumulate=3), Hardware(), World(), Run())
    plain = next(batches()(0, 1))
    theirs = replace(plain, labels=plain.labels.roll(1), ids=plain.ids.roll(1))
    mixed = Mixed(theirs.labels, theirs.domains, theirs.ids, torch.tensor(0.3))
    found = engine.gradients(replace(plain, mixed=mixed))
    gradient = made.head.weight.grad.clone()
    one = engine.gradients(plain)
    expected = 0.3 * made.head.weight.grad
    other = engine.gradients(theirs)
    expected = expected + 0.7 * made.head.weight.grad
    torch.testing.assert_close(found["loss"], 0.3 * one["loss"] + 0.7 * other["loss"])
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(found["accuracy"], one["accuracy"])  # told of the pictures' own labels


def test_settings_that_cannot_be_are_named():
    cases = {
        "epochs": 0,
        "accumulate": 0,
        "warmup": 1.0,
        "ema_decay": 1.0,
        "refit_shrinkage": -1.0,
        "cache_features": True,
        "mixup_alpha": 0.2,
        "mixup_p": 0.0,
        "mixup_until": 1.5,
    }
    for name, value in cases.items():
        with pytest.raises(UserError, match=f"trainer.{name}: {value!r}; accepted: "):
            Settings(**{name: value}).check()
    assert Settings(epochs=3, max_steps=5).num_steps(STEPS_PER_EPOCH) == 5


def test_weights_of_another_shape_are_named():
    other = TinyEmbedder().state_dict() | {"neck.1.bias": torch.zeros(7)}
    with pytest.raises(
        UserError, match=r"embedder\.neck\.1\.bias: the checkpoint has \(7,\), the model \(6,\)"
    ):
        load_weights(TinyEmbedder(), other, "embedder")


def test_batches_that_end_early_are_an_error():
    made = task(batches=lambda start, stop: batches()(start, 5))
    with pytest.raises(UserError, match="data: batches ended at step 5 of 12"):
        train(made, settings())
