"""Which process this is, and the ranks of one machine; a few lines of Python stand for guie-train."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from guie import launch
from guie.errors import UserError
from guie.launch import Launch, Placement, first_host, placement, ranks_here, run_ranks

SRUN = {"SLURM_JOB_ID": "20077", "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "gpu[007-009,012],big1"}
SRUN |= {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}


def test_without_any_variable_a_process_is_alone():
    assert placement({}) == Placement(0, 1, 0, None)
    assert placement({"WORLD_SIZE": "1"}) == Placement(0, 1, 0, None)


def test_torchrun_says_the_place_and_comes_before_slurm():
    started = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
    assert placement({**SRUN, **started}) == Placement(3, 4, 1, None)


def test_srun_says_the_place_and_the_first_node_is_where_all_meet():
    assert placement(SRUN) == Placement(5, 8, 1, "gpu007:20077")
    assert placement({**SRUN, "MASTER_ADDR": "head"}).meeting == "head:20077"
    assert placement({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "9"}).meeting is None


def test_a_step_of_srun_may_be_smaller_than_its_job():
    assert placement({**SRUN, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}).size == 2


def test_a_batch_script_is_alone_though_it_sees_the_number_of_tasks():
    script = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    assert placement({**script, "SLURM_PROCID": "0"}).size == 1


def test_the_ranks_of_a_machine_share_its_cores():
    assert ranks_here({}) == 1
    assert ranks_here({"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}) == 4
    assert ranks_here({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}) == 4
    assert ranks_here({"SLURM_STEP_TASKS_PER_NODE": "4"}) == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, r"RANK: None; accepted: a number, as in processes that torchrun"),
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE: 'two'; accepted: a number"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, r"RANK: 2 of 2 processes; accepted: 0 to 1"),
        ({**SRUN, "SLURM_JOB_NODELIST": "[1-2]"}, r"SLURM_JOB_NODELIST: '\[1-2\]'; accepted: hosts"),
    ],
)
def test_a_place_that_cannot_be_is_refused(environment, message):
    with pytest.raises(UserError, match=message):
        placement(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("one", "one"),
        ("a1,a2", "a1"),
        ("gpu[007-009,012],big1", "gpu007"),
        ("n[1,3]-ib,x", "n1-ib"),
        ("rack-b-[12-13]", "rack-b-12"),
    ],
)
def test_the_first_of_slurms_short_list_of_hosts(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("given", "device", "num_gpus", "ranks"),
    [
        ({}, "auto", 8, 1),
        ({"gpus": 1}, "auto", 1, 1),
        ({"gpus": 4}, "cuda", 4, 4),
        ({"processes": 2}, "cpu", 4, 2),
        ({"processes": 2}, "auto", 0, 2),
    ],
)
def test_how_many_ranks_are_started(given, device, num_gpus, ranks):
    assert Launch(**given).num_ranks(device, num_gpus) == ranks


@pytest.mark.parametrize(
    ("given", "device", "num_gpus", "message"),
    [
        ({"gpus": 4}, "auto", 2, "launch.gpus: 4, but 2 visible here; accepted: 1 to 2"),
        (
            {"gpus": 2},
            "auto",
            0,
            "launch.gpus: 2, but 0 visible here; accepted: launch.processes=N device=cpu",
        ),
        ({"gpus": 2}, "cpu", 2, "launch.gpus: 2 with device=cpu; accepted: launch.processes=N"),
        ({"gpus": 0}, "auto", 2, "launch.gpus: 0; accepted: 1 or more, or null"),
        (
            {"processes": 2},
            "auto",
            1,
            "launch.processes: 2 beside a GPU; accepted: launch.gpus=N, or device=cpu",
        ),
        ({"gpus": 2, "processes": 2}, "auto", 2, "launch.processes: given beside launch.gpus; accepted: one"),
    ],
)
def test_ranks_that_cannot_be_are_refused_in_one_line(given, device, num_gpus, message):
    with pytest.raises(UserError) as caught:
        Launch(**given).num_ranks(device, num_gpus)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def script(text):
    return [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{text}"]


def test_each_rank_has_the_environment_that_torchrun_gives(tmp_path):
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    work = f"import json\njson.dump([os.environ[n] for n in {names}], open(rf'{tmp_path}/{{rank}}', 'w'))"
    assert run_ranks(script(work), 2) == 0
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert [row[:5] for row in found] == [[str(r), str(r), "2", "2", "127.0.0.1"] for r in range(2)]
    assert found[0][5] == found[1][5] and int(found[0][5]) > 1023


def test_what_rank_0_told_is_not_told_again(capfd):
    said = io.StringIO()
    assert run_ranks(script("print('guie-train: seed: no', file=sys.stderr); sys.exit(2)"), 2, said) == 2
    assert said.getvalue() == "" and capfd.readouterr().err == "guie-train: seed: no\n"


def test_a_rank_that_failed_first_is_heard_and_its_code_is_the_runs(capfd):
    said = io.StringIO()
    work = "if rank: print('no memory', file=sys.stderr); sys.exit(7)\ntime.sleep(1); sys.exit(1)"
    assert run_ranks(script(work), 2, said) == 7
    assert said.getvalue() == "rank 1 ended first, with exit code 7\nno memory\n"
    assert capfd.readouterr().err == ""


def test_ranks_that_hang_after_another_was_killed_are_ended(monkeypatch):
    monkeypatch.setattr(launch, "GRACE_S", 0.2)
    said = io.StringIO()
    assert run_ranks(script("os.kill(os.getpid(), 9) if rank else time.sleep(600)"), 2, said) == 137
    assert said.getvalue() == "rank 1 ended first, with signal 9\n"


SAVES = """
import signal
def stop(number, frame):
    open(rf'{folder}/saved{{rank}}', 'a').write('x')
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGINT, stop)
open(rf'{folder}/ready{{rank}}', 'w')
time.sleep(600)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_every_rank_once_and_the_exit_code_says_which(tmp_path, number, code):
    words = script(SAVES.format(folder=tmp_path))
    text = f"import sys\nfrom guie.launch import run_ranks\nsys.exit(run_ranks({words!r}, 2))"
    outer = subprocess.Popen([sys.executable, "-c", text], start_new_session=True)
    try:
        begun = time.monotonic()
        while len(list(tmp_path.glob("ready?"))) < 2 and time.monotonic() - begun < 60:
            time.sleep(0.02)
        os.kill(outer.pid, number)
        assert outer.wait(60) == code
    finally:
        outer.kill()
    assert [(tmp_path / f"saved{rank}").read_text() for rank in range(2)] == ["x", "x"]
