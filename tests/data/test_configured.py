"""Every YAML of the groups that this package's classes stand behind is built and used once."""

import numpy as np
import pytest
import torch

from guie.build import build
from guie.config.compose import composed, directory
from guie.data.loader import sampler_facts, train_loader
from guie.types import Preprocess


def names(group):
    return sorted(path.stem for path in (directory() / group).glob("*.yaml"))


@pytest.mark.parametrize("name", names("augment"))
def test_every_augmentation_makes_batches_from_its_yaml(name, pictures, tmp_path):
    spec = Preprocess((16, 16))
    cfg = composed("train", [f"augment={name}"])
    augment = build(cfg["augment"], where="augment", preprocess=spec, num_steps=8, pictures=pictures)
    sampler = build(cfg["sampler"], where="sampler", **sampler_facts(pictures), batch_size=8, seed=0)
    loader = train_loader(pictures, sampler, augment, preprocess=spec, seed=0, cache_dir=tmp_path / "cache")
    batches = list(loader.batches(0, 2))
    assert len(batches) == 2 and batches[0].images.shape == (8, 3, 16, 16)
    assert batches[0].images.dtype in (torch.uint8, torch.float32) and batches[0].labels.dtype == torch.int64


@pytest.mark.parametrize("name", names("sampler"))
def test_every_sampler_makes_batches_from_its_yaml(name, pictures):
    cfg = composed("train", [f"sampler={name}"])
    sampler = build(cfg["sampler"], where="sampler", **sampler_facts(pictures), batch_size=8, seed=0)
    rows = np.concatenate([sampler.batch(step) for step in range(sampler.steps_per_epoch)])
    assert rows.dtype == np.int64 and len(rows) == 24 and len(set(rows.tolist())) > 15
