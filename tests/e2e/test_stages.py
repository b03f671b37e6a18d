"""A run in two stages on drawn pictures: other size and other classes, killed, taken up, evaluated."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SMALL, console, metrics, run
from ranks import fork, logs, wait

from guie import assembly, checkpoint, runfolder, training
from guie.config.compose import composed
from guie.errors import UserError
from guie.launch import free_port
from guie.resize import load
from guie.train.distributed import World
from guie.train.engine import Engine

STAGES = "{small: {}, large: {init: 1.5, backbone: {image_px: 32}, dataset: {toy: {instances: 6}}}}"
TOY = ["dataset.toy.instances=4", "dataset.toy.views=4", "eval_on.toy.instances=4", "eval_on.toy.views=4"]
SHARED = [
    *(part for part in SMALL if not part.startswith(("backbone.", "trainer.eval_every", "trainer.refit"))),
    *TOY,
    "backbone.image_px=16",
    "hw.precision=fp32",  # bf16 gradients of maps of 1 x 1 are not always finite on a CPU
    "trainer.eval_every=0",
    "trainer.save_every=1",
]
TWO = [*SHARED, f"stages={STAGES}", "stages.large.dataset.toy.instances=6"]


def two_stages(folder, data, *more):
    return run("train", *TWO, f"data_root={data}", f"run_dir={folder}", *more)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, drawn):
    """Return the folder of a run in two stages that was left alone."""
    folder = tmp_path_factory.mktemp("stages") / "straight"
    assert two_stages(folder, drawn) == 0
    return folder


def hashes(folder):
    """Return the hash of every weight and optimiser number of each stage's last step."""
    found = {}
    for stage in checkpoint.stages(folder):
        state = checkpoint.read(checkpoint.locate(stage, "last"))
        tensors = {}
        checkpoint._pack(state.training["optimizer"], tensors, "")
        found |= {(stage.name, part): checkpoint.weights_digest(w) for part, w in state.parts.items()}
        found[stage.name, "optimizer"] = checkpoint.weights_digest(tensors)
    return found


def test_each_stage_is_a_run_of_its_own(straight):
    small, large = checkpoint.stages(straight)
    assert (small.name, large.name) == ("1-small", "2-large")
    for stage, size_px in ((small, 16), (large, 32)):
        assert runfolder.start_state(stage) == "finished" and (stage / "report.html").exists()
        config = runfolder.read_config(stage)
        assert config["backbone"]["image_px"] == size_px and config["stages"] is None
    assert runfolder.start_state(straight) == "finished"
    assert metrics(straight) == metrics(large) != metrics(small)
    assert list(runfolder.read_config(straight)["stages"]) == ["small", "large"]


def test_the_second_starts_from_the_epoch_that_was_asked_for(straight):
    small, large = checkpoint.stages(straight)
    kept = [path.name for path in checkpoint.steps(small / "checkpoints")]
    per_epoch = checkpoint.read(checkpoint.locate(small), parts=()).meta["steps_per_epoch"]
    assert f"step_{round(1.5 * per_epoch):06d}" in kept
    assert runfolder.read_config(large)["ckpt"].endswith(
        f"1-small/checkpoints/step_{round(1.5 * per_epoch):06d}"
    )


def test_the_folder_of_stages_is_evaluated_and_exported_as_its_last(straight, drawn, tmp_path):
    assert (
        run("eval", f"ckpt={straight}", f"out={tmp_path}", f"data_root={drawn}", "threads=1", "floors=false")
        == 0
    )
    assert metrics(tmp_path)["trained"] == metrics(straight)["trained"]
    embedder, meta = assembly.trained_embedder(straight)
    assert embedder.preprocess.size_px == (32, 32)
    assert meta["space_id"] == metrics(straight)["space_id"]


def killed(folder, data, log, *, after, number):
    """Train in a forked child that sends itself a signal after that many steps in all; return its code."""

    def work():
        advance, seen = Engine.advance, []

        def watched(self, batch):
            advance(self, batch)
            seen.append(self.step)
            if len(seen) == after:
                os.kill(os.getpid(), number)

        Engine.advance = watched
        raise SystemExit(two_stages(folder, data))

    return wait(fork(work, log))


def num_steps(folder):
    return [
        checkpoint.read(checkpoint.locate(stage, "last"), parts=()).step
        for stage in checkpoint.stages(folder)
    ]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
    ids=["killed", "asked"],
)
def test_a_run_stopped_in_its_second_stage_and_taken_up_ends_in_the_same_bits(
    straight, drawn, tmp_path, number, code
):
    first, second = num_steps(straight)
    folder = tmp_path / "run"
    log = tmp_path / "log"
    assert killed(folder, drawn, log, after=first + second - 1, number=number) == code, log.read_text()
    assert runfolder.start_state(folder / "1-small") == "finished" and metrics(folder / "1-small")
    before = hashes(folder)["1-small", "embedder"]
    assert two_stages(folder, drawn, "resume=auto") == 0
    assert hashes(folder) == hashes(straight)
    assert hashes(folder)["1-small", "embedder"] == before != hashes(straight)["2-large", "embedder"]
    assert metrics(folder) == metrics(straight)


def test_finished_stages_refuse_changes_and_a_finished_run_is_passed_over(straight, drawn):
    with pytest.raises(UserError, match=r"^stages\.small: seed: was 0, now 5; accepted"):
        two_stages(straight, drawn, "resume=auto", "stages.small.seed=5")
    before = hashes(straight)
    assert two_stages(straight, drawn, "resume=auto") == 0
    assert hashes(straight) == before


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            "dataset: [toy, folder], dataset.folder.root: nowhere",
            r"^stages\.large\.dataset\.folder\.root: no fol",
        ),
        ("sampler: per_class, sampler.k: 5", r"^stages\.large\.sampler\.k: 5 images per class"),
    ],
)
def test_what_a_later_stage_lacks_is_missed_before_the_first_begins(drawn, tmp_path, stage, message):
    stages = f"stages={{small: {{}}, large: {{{stage}}}}}"
    with pytest.raises(UserError, match=message):
        run("train", *SHARED, stages, f"data_root={drawn}", f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_ranks_go_through_the_stages_together(straight, drawn, tmp_path):
    port = free_port()

    def rank(number):
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        raise SystemExit(two_stages(tmp_path / "run", drawn))

    pids = [fork(partial(rank, number), tmp_path / f"rank{number}.log") for number in range(2)]
    assert [wait(pid) for pid in pids] == [0, 0], logs(tmp_path)
    assert num_steps(tmp_path / "run") == num_steps(straight)
    assert runfolder.start_state(tmp_path / "run") == "finished"


@pytest.mark.slow
def test_each_job_of_a_sweep_goes_through_its_stages(monkeypatch, capsys, tmp_path, drawn):
    sweep = tmp_path / "sweep"
    arguments = ["--multirun", "seed=3,4", f"data_root={drawn}", f"hydra.sweep.dir={sweep}", *TWO]
    code, said = console(monkeypatch, capsys, "train", *arguments, "trainer.epochs=2", "hw.threads=1")
    assert code == 0, said
    for job, seed in (("0", 3), ("1", 4)):
        assert runfolder.start_state(sweep / job) == "finished"
        stages = checkpoint.stages(sweep / job)
        assert [runfolder.read_config(stage)["seed"] for stage in stages] == [seed, seed]


@pytest.mark.slow
def test_one_stage_alone_needs_the_one_before(straight, drawn, tmp_path):
    with pytest.raises(UserError, match=r"^stages\.large\.init: 1\.5 is not among .*accepted: none yet$"):
        two_stages(tmp_path / "run", drawn, "only=large")
    shutil.copytree(straight / "1-small", tmp_path / "copy" / "1-small")
    (tmp_path / "copy" / "run.json").write_text(json.dumps({"format": 1, "state": "interrupted"}))
    assert two_stages(tmp_path / "copy", drawn, "resume=auto", "only=large") == 0
    assert hashes(tmp_path / "copy") == hashes(straight)


def test_before_its_first_step_a_stage_knows_the_classes_of_the_one_before(straight, drawn, tmp_path):
    """Rows of known classes are equal; those of new ones point where their pictures are, one by one."""
    small, large = checkpoint.stages(straight)
    ckpt = runfolder.read_config(large)["ckpt"]
    cfg = composed("train", [*TWO, f"data_root={drawn}"])["staged"]["large"] | {"ckpt": ckpt}
    data = training.open_data(cfg, World())
    model = training.new_model(cfg, data.rows)
    job = training.prepare(cfg, data, model, tmp_path, None, World(), lambda *told: None)
    for hook in job.run.hooks:
        hook.close()
    task = job.task
    weight = "heads.arcface.weight"
    rows, old = task.head.state_dict()[weight], checkpoint.read(Path(ckpt)).parts["head"][weight]
    place = {row["label"]: row["id"] for row in runfolder.read_labels(small)}
    was = [place.get(label) for label in data.rows.label_names]
    assert None in was and len(set(was)) > 2
    for i, former in enumerate(was):
        if former is not None:
            assert torch.equal(rows[i], old[former])
            continue
        mean = mean_of(task.embedder, data.rows, np.flatnonzero(data.rows.labels == i))
        assert torch.nn.functional.cosine_similarity(rows[i].double(), mean, dim=0) > 1 - 1e-6
        assert torch.isclose(rows[i].norm(), old.norm(dim=1).mean())


@torch.no_grad()
def mean_of(embedder, manifest, pictures):
    """Return the mean of the neck's output (D,) over pictures that pass one by one."""
    embedder.eval()
    images = [load(manifest.read(int(row)), embedder.preprocess) for row in pictures]
    return sum(embedder(torch.from_numpy(image)[None]).raw[0].double() for image in images) / len(images)
