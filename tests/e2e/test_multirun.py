import pytest
from commands import TINY, console

from guie.runfolder import read_config, start_state


@pytest.mark.slow
def test_a_sweep_makes_one_finished_run_per_job(monkeypatch, capsys, tmp_path, drawn):
    sweep = tmp_path / "sweep"
    arguments = ["--multirun", "seed=3,4", f"data_root={drawn}", f"hydra.sweep.dir={sweep}", *TINY]
    code, said = console(monkeypatch, capsys, "train", *arguments, "trainer.max_steps=2")
    assert code == 0, said
    assert [start_state(sweep / job) for job in ("0", "1")] == ["finished", "finished"]
    assert [read_config(sweep / job)["seed"] for job in ("0", "1")] == [3, 4]
