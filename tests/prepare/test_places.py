"""`raw` goes to the parameter that names a data set's raw files, whatever it is called there."""

import pytest

from guie.config.compose import composed, directory
from guie.config.schema import place_of

OTHERS = {"csv": "path", "tfrecord": "pattern", "tar": "pattern", "toy": None}
NAMES = sorted(path.stem for path in (directory() / "dataset").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_composes_and_knows_where_raw_goes(name):
    (node,) = composed("prepare", [f"dataset=[{name}]", "raw=x", "out=y"])["dataset"].values()
    assert place_of(node["_target_"]) == OTHERS.get(name, "root")
