"""guie-embed from its command line to files: by one model or two, killed and taken up, refused."""

import os
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import CLI, TINY, console, run
from filelock import FileLock
from PIL import Image
from ranks import fork, wait

from guie import assembly, checkpoint, embedding, embeddings
from guie.checkpoint import State
from guie.cli import embed as command
from guie.config.compose import composed
from guie.datasets.manifest import from_columns
from guie.embed.reading import Reader
from guie.embed.space import space_id
from guie.embed.vectors import embed
from guie.errors import UserError
from guie.launch import free_port
from guie.views import Views


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder of 13 pictures of splits query and index, named as the challenge names them."""
    root, draw = tmp_path_factory.mktemp("raw") / "set", np.random.default_rng(0)
    for i in range(13):
        name = f"query/{i % 3}/Q{i:05d}.png" if i < 5 else f"index/{i % 3}/R{i:06d}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 30 + i, 3), dtype=np.uint8)).save(root / name)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory, data):
    """Return two models as runs save them, by name; a is wider than b."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name, seed, dim in (("a", 0, 8), ("b", 1, 6)):
        cfg = composed("train", [*TINY, f"seed={seed}", "neck=linear", f"neck.embed_dim={dim}"])
        made = assembly.embedder(cfg).eval()
        meta = {"config": cfg, "preprocess": asdict(made.preprocess), "space_id": space_id(made)}
        state = State(1, {"embedder": made.state_dict()}, {}, meta)
        checkpoint.Store(folder / name / "checkpoints").save(state)
        found[name] = folder / name
    return found


@pytest.fixture
def words(data, monkeypatch, tmp_path):
    monkeypatch.setitem(CLI, "embed", command)
    monkeypatch.chdir(tmp_path)
    pictures = ["dataset=folder", f"dataset.folder.root={data}"]
    return [*pictures, "device=cpu", "batch_size=2", "threads=1"]


@pytest.fixture(autouse=True)
def one_thread():
    """Compute on one thread, as a forked child does: another number of threads rounds otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vectors_of(path, data, **options):
    manifest = assembly.manifests(
        {"folder": {"_target_": "guie.datasets.folder.folder", "root": str(data)}}, "."
    )
    made, _ = assembly.trained_embedder(path)
    return embed(made, manifest["folder"], Reader(batch_size=2, threads=1, **options))


def contents(place):
    return {path.name: path.read_bytes() for path in sorted(place.iterdir()) if path.name != "meta.json"}


def test_vectors_go_where_guie_eval_takes_them(words, models, data, tmp_path):
    formats = "formats=[npy,fvecs,isc,e0]"
    assert run("embed", *words, f"ckpt={models['a']}", "out=made", formats, "views=flip") == 0
    found = embeddings.load(tmp_path / "made" / "folder")
    expected = vectors_of(models["a"], data, views=Views(flip=True))
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    assert found.space_id == expected.space_id
    assert found.files.tolist() == expected.files.tolist() and set(found.splits) == {"query", "index"}
    ids = np.load(tmp_path / "made" / "folder" / "ids.npy").tolist()
    assert ids == [Path(file).stem for file in found.files]
    with h5py.File(tmp_path / "made" / "folder" / "isc.h5") as file:
        assert [name.decode() for name in file["query_ids"]] == [name for name in ids if name[0] == "Q"]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["folder", "log.txt"]
    assert "13 vectors of 8 numbers" in (tmp_path / "made" / "log.txt").read_text()
    assert run("eval", "embeddings=made", "out=evaluated") == 0
    assert (tmp_path / "evaluated" / "report.html").exists()


def test_two_models_stand_side_by_side_by_weight_in_a_space_of_their_own(words, models, data, tmp_path):
    both = f"ckpt={{a:'{models['a']}',b:'{models['b']}'}}"
    spaces = set()
    for out, more in (("x", ["weights={a:0.6,b:0.2}"]), ("y", []), ("z", ["views=flip"])):
        assert run("embed", *words, both, f"out={out}", *more) == 0
        spaces.add(embeddings.load(tmp_path / out / "folder").space_id)
    parts = {name: vectors_of(path, data).vectors.astype(np.float64) for name, path in models.items()}
    whole = np.concatenate([0.6 * parts["a"], 0.2 * parts["b"]], axis=1)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings.load(tmp_path / "x" / "folder").vectors, whole, atol=1e-6)
    spaces |= {vectors_of(path, data).space_id for path in models.values()}
    assert len(spaces) == 5
    assert run("embed", *words, f"ckpt={models['a']}", "out=first", "keep=3") == 0
    first = embeddings.load(tmp_path / "first" / "folder")
    cut = parts["a"][:, :3] / np.linalg.norm(parts["a"][:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(first.vectors, cut, atol=1e-6)
    assert first.space_id not in spaces


def killed_when(monkeypatch, done, model="a", rank=0):
    """Make the process of `rank` kill itself when it has told so many rows of `model`."""

    class Deadly:
        def __call__(self, what, at, total):
            if what.endswith(f"by {model}") and at == done and os.environ.get("RANK", "0") == str(rank):
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("guie.cli.console.Notices", Deadly)


def test_killed_in_the_second_model_it_goes_on_to_the_same_bytes(words, models, monkeypatch, tmp_path):
    both = [f"ckpt={{a:'{models['a']}',b:'{models['b']}'}}", "formats=[fvecs,isc,e0]", "views=five_crop"]
    assert run("embed", *words, *both, "out=straight") == 0
    with monkeypatch.context() as patch:
        killed_when(patch, 8, "b")
        pid = fork(lambda: run("embed", *words, *both, "out=killed"), tmp_path / "log")
        assert wait(pid) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (tmp_path / "killed" / "folder").exists()
    told = []

    class Told:
        def __call__(self, what, done, total):
            told.append((what, done))

    monkeypatch.setattr("guie.cli.console.Notices", Told)
    assert run("embed", *words, *both, "out=killed") == 0
    assert told == [("embedding folder by b", done) for done in (10, 12, 13)]
    assert contents(tmp_path / "killed" / "folder") == contents(tmp_path / "straight" / "folder")
    assert not (tmp_path / "killed" / ".work").exists()


def test_two_processes_of_which_one_is_killed_leave_the_same_bytes(words, models, monkeypatch, tmp_path):
    both = [f"ckpt={{a:'{models['a']}',b:'{models['b']}'}}", "formats=[fvecs,isc]"]
    assert run("embed", *words, *both, "out=straight") == 0

    def start(rank, port):
        def work():
            os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            torch.set_num_threads(1)
            if code := run("embed", *words, *both, "out=shared"):
                raise SystemExit(code)

        return fork(work, tmp_path / f"log{rank}")

    with monkeypatch.context() as patch:
        killed_when(patch, 4, "b", rank=1)
        port = free_port()
        codes = [wait(pid) for pid in [start(rank, port) for rank in (0, 1)]]
        assert codes[1] == -signal.SIGKILL and codes[0] != 0, (tmp_path / "log1").read_text()
    port = free_port()
    codes = [wait(pid) for pid in [start(rank, port) for rank in (0, 1)]]
    assert codes == [0, 0], (tmp_path / "log0").read_text() + (tmp_path / "log1").read_text()
    assert contents(tmp_path / "shared" / "folder") == contents(tmp_path / "straight" / "folder")
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["folder", "log.txt"]


def test_what_is_done_is_passed_over_what_differs_refused_or_replaced(words, models, monkeypatch, tmp_path):
    assert run("embed", *words, f"ckpt={models['a']}", "out=made") == 0
    before = contents(tmp_path / "made" / "folder")
    with monkeypatch.context() as patch:
        patch.setattr("guie.embedding.vectors_file", None)  # calling it would fail
        assert run("embed", *words, f"ckpt={models['a']}", "out=made") == 0
    for changed, key in ((f"ckpt={models['b']}", "model."), ("split=query", "rows"), ("views=flip", "views")):
        with pytest.raises(UserError, match=rf"out: made/folder holds embeddings of another job \({key}"):
            run("embed", *words, f"ckpt={models['a']}", "out=made", changed)
    assert contents(tmp_path / "made" / "folder") == before
    assert run("embed", *words, f"ckpt={models['a']}", "out=made", "split=query", "overwrite=true") == 0
    assert len(embeddings.load(tmp_path / "made" / "folder").vectors) == 5
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["folder", "log.txt"]


def test_queries_are_cropped_as_their_data_sets_protocol_says(monkeypatch, tmp_path):
    columns = {"file": ["q.png", "i.png"], "label": ["a", "a"], "split": ["query", "index"]}
    rows = from_columns("roxford5k", tmp_path, columns | {"box": ["1,2,3,4", "5,6,7,8"]})
    monkeypatch.setattr("guie.assembly.manifests", lambda *_: {"roxford5k": rows, "mine": rows})
    found = embedding.chosen_rows({"dataset": {}, "data_root": ".", "split": None})
    assert [found["roxford5k"].crop(row) for row in (0, 1)] == [(1, 2, 3, 4), None]
    assert found["mine"].crop(0) is None
    assert found["roxford5k"].fingerprint() != found["mine"].fingerprint()


def test_other_files_are_never_replaced_and_two_writers_are_one_too_many(words, models, tmp_path):
    (tmp_path / "mine" / "folder").mkdir(parents=True)
    (tmp_path / "mine" / "folder" / "thesis.txt").write_text("long")
    with pytest.raises(
        UserError, match=r"out: mine/folder does not hold embeddings; accepted: a folder that"
    ):
        run("embed", *words, f"ckpt={models['a']}", "out=mine", "overwrite=true")
    assert (tmp_path / "mine" / "folder" / "thesis.txt").read_text() == "long"
    (tmp_path / "used" / ".work").mkdir(parents=True)

    def hold():
        with FileLock(tmp_path / "used" / ".work" / "lock"):
            (tmp_path / "holding").touch()
            signal.pause()

    pid = fork(hold, tmp_path / "log")
    while not (tmp_path / "holding").exists():
        time.sleep(0.01)
    try:
        with pytest.raises(UserError, match="out: used is in use by another process; accepted: another"):
            run("embed", *words, f"ckpt={models['a']}", "out=used")
    finally:
        os.kill(pid, signal.SIGTERM)
        wait(pid)


def test_ctrl_c_says_how_to_go_on_and_keeps_what_is_done(words, models, monkeypatch, capsys, tmp_path):
    class Stopped:
        def __call__(self, what, done, total):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("guie.cli.console.Notices", Stopped)
        code, lines = console(patch, capsys, "embed", *words, f"ckpt={models['a']}", "out=made")
    assert code == 130
    assert lines == [
        "embedding 13 pictures of folder",
        "guie-embed: stopped; the same command goes on from here",
    ]
    assert len(list((tmp_path / "made" / ".work").rglob("0*.npy"))) == 1
    assert run("embed", *words, f"ckpt={models['a']}", "out=made") == 0


def test_bad_pictures_are_listed_beside_the_vectors(words, models, data, tmp_path):
    shutil.copytree(data, tmp_path / "raw")
    (tmp_path / "raw" / "query" / "0" / "Q00000.png").write_bytes(b"no picture")
    words = [word.replace(str(data), str(tmp_path / "raw")) for word in words]
    both = f"ckpt={{a:'{models['a']}',b:'{models['b']}'}}"
    assert run("embed", *words, both, "out=made", "max_bad_share=0.2") == 0
    found = embeddings.load(tmp_path / "made" / "folder")
    assert found.vectors.shape == (12, 14) and "query/0/Q00000.png" not in found.files
    assert len(np.load(tmp_path / "made" / "folder" / "ids.npy")) == 12
    listed = (tmp_path / "made" / "folder" / "bad_images.csv").read_text().splitlines()
    assert len(listed) == 2 and listed[1].startswith("query/0/Q00000.png")
    with pytest.raises(UserError, match=r"bad_images: 1 of 13 pictures"):
        run("embed", *words, both, "out=fails")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["out=x", "formats=hdf5"], "formats: 'hdf5'; accepted: npy, fvecs, isc, e0"),
        (["out=x", "ids=name"], "ids: 'name'; accepted: stem, file"),
        (["out=x", "precision=int8"], "precision: 'int8'; accepted: auto, native, fp32, bf16, fp16"),
        (["out=x", "batch_size=0"], "batch_size: 0; accepted: 1 or more"),
        (["out=x", "split=all"], "split: 'all'; accepted: train, val, test, query, index"),
        (["out=x", "split=val"], "split: val: no rows in folder; accepted: a split that it has"),
        (["out=x", "weights={a:1}"], "weights.a: there is no such model; accepted: with several models"),
        (["out=x", "combine=mean"], "combine: 'mean'; accepted: concat, average"),
        (["out=x", "ckpt=[a,b]"], "ckpt: ['a', 'b']; accepted: a run, or several by name as in ckpt={a:"),
        (["out=x", "ckpt={a:nowhere}"], "ckpt: nowhere holds no checkpoint; accepted: a run folder"),
        (["out=x", "view=flip"], "view: unknown key; did you mean 'views'?"),
        (["out=x", "views=mirror"], "views: there is no 'mirror'; accepted: classifier_tta, five_crop, flip"),
        (
            ["out=x", "views=flip", "views.summed=all"],
            "views.summed: 'all' is not known; accepted: unit",
        ),
        ([], "out: not given; accepted: a folder that is new"),
        (
            ["out=x", "ckpt=none", "backbone=smal"],
            "backbone: there is no 'smal'; accepted: clip",
        ),
    ],
)
def test_mistakes_are_one_line(words, models, monkeypatch, capsys, more, said):
    code, lines = console(monkeypatch, capsys, "embed", *words, f"ckpt={models['a']}", *more)
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith(f"guie-embed: {said}")
    assert not Path("x").exists()
