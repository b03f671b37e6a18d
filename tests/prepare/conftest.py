import logging

import pytest
from miniature import faulty_sop

from guie.cli import prepare
from guie.config.compose import composed
from guie.prepare import shards


@pytest.fixture
def raw(tmp_path):
    """Return the miniature with its faults."""
    return faulty_sop(tmp_path / "raw")


@pytest.fixture
def prepared(tmp_path):
    """Return a call that runs guie-prepare on its checked config and gives the folder."""
    log = logging.getLogger("guie")
    before = (list(log.handlers), log.level, log.propagate)

    def run(*overrides, out="out"):
        places = [f"out={tmp_path / out}", f"data_root={tmp_path / 'data'}"]
        prepare.run(composed("prepare", [*places, "workers=1", *map(str, overrides)]))
        return tmp_path / out

    yield run
    log.handlers, log.level, log.propagate = before


@pytest.fixture
def read(monkeypatch):
    """Return the list of the pictures that are read from now on, in shards of three."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 3)
    files = []
    whole = shards.measure_shard

    def counted(task, pictures):
        files.extend(file for file, _ in task.places)
        return whole(task, pictures)

    monkeypatch.setattr(shards, "measure_shard", counted)
    return files
