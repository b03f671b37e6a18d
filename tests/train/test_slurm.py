"""Two processes that only know what srun told them find each other, each with its GPU."""

import os

import pytest
import torch
from ranks import fork, logs, wait

from guie.errors import UserError
from guie.launch import free_port
from guie.train.distributed import _gpu_of, world


def test_two_tasks_of_srun_join_by_slurms_variables_alone(tmp_path):
    port = free_port()

    def task(rank):
        def work():
            os.environ.update(SLURM_PROCID=str(rank), SLURM_NTASKS="2", SLURM_LOCALID=str(rank))
            os.environ.update(SLURM_STEP_NODELIST="127.0.0.1", SLURM_JOB_ID="7", SLURM_STEP_ID="0")
            os.environ.update(MASTER_PORT=str(port))
            with world("cpu", timeout_s=60) as here:
                assert (here.rank, here.size) == (rank, 2)
                assert here.mean(torch.tensor([float(rank)])).item() == 0.5
                assert here.gather(rank) == [0, 1]

        return work

    pids = [fork(task(rank), tmp_path / f"rank{rank}.log") for rank in range(2)]
    assert [wait(pid) for pid in pids] == [0, 0], logs(tmp_path)


@pytest.mark.parametrize(("local_rank", "visible", "gpu"), [(0, 1, 0), (3, 1, 0), (0, 4, 0), (3, 4, 3)])
def test_a_process_takes_the_gpu_of_its_local_rank_or_the_only_one_it_sees(
    monkeypatch, local_rank, visible, gpu
):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert _gpu_of(local_rank, visible) == gpu


@pytest.mark.parametrize(("mates", "local_rank", "visible", "num"), [("2", 0, 1, 2), ("1", 4, 4, 5)])
def test_more_processes_than_gpus_on_a_machine_are_refused(monkeypatch, mates, local_rank, visible, num):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", mates)
    with pytest.raises(
        UserError, match=f"launch: {num} processes on a machine with {visible} GPUs; accepted"
    ):
        _gpu_of(local_rank, visible)
