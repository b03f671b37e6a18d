"""A prepared folder opens under the name and the settings it was prepared with."""

import json

import pytest

from guie import assembly
from guie.datasets.known import FACTS, MANIFEST, opened
from guie.datasets.manifest import from_columns
from guie.errors import UserError

SOP = "guie.datasets.sop.sop"
GLDV2 = "guie.datasets.glr.gldv2"


@pytest.fixture
def prepared(tmp_path):
    """A folder as guie-prepare leaves it."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jpg").write_bytes(b"a")
    (tmp_path / "out").mkdir()

    def write(**settings):
        rows = from_columns("x", tmp_path / "raw", {"file": ["a.jpg"], "label": ["1"]})
        rows.write(tmp_path / "out" / MANIFEST)
        facts = {"root": str(tmp_path / "raw"), "settings": {"root": str(tmp_path / "raw"), **settings}}
        (tmp_path / "out" / FACTS).write_text(json.dumps(facts))
        return str(tmp_path / "out")

    return write


def test_the_pictures_are_found_where_they_were_prepared_from(prepared, tmp_path):
    node = {"_target_": SOP, "root": prepared(_target_=SOP)}
    found = assembly.manifests({"sop": node}, str(tmp_path))["sop"]
    assert found.name == "sop" and found.read(0) == b"a"


def test_another_set_or_other_settings_are_refused(prepared, tmp_path):
    root = prepared(_target_=GLDV2, subset="v2c")
    with pytest.raises(UserError, match=r"prepared with subset=v2c; accepted by dataset\.gldv2: v2x"):
        node = {"_target_": GLDV2, "root": root, "subset": "v2x"}
        assembly.manifests({"gldv2": node}, str(tmp_path))
    with pytest.raises(UserError, match=r"prepared with _target_=guie\.datasets\.glr\.gldv2; accepted by"):
        assembly.manifests({"sop": {"_target_": SOP, "root": root}}, str(tmp_path))


def test_pictures_that_are_gone_are_said(prepared, tmp_path):
    root = prepared(_target_=SOP)
    (tmp_path / "raw" / "a.jpg").unlink()
    (tmp_path / "raw").rmdir()
    with pytest.raises(
        UserError, match=r"prepared\.json: root .*raw is gone; accepted: the pictures' folder"
    ):
        opened(tmp_path / "out", root)
