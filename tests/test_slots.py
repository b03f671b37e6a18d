"""The jobs of a sweep in slots; a few lines of Python stand for guie-train."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from guie import launch
from guie.errors import UserError
from guie.runfolder import start_state
from guie.slots import run_jobs, same_sweep

RUN = """
import json, os, signal, sys, time
from pathlib import Path
words = dict(word.split('=', 1) for word in sys.argv[1:])
folder = Path(words['run_dir'])
folder.mkdir(exist_ok=True)
with (folder.parent / 'started').open('a') as file:
    file.write(words['seed'] + ' ')
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else None
facts = {name: os.environ.get(name) for name in ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS')}
(folder / 'facts').write_text(json.dumps({**facts, 'cores': cores, 'words': words}))

def state(name):
    (folder / 'run.json').write_text(json.dumps({'state': name}))

def stop(number, frame):
    state('interrupted')
    sys.exit(128 + number)

def wait_for(path):
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.01)
    sys.exit(9)

signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGINT, stop)
state('running')
if 'meets' in words:
    wait_for(folder.parent / words['meets'] / 'facts')
if 'until' in words:
    wait_for(Path(words['until']))
if words['seed'] == '13':
    sys.exit('guie-train: seed: 13; accepted: others')
merged = {'mP@5': int(words['seed']) / 10, 'R@1': 0.5}
trained = {'merged': merged, 'x': {'one_shot_error': 0.25}}
(folder / 'metrics.json').write_text(json.dumps({'trained': trained}))
state('finished')
"""


@pytest.fixture
def command(tmp_path):
    path = tmp_path / "run.py"
    path.write_text(RUN)
    return lambda words: [sys.executable, str(path), *words]


@pytest.fixture
def sweep(tmp_path, command):
    """Return a call that runs jobs in the folder `sweep`, by default one after the other on core 0."""
    one_core = [[launch.cores()[0]]]

    def run(*jobs, among=one_core, num_gpus=0):
        return run_jobs([job.split() for job in jobs], tmp_path / "sweep", among, num_gpus, command)

    return run


def rows(tmp_path):
    return list(csv.DictReader((tmp_path / "sweep" / "results.csv").read_text().splitlines()))


def facts(tmp_path, job):
    return json.loads((tmp_path / "sweep" / str(job) / "facts").read_text())


def test_each_job_has_a_row_of_overrides_status_seconds_and_metrics(tmp_path, sweep):
    assert sweep("seed=1 optim.lr=0.1", "seed=2 optim.lr=0.1") == 0
    assert [(row["job"], row["seed"], row["optim.lr"], row["status"]) for row in rows(tmp_path)] == [
        ("0", "1", "0.1", "finished"),
        ("1", "2", "0.1", "finished"),
    ]
    assert [(row["mP@5"], row["R@1"], row["x one_shot_error"]) for row in rows(tmp_path)] == [
        ("0.1", "0.5", "0.25"),
        ("0.2", "0.5", "0.25"),
    ]
    assert all(float(row["seconds"]) >= 0 for row in rows(tmp_path))


def test_as_many_jobs_run_at_once_as_there_are_slots(sweep):
    core = launch.cores()[0]
    assert sweep("seed=1 meets=1", "seed=2 meets=0", "seed=3", among=[[core], [core]]) == 0


def test_finished_jobs_are_skipped_and_others_are_taken_up_again(tmp_path, sweep, caplog):
    assert sweep("seed=1", "seed=13", "seed=2") == 1
    with caplog.at_level(logging.INFO, "guie"):
        assert sweep("seed=1", "seed=13", "seed=2") == 1
    assert (tmp_path / "sweep" / "started").read_text() == "1 13 2 13 "
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "failed", "finished", "failed"]
    assert "3 jobs, 2 finished before" in caplog.text
    assert facts(tmp_path, 1)["words"]["resume"] == "auto"


def test_a_failed_job_is_told_at_the_end_with_its_own_last_line(sweep, caplog):
    with caplog.at_level(logging.INFO, "guie"):
        assert sweep("seed=13", "seed=1") == 1
    told = [record.getMessage() for record in caplog.records]
    assert told[-2] == "failed: 0 (seed=13): guie-train: seed: 13; accepted: others"
    assert any(line.startswith("finished: 1 (seed=1)") for line in told)


def test_a_job_keeps_its_folder_when_the_sweep_grows(tmp_path, sweep):
    assert sweep("seed=2") == 0
    assert sweep("seed=1", "seed=2", "seed=3") == 0
    assert [facts(tmp_path, job)["words"]["seed"] for job in (0, 1, 2)] == ["2", "1", "3"]


def test_how_a_job_is_launched_does_not_make_it_another(tmp_path, sweep):
    assert sweep("seed=2 launch.slots=[[0]]") == 0
    assert sweep("seed=2 launch.slots=[[1]]") == 0
    assert (tmp_path / "sweep" / "started").read_text() == "2 "


def test_new_columns_are_added_to_the_rows_that_are_there(tmp_path, sweep):
    assert sweep("seed=1") == 0
    assert sweep("seed=1", "seed=1 head.margin=0.2") == 0
    assert [row["head.margin"] for row in rows(tmp_path)] == ["", "0.2"]


def test_a_row_that_a_kill_prevented_is_made_up(tmp_path, sweep):
    assert sweep("seed=1") == 0
    (tmp_path / "sweep" / "results.csv").unlink()
    assert sweep("seed=1") == 0
    assert [(row["status"], row["mP@5"], row["seconds"]) for row in rows(tmp_path)] == [
        ("finished", "0.1", "")
    ]


def test_a_slot_of_gpus_is_what_its_job_sees(tmp_path, sweep, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert sweep("seed=1", among=[[2, 3]], num_gpus=4) == 0
    assert facts(tmp_path, 0)["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert facts(tmp_path, 0)["words"]["launch.gpus"] == "2"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert sweep("seed=2", among=[[3]], num_gpus=4) == 0
    assert facts(tmp_path, 1)["CUDA_VISIBLE_DEVICES"] == "3"
    assert "launch.gpus" not in facts(tmp_path, 1)["words"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind to cores")
def test_without_gpus_a_slot_is_the_cores_of_its_job(tmp_path, sweep):
    core = launch.cores()[-1]
    before = os.sched_getaffinity(0)
    assert sweep("seed=1", among=[[core]]) == 0
    assert facts(tmp_path, 0)["cores"] == [core] and facts(tmp_path, 0)["OMP_NUM_THREADS"] == "1"
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("wrong", "num_gpus", "message"),
    [
        ([[0], [2]], 2, r"launch\.slots: \[2\]; accepted: lists of GPUs among 0, 1, as in \[\[0\],\[1\]\]"),
        ([[]], 2, r"launch\.slots: \[\]; accepted: lists of GPUs among 0, 1"),
        ([0, 1], 2, r"launch\.slots: 0; accepted: lists of GPUs"),
        ([[10**6]], 0, r"launch\.slots: \[1000000\]; accepted: lists of cores among "),
    ],
)
def test_slots_that_cannot_be_are_refused(wrong, num_gpus, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run_jobs([["seed=1"]], tmp_path / "sweep", wrong, num_gpus)
    assert not (tmp_path / "sweep").exists()


def test_the_newest_folder_with_the_same_jobs_is_the_same_sweep(tmp_path, sweep):
    sweep("seed=1", "seed=2")
    assert same_sweep([["seed=2"], ["seed=1", "launch.slots=[[1]]"]], tmp_path) == tmp_path / "sweep"
    assert same_sweep([["seed=1"]], tmp_path) is None


def test_ctrl_c_stops_what_runs_starts_nothing_more_and_leaves_the_rest_to_the_next_start(
    tmp_path, command, sweep
):
    folder, gate = tmp_path / "sweep", tmp_path / "gate"
    jobs = [f"seed={seed} until={gate}".split() for seed in (1, 2, 3)]
    core = launch.cores()[0]
    text = (
        "import sys\nfrom guie.slots import run_jobs\nfrom pathlib import Path\n"
        f"command = lambda words: [sys.executable, {str(tmp_path / 'run.py')!r}, *words]\n"
        f"sys.exit(run_jobs({jobs!r}, Path({str(folder)!r}), [[{core}], [{core}]], 0, command))"
    )
    outer = subprocess.Popen([sys.executable, "-c", text], start_new_session=True)
    try:
        begun = time.monotonic()
        while not all((folder / job / "run.json").exists() for job in "01") and time.monotonic() - begun < 60:
            time.sleep(0.02)
        outer.send_signal(signal.SIGINT)
        assert outer.wait(60) == 130
    finally:
        outer.kill()
    assert [start_state(folder / job) for job in "012"] == ["interrupted", "interrupted", None]
    assert [(row["status"], row["exit_code"]) for row in rows(tmp_path)] == [("interrupted", "130")] * 2
    gate.touch()
    assert sweep(*(" ".join(job) for job in jobs)) == 0
    assert [start_state(folder / job) for job in "012"] == ["finished"] * 3
