import multiprocessing
import os
import signal
import time

import pytest

from guie.datasets.once import made_once


def fill(folder, pause_s=0.0, mark="x"):
    (folder / "first").write_text(mark)
    time.sleep(pause_s)
    (folder / "last").write_text(mark)


def test_a_folder_is_made_once(tmp_path):
    made_once(tmp_path / "f", "last", fill)
    made_once(tmp_path / "f", "last", lambda folder: fill(folder, mark="y"))
    assert (tmp_path / "f" / "last").read_text() == "x"


def test_an_error_while_making_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "first").write_text("x")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        made_once(tmp_path / "f", "last", fail)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def make(place, pause_s, mark):
    made_once(place, "last", lambda folder: fill(folder, pause_s, mark))


def test_what_a_killed_maker_left_is_replaced(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=make, args=(tmp_path / "f", 60.0, "killed"))
    process.start()
    while not list(tmp_path.glob(".f.partial/first")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    make(tmp_path / "f", 0.0, "whole")
    assert (tmp_path / "f" / "first").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["f"]


def test_a_second_process_waits_for_the_first(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=make, args=(tmp_path / "f", 1.0, "first"))
    process.start()
    while not list(tmp_path.glob(".f.partial/first")):
        time.sleep(0.02)
    make(tmp_path / "f", 0.0, "second")
    process.join()
    assert process.exitcode == 0 and (tmp_path / "f" / "last").read_text() == "first"
