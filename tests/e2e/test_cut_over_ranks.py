"""guie-train under torchrun with every weight cut over two processes: the run that DDP is."""

import subprocess
import sys

import pytest
import torch
from commands import TINY, metrics, run

from guie import assembly, checkpoint
from guie.embed.space import space_id

TOWER = [
    "backbone=vit_small",
    "backbone.name=vit_tiny_patch16_224",
    "backbone.pretrained=false",
    "backbone.image_px=32",
    "backbone.checkpointing=true",
    "pool=cls",
    "optim=sgd",  # Adam blows up the rounding of what has no gradient, a bias before a norm
    "optim.lr=0.01",
    "trainer.clip_norm=1",
    "trainer.ema_decay=0.9",
    "augment=none",
    "hw.precision=fp32",
    "device=cpu",
]


def torchrun(*words):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*start, "-m", "guie.cli.train", *words], capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tower_cut_over_two_processes_trains_evaluates_and_is_continued_by_one(tmp_path, drawn):
    for shard in ("fsdp", "none"):
        words = [*TINY, *TOWER, f"data_root={drawn}", f"run_dir={tmp_path / shard}", f"hw.shard={shard}"]
        said = torchrun(*words)
        assert said.stdout.count("checkpoint  ") == 1 and "FSDP2" not in said.stderr
    cut, whole = (checkpoint.read(tmp_path / shard, "last") for shard in ("fsdp", "none"))
    for part in ("embedder", "ema", "head"):
        for name, value in whole.parts[part].items():
            torch.testing.assert_close(cut.parts[part][name], value, rtol=1e-3, atol=1e-4)
    embedder, meta = assembly.trained_embedder(tmp_path / "fsdp")
    assert space_id(embedder) == meta["space_id"]
    assert (
        run("eval", f"ckpt={tmp_path / 'fsdp'}", f"data_root={drawn}", "device=cpu", f"out={tmp_path / 'e'}")
        == 0
    )
    assert metrics(tmp_path / "e")["trained"] == metrics(tmp_path / "fsdp")["trained"]

    further = ["hw.shard=none", "trainer.epochs=3", "resume=auto", f"run_dir={tmp_path / 'fsdp'}"]
    assert run("train", *TINY, *TOWER, f"data_root={drawn}", *further) == 0  # by one process
    assert checkpoint.read(tmp_path / "fsdp", "last").step > cut.step
