"""A run that a run teaches, resumed after its teacher has gone on."""

import shutil
from dataclasses import replace

import pytest
from commands import TINY, run

from guie import checkpoint
from guie.errors import UserError


def test_a_run_goes_on_with_the_teacher_it_began_with_and_with_no_other(tiny_run, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_run.folder, teacher)
    chosen = [*TINY, "head=distill_run", f"data_root={tiny_run.data}", f"run_dir={tmp_path / 'student'}"]
    chosen += ["trainer.refit_shrinkage=0", "trainer.eval_every=0", "resume=auto"]
    assert run("train", *chosen, f"head.teacher.path={teacher}", "trainer.epochs=1") == 0

    first = checkpoint.locate(teacher, "last")
    state = checkpoint.read(first)
    meta = {**state.meta, "space_id": "0123456789abcdef"}
    checkpoint.Store(teacher / "checkpoints").save(replace(state, step=state.step + 1, meta=meta))
    said = (
        rf"head\.teacher\.path: {teacher}.* has space id 0123456789abcdef, this run was taught by \w{{16}}; "
    )
    with pytest.raises(UserError, match=said):
        run("train", *chosen, f"head.teacher.path={teacher}", "trainer.epochs=2")
    assert run("train", *chosen, f"head.teacher.path={first}", "trainer.epochs=2") == 0
    epochs = checkpoint.steps(tmp_path / "student" / "checkpoints")
    assert [checkpoint.step_of(folder) for folder in epochs] == [4, 8]
