import errno
import json
import os
import pickle
import resource
import subprocess
from pathlib import Path

import pytest
import torch

from guie import checkpoint
from guie.checkpoint import State, Store
from guie.errors import UserError
from guie.types import Preprocess


def state(step=1, size=4):
    weight = torch.arange(size * size, dtype=torch.float32).reshape(size, size) + step
    optimizer = torch.optim.AdamW([torch.nn.Parameter(weight.clone())])
    optimizer.param_groups[0]["params"][0].grad = weight
    optimizer.step()
    training = {"optimizer": optimizer.state_dict(), "best": None, "numbers": [1, 2.5, float("inf")]}
    parts = {"embedder": {"w": weight.t(), "tied": weight.t()}, "head": {"scale": torch.tensor(3.0)}}
    return State(step, parts, training, {"config": {"seed": 1}})


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_what_was_saved_is_read_back_types_and_all(tmp_path):
    saved = state()
    read = checkpoint.read(checkpoint.save(tmp_path, saved))
    assert read.step == 1
    assert same(dict(saved.parts), dict(read.parts))
    assert same(saved.training, read.training)
    assert isinstance(read.training["optimizer"]["param_groups"][0]["betas"], tuple)
    assert read.meta == {"config": {"seed": 1}, "step": 1}


def test_no_file_is_a_pickle(tmp_path):
    folder = checkpoint.save(tmp_path, state())
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    for path in folder.glob("*.json"):
        json.loads(path.read_bytes())


@pytest.mark.parametrize("name", ["embedder.safetensors", "training.json", "meta.json", "manifest.json"])
def test_any_flipped_bit_is_refused_and_the_intact_checkpoint_offered(tmp_path, name):
    store = Store(tmp_path)
    store.save(state(1)), store.save(state(2))
    path = tmp_path / "step_000002" / name
    good = path.read_bytes()
    for place in {0, len(good) // 3, len(good) // 2, len(good) - 1}:
        for bit in (0, 6):
            path.write_bytes(good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :])
            with pytest.raises(UserError, match=r"step_000002: .* an intact one: .*step_000001"):
                checkpoint.read(tmp_path, "last")
    path.write_bytes(good)
    assert checkpoint.read(tmp_path, "last").step == 2


def test_a_cut_or_missing_file_is_refused_and_nothing_offered_where_nothing_is_left(tmp_path):
    folder = checkpoint.save(tmp_path, state())
    path = folder / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"head\.safetensors is damaged .* no other checkpoint"):
        checkpoint.verify(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"head\.safetensors cannot be read"):
        checkpoint.read(folder)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch PWNED",))


def test_a_malicious_pickle_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Evil())
    folder = checkpoint.save(tmp_path, state())
    (folder / "optimizer.pt").write_bytes(evil)  # beside the others: nobody opens it
    checkpoint.read(folder)
    listed = json.loads((folder / "manifest.json").read_bytes())
    listed["files"]["embedder.safetensors"]["sha256"] = checkpoint._sha256(evil)
    (folder / "embedder.safetensors").write_bytes(evil)  # in the place of one, with a manifest that fits
    (folder / "manifest.json").write_bytes(checkpoint._json_bytes(listed))
    with pytest.raises(UserError, match=r"embedder\.safetensors is no safetensors file"):
        checkpoint.read(folder)
    (tmp_path / "model.pt").write_bytes(evil)
    with pytest.raises(UserError, match=r"model\.pt is a file; accepted: a run folder"):
        checkpoint.read(tmp_path / "model.pt")
    assert not (tmp_path / "PWNED").exists()
    pickle.loads(evil)
    assert (tmp_path / "PWNED").exists()  # it would have


def test_a_manifest_cannot_point_outside(tmp_path):
    folder = checkpoint.save(tmp_path, state())
    listed = json.loads((folder / "manifest.json").read_bytes())
    listed["files"]["../x.safetensors"] = {"bytes": 1, "sha256": "0"}
    (folder / "manifest.json").write_bytes(checkpoint._json_bytes(listed))
    with pytest.raises(UserError, match="outside the checkpoint"):
        checkpoint.verify(folder)


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a file system of 256 KiB, else skip."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small tmpfs here (the next test limits the file size instead)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_checkpoint_loadable(small_disk):
    store = Store(small_disk)
    store.save(state(1, size=64))
    with pytest.raises(UserError, match=r"step 2 could not be saved \(No space left .*step_000001"):
        store.save(state(2, size=200))
    assert checkpoint.read(small_disk, "last").step == 1
    assert [path.name for path in small_disk.iterdir() if path.is_dir()] == ["step_000001"]


def test_a_limit_of_file_size_leaves_the_old_checkpoint_loadable(tmp_path):
    store = Store(tmp_path)
    store.save(state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            UserError, match=r"step 2 could not be saved \(File too large\); the last good .*_000001"
        ):
            store.save(state(2, size=100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.read(tmp_path, "last").step == 1


@pytest.mark.parametrize("fails_at", range(1, 12))
def test_an_error_at_any_write_leaves_a_checkpoint_that_loads(tmp_path, monkeypatch, fails_at):
    store = Store(tmp_path, keep=1)
    store.save(state(1), best={"score": 1.0})
    calls = 0
    real = os.fsync

    def failing(handle):
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(errno.EIO, "Input/output error")
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    try:
        store.save(state(2), best={"score": 2.0})
    except UserError:
        assert checkpoint.read(tmp_path, "last").step in (1, 2)
        assert not list(tmp_path.glob(".*"))
    else:
        assert calls < fails_at
    assert checkpoint.read(tmp_path, "best").step in (1, 2)


def test_old_checkpoints_go_but_the_best_and_the_last_stay(tmp_path):
    store = Store(tmp_path, keep=2)
    for step in range(1, 7):
        store.save(state(step), best={"score": 1.0} if step == 2 else None)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step_000002", "step_000005", "step_000006"]
    assert checkpoint.read(tmp_path, "best").step == 2
    assert json.loads((tmp_path / "best.json").read_bytes()) == {"checkpoint": "step_000002", "score": 1.0}


def test_a_step_can_be_saved_again(tmp_path):
    store = Store(tmp_path)
    store.save(state(1))
    store.save(State(1, {"embedder": {"w": torch.zeros(2)}}))
    assert checkpoint.read(tmp_path).weights["w"].shape == (2,)


def test_a_run_folder_a_checkpoints_folder_and_a_checkpoint_all_name_one(tmp_path):
    Store(tmp_path / "run" / "checkpoints").save(state(3))
    for path in ("run", "run/checkpoints", "run/checkpoints/step_000003"):
        assert checkpoint.read(tmp_path / path, parts=["embedder"]).parts.keys() == {"embedder"}
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.read(tmp_path)


def test_pointers_that_are_lost_or_wrong_fall_back_to_the_newest(tmp_path):
    Store(tmp_path).save(state(1)), Store(tmp_path).save(state(2))
    for content in (b"{", b'{"checkpoint": "../../etc"}', b'{"checkpoint": "step_000099"}'):
        (tmp_path / "last.json").write_bytes(content)
        assert checkpoint.locate(tmp_path, "last").name == "step_000002"


def test_the_space_id_changes_with_any_weight_name_or_preprocessing():
    weights = {"a": torch.zeros(3), "b": torch.tensor(1.5, dtype=torch.bfloat16)}
    first = checkpoint.space_id(weights, Preprocess())
    assert first == checkpoint.space_id(dict(reversed(weights.items())), Preprocess())
    others = [
        checkpoint.space_id(weights | {"a": torch.tensor([0.0, 0.0, -0.0])}, Preprocess()),
        checkpoint.space_id({"a": weights["a"], "c": weights["b"]}, Preprocess()),
        checkpoint.space_id(weights, Preprocess(size_px=(224, 225))),
        checkpoint.space_id(weights, Preprocess(), "whitened"),
    ]
    assert len({first, *others}) == 5


def test_state_of_a_kind_that_json_does_not_know_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="training state at /x: PosixPath"):
        checkpoint.save(tmp_path, State(1, {}, {"x": Path()}))
    assert not list(tmp_path.iterdir())
