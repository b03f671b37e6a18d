"""A Hugging Face folder in the place of a run: evaluated to the same numbers, trained on, averaged."""

import hashlib
import json
import logging
import shutil

import pytest
from commands import TINY, metrics, run

from guie import checkpoint, souping
from guie.errors import UserError
from guie.publishing import story


@pytest.fixture(scope="module")
def published(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    assert run("export", f"ckpt={tiny_run.folder}", f"huggingface={folder}") == 0
    return folder


def test_it_is_evaluated_as_the_run_was_and_stays_as_it_is(tiny_run, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in published.iterdir()}
    words = [f"data_root={tiny_run.data}", "threads=1", "floors=false"]
    assert run("eval", f"ckpt={published}", *words) == 0
    found = metrics(tmp_path / "runs" / "eval-tiny" / "eval" / "tiny-toy")
    expected = metrics(tiny_run.folder)
    assert found["trained"] == expected["trained"] and found["space_id"] == expected["space_id"]
    assert {path: path.stat().st_mtime_ns for path in published.iterdir()} == before


def test_foreign_code_as_its_data_or_protocol_is_refused(tiny_run, published, tmp_path):
    for key, target in (("eval_on", "guie.train.hooks.NoTracker"), ("protocol", "guie.local.images.Images")):
        shutil.copytree(published, tmp_path / key)
        told = json.loads((tmp_path / key / "config.json").read_text())
        told["config"][key] = {"toy": {"_target_": target}}
        data = json.dumps(told).encode()
        (tmp_path / key / "config.json").write_bytes(data)
        manifest = json.loads((tmp_path / key / "manifest.json").read_bytes())
        manifest["files"]["config.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (tmp_path / key / "manifest.json").write_text(json.dumps(manifest, separators=(",", ":")))
        with pytest.raises(UserError, match=rf"^{key}\.toy: _target_ '{target}'; accepted: guie\."):
            run("eval", f"ckpt={tmp_path / key}", f"data_root={tiny_run.data}", "floors=false")


def test_a_run_starts_from_its_embedder_with_a_head_of_its_own(tiny_run, published, tmp_path, caplog):
    words = [*TINY, f"data_root={tiny_run.data}", f"run_dir={tmp_path / 'next'}", f"ckpt={published}"]
    with caplog.at_level(logging.INFO, "guie"):
        assert run("train", *words, "trainer.max_steps=1", "eval_cap=10", "optim.lr=0") == 0
    text = (tmp_path / "next" / "log.txt").read_text()
    assert f"head: begins anew, no head with a labels.parquet in {published}" in text
    one, other = checkpoint.read(published).weights, checkpoint.read(tmp_path / "next").parts["embedder"]
    name = "neck.linear.weight"
    assert one[name].equal(other[name])


def test_it_is_averaged_with_runs_of_its_architecture(tiny_run, published):
    states = [souping._read(str(place)) for place in (tiny_run.folder, published)]
    souping.refuse_differing("run", states[0], "hub", states[1])
    assert not souping._is_refitted(str(published))


def test_its_card_holds_the_numbers_of_the_run(tiny_run, published):
    value = metrics(tiny_run.folder)["trained"]["toy"]["mP@5"]
    assert f"| toy | mP@5 | {value:.4f} |" in (published / "README.md").read_text()
    told = json.loads((published / "config.json").read_text())
    assert not story.OF_THE_MACHINE & told["config"].keys()
