"""Two processes that only know what srun told them find each other."""

import os

import torch
from ranks import fork, logs, wait

from guie.launch import free_port
from guie.train.distributed import world


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
