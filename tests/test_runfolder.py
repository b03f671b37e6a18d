import json
import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from guie import checkpoint, runfolder
from guie.checkpoint import State, Store
from guie.errors import UserError
from guie.runfolder import opened

CONFIG = {
    "seed": 1,
    "trainer": {"max_steps": 5, "clip_norm": 0.0},
    "optim": {"lr": 0.1, "betas": (0.9, 0.99)},
}


def changed(**values):
    return {**CONFIG, "trainer": {**CONFIG["trainer"], **values}}


def interrupted(path, step=3):
    with opened(path, CONFIG) as folder:
        Store(folder.checkpoints).save(
            State(step, {"embedder": {"w": torch.zeros(1)}}, meta={"config": CONFIG})
        )
    return path


def finished(path):
    with opened(interrupted(path), CONFIG, "auto") as folder:
        folder.mark("finished")
    return path


def test_a_new_folder_holds_the_config_and_is_marked(tmp_path):
    with opened(tmp_path / "a", CONFIG) as folder:
        assert folder.start is None
        assert runfolder.start_state(folder.path) == "running"
        assert runfolder.changed_keys(runfolder.read_config(folder.path), CONFIG) == []
        assert (folder.path / "run.lock").exists()
    assert runfolder.start_state(tmp_path / "a") == "interrupted"
    assert not (tmp_path / "a" / "run.lock").exists()


def test_an_interrupted_run_is_refused_with_the_hint_and_continued_with_auto(tmp_path):
    path = interrupted(tmp_path / "a")
    with (
        pytest.raises(UserError, match="interrupted run; continue it with resume=auto"),
        opened(path, CONFIG),
    ):
        pass
    with opened(path, CONFIG, "auto") as folder:
        assert folder.start.name == "step_000003"


def test_auto_begins_where_nothing_was_saved_yet(tmp_path):
    for _ in range(2):
        with opened(tmp_path / "a", CONFIG, "auto") as folder:
            assert folder.start is None


def test_a_finished_run_is_refused_unless_a_limit_was_raised(tmp_path):
    path = finished(tmp_path / "a")
    with pytest.raises(UserError, match="holds a finished run"), opened(path, CONFIG):
        pass
    with pytest.raises(UserError, match="is finished; accepted: a new folder"), opened(path, CONFIG, "auto"):
        pass
    assert runfolder.start_state(path) == "finished"
    with opened(path, changed(max_steps=9), "auto") as folder:
        assert folder.start is not None


def test_a_foreign_folder_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for resume in ("never", "auto"):
        with (
            pytest.raises(UserError, match=r"not a run folder \(it holds thesis.tex\)"),
            opened(tmp_path, CONFIG, resume),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"), opened(tmp_path / "thesis.tex", CONFIG):
        pass


def test_changed_keys_are_named_and_only_limits_may_differ(tmp_path):
    path = interrupted(tmp_path / "a")
    other = {**changed(clip_norm=1.0, max_steps=7), "optim": {"lr": 0.2, "betas": [0.9, 0.99]}, "extra": 1}
    expected = (
        r"extra: was None, now 1; optim\.lr: was 0\.1, now 0\.2; trainer\.clip_norm: was 0\.0, now 1\.0; "
    )
    with pytest.raises(UserError, match=expected + "accepted: the same config but for trainer.max_steps"):
        opened(path, other, "auto").__enter__()
    with opened(path, {**changed(max_steps=7), "tracker": {"uri": "http://gone"}}, "auto"):
        assert runfolder.read_config(path)["trainer"]["max_steps"] == 7


def test_a_named_checkpoint_is_taken_up_in_its_own_folder_or_a_new_one(tmp_path):
    path = interrupted(tmp_path / "a", step=3)
    Store(path / "checkpoints").save(State(4, {}, meta={"config": CONFIG}))
    named = str(path / "checkpoints" / "step_000003")
    for run_dir in (path, tmp_path / "b"):
        with opened(run_dir, CONFIG, named) as folder:
            assert checkpoint.read(folder.start).step == 3
    with pytest.raises(UserError, match=r"resume=.*seed: was 1, now 2"):
        opened(tmp_path / "c", {**CONFIG, "seed": 2}, named).__enter__()


def test_measurements_after_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    path = interrupted(tmp_path / "a", step=3)
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 4)]
    (path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "lo')
    with opened(path, CONFIG, "auto") as folder:
        assert folder.metrics.read_text().splitlines() == lines[:3]


HOLD = """
import sys, time
from pathlib import Path
from guie import runfolder
with runfolder.opened(Path(sys.argv[1]), {}) as folder:
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_in_use_is_refused_and_a_dead_owners_lock_is_taken_over(tmp_path):
    path = tmp_path / "a"
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    try:
        assert owner.stdout.readline() == b"held\n"
        for resume in ("never", "auto"):
            with (
                pytest.raises(UserError, match=f"in use by process {owner.pid} on "),
                opened(path, {}, resume),
            ):
                pass
        owner.kill()
        deadline = time.monotonic() + 20
        while runfolder._born(owner.pid) not in ("", "dead") and time.monotonic() < deadline:
            time.sleep(0.01)
        with opened(path, {}, "auto"):  # killed, and not even waited for
            pass
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()


def test_a_process_number_that_was_used_again_does_not_hold_a_lock(tmp_path):
    (tmp_path / "run.lock").write_text(
        json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "born": "1"})
    )
    runfolder.take_lock(tmp_path)


def test_a_lock_of_another_host_is_respected_and_its_file_named(tmp_path):
    (tmp_path / "run.lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": "1"}))
    with pytest.raises(UserError, match=r"process 1 on elsewhere.*delete .*run\.lock"):
        runfolder.take_lock(tmp_path)


def test_labels_and_the_log_are_readable_without_the_project(tmp_path):
    import pyarrow.parquet as pq

    runfolder.write_labels(tmp_path, ["cat", "dog"], domain=["pets", "pets"])
    rows = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    assert rows[1] == {"id": 1, "label": "dog", "domain": "pets"}
    with runfolder.log_file(tmp_path) as logger:
        logger.info("begun")
    logger.info("after")
    assert (tmp_path / "log.txt").read_text().endswith("INFO begun\n")
