"""Train, evaluate, export on drawn pictures: the files, and that the three agree on the numbers."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from commands import TOY, loaded, metrics, run, sha256

from guie import assembly, checkpoint, embeddings
from guie.config.compose import composed
from guie.errors import UserError
from guie.images import decode
from guie.runfolder import flat

TOLERANCE = 1e-5


def test_a_run_leaves_the_files_that_the_design_names(tiny_run):
    assert tiny_run.code == 0
    names = {path.name for path in tiny_run.folder.iterdir()}
    expected = ["config.yaml", "labels.parquet", "checkpoints", "metrics.jsonl", "metrics.json", "log.txt"]
    assert names >= {*expected, "report.html"}
    assert json.loads((tiny_run.folder / "run.json").read_text())["state"] == "finished"
    assert not (tiny_run.folder / "run.lock").exists()


def test_metrics_json_has_the_shape_of_the_contract(tiny_run):
    found = metrics(tiny_run.folder)
    assert found["seed"] == 0
    assert re.fullmatch(r"[0-9a-f]{16,}", found["space_id"])
    assert set(found["floors"]) == {"colour_histogram", "raw_pixels", "backbone"}
    for numbers in [found["trained"], *found["floors"].values()]:
        assert set(numbers) == {"toy", "merged"}
        assert len(numbers["toy"]["domains"]) == 6
        for part in [*numbers.values(), *numbers["toy"]["domains"].values()]:
            assert 0 <= part["mP@5"] <= 1 and 0 <= part["R@1"] <= 1


def test_the_loss_and_the_evaluations_are_in_metrics_jsonl(tiny_run):
    lines = [json.loads(line) for line in (tiny_run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "mP@5" in line] == [4, 8]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert lines[-1]["mP@5"] == metrics(tiny_run.folder)["trained"]["merged"]["mP@5"]


FETCH = re.compile(
    r"""(?:src|href|action|srcset)\s*=\s*["']?\s*(?!data:|\#)[^"'>\s]|@import|url\((?!["']?data:|\#)"""
)


def test_the_report_needs_no_other_file_and_no_network(tiny_run):
    page = (tiny_run.folder / "report.html").read_text()
    assert "data:image/" in page
    assert not FETCH.findall(page)
    assert FETCH.findall('<img src="https://x/y.png">') and FETCH.findall("url(fonts/a.woff)")


def test_every_file_of_a_checkpoint_has_its_hash_in_the_manifest(tiny_run):
    for folder in (tiny_run.folder / "checkpoints").glob("step_*"):
        listed = json.loads((folder / "manifest.json").read_text())["files"]
        assert {path.name for path in folder.iterdir()} == {*listed, "manifest.json"}
        assert "embedder.safetensors" in listed
        for name, facts in listed.items():
            assert sha256(folder / name) == facts["sha256"]


def test_the_config_keeps_its_order_in_a_checkpoint(tiny_run):
    """The order of data sets and of augmentations is part of what they mean."""
    saved = checkpoint.read(checkpoint.locate(tiny_run.folder, "last"), parts=()).meta["config"]
    asked = yaml.safe_load((tiny_run.folder / "config.yaml").read_text())
    assert list(flat(saved)) == list(flat(asked))
    assert list(flat(saved)) != sorted(flat(saved))


def test_a_flipped_bit_in_the_weights_is_refused_and_the_earlier_checkpoint_offered(tiny_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run.folder, copy)
    path = copy / "checkpoints" / "step_000008" / "embedder.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"step_000008.*embedder\.safetensors.*step_000004"):
        run("eval", f"ckpt={copy}", f"out={tmp_path / 'out'}", f"data_root={tiny_run.data}")


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    assert (
        run("eval", f"ckpt={tiny_run.folder}", f"out={out}", f"data_root={tiny_run.data}", "threads=1") == 0
    )
    return out


def test_evaluating_the_run_again_gives_the_same_numbers(tiny_run, evaluated):
    first, again = metrics(tiny_run.folder), metrics(evaluated)
    for key in ("trained", "floors", "space_id"):
        assert again[key] == first[key]
    assert (evaluated / "report.html").exists()


WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'torchvision', 'timm', 'open_clip', 'albumentations'}:
            raise SystemExit(f'{name} was imported')
sys.meta_path.insert(0, Block())
from guie.cli import eval
sys.argv[0] = 'guie-eval'
eval.main()
"""


def without_torch(*arguments, code=WITHOUT_TORCH):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_saved_embeddings_are_evaluated_without_torch_to_the_same_numbers(tiny_run, tmp_path):
    done = without_torch(f"embeddings={tiny_run.folder / 'embeddings'}", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path)["trained"] == metrics(tiny_run.folder)["trained"]
    assert metrics(tmp_path)["space_id"] == metrics(tiny_run.folder)["space_id"]


def test_the_block_of_torch_can_fail(tiny_run, tmp_path):
    done = without_torch(f"ckpt={tiny_run.folder}", f"out={tmp_path}")
    assert "torch was imported" in done.stderr


def test_the_exported_file_gives_the_embeddings_of_the_evaluation(tiny_run, tmp_path, capsys):
    assert run("export", f"ckpt={tiny_run.folder}", f"pt={tmp_path / 'model.pt'}") == 0
    assert "verified in a fresh process" in capsys.readouterr().out
    exported = loaded(tmp_path / "model.pt")
    found = embeddings.load(tiny_run.folder / "embeddings" / "toy")
    root = assembly.manifests(composed("train", TOY)["eval_on"], str(tiny_run.data))["toy"].root
    for file, vector in list(zip(found.files, found.vectors, strict=True))[::5]:
        picture = decode((root / file).read_bytes())
        given = exported(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])[0].detach().numpy()
        assert np.abs(given - vector).max() < TOLERANCE
    assert np.abs(found.vectors[0] - found.vectors[5]).max() > 100 * TOLERANCE  # the comparison can fail
