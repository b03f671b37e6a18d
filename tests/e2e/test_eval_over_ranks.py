"""guie-eval by two processes is guie-eval by one: the same rankings, the same metrics.json."""

import json
import os
import socket

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import run
from PIL import Image
from ranks import fork, logs, wait

TEST_ROWS, BATCH = 37, 8  # 37 is divided by neither ranks nor batch


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """Return a data root with a miniature of SOP: 10 things of one kind each, seen 3 or 4 times."""
    place = tmp_path_factory.mktemp("root") / "Stanford_Online_Products"
    r = np.random.default_rng(0)
    things = r.integers(0, 256, (14, 6, 6, 3), dtype=np.uint8)
    listed = {"train": [], "test": []}
    for row in range(TEST_ROWS + 9):
        thing = 4 + row % 10 if row < TEST_ROWS else row % 3
        file = f"bicycle_final/{thing}_{row}.JPG"
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        noisy = np.clip(things[thing] + r.normal(0, 40, (6, 6, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).resize((48, 40), Image.Resampling.NEAREST).save(place / file)
        listed["test" if row < TEST_ROWS else "train"].append(f"{row + 1} {thing + 1} 1 {file}")
    for split, rows in listed.items():
        header = "image_id class_id super_class_id path"
        (place / f"Ebay_{split}.txt").write_text("\n".join([header, *rows]) + "\n")
    return place.parent


def evaluated(words, folder, ranks):
    """Run guie-eval in `ranks` forked processes as torchrun would start them, writing to `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank):
        def work():
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            raise SystemExit(run("eval", *words, f"out={folder}"))

        return work

    folder.mkdir()
    pids = [fork(one(rank), folder / f"rank{rank}.log") for rank in range(ranks)]
    assert [wait(pid) for pid in pids] == [0] * ranks, logs(folder)
    return json.loads((folder / "metrics.json").read_text()), pq.read_table(folder / "queries.parquet")


def test_two_processes_give_the_numbers_and_rankings_of_one(tiny_run, miniature, tmp_path):
    words = [f"ckpt={tiny_run.folder}", "dataset=sop", f"data_root={miniature}", f"batch_size={BATCH}"]
    words += ["device=cpu", "threads=1", "memory_mib=1"]
    (alone, rows), (together, same_rows) = (evaluated(words, tmp_path / f"{n}", n) for n in (1, 2))
    assert alone["trained"]["sop"]["queries"] == TEST_ROWS
    assert 0.1 < alone["trained"]["sop"]["R@1"] < 1  # not a case where any ranking would do
    assert together.pop("search") == {**alone.pop("search"), "ranks": 2}
    assert together == alone
    assert same_rows.equals(rows)


def test_two_processes_average_models_and_fit_steps_behind_them_as_one_does(tiny_run, miniature, tmp_path):
    both = f"ckpt={{a:'{tiny_run.folder}',b:'{tiny_run.folder}'}}"
    words = [both, "weights={a:2}", "combine=average", "dataset=sop", "dataset@bank=sop", "postprocess=[pca]"]
    words += ["postprocess.pca.dim=4", f"data_root={miniature}", f"batch_size={BATCH}", "device=cpu"]
    (alone, rows), (together, same_rows) = (evaluated(words, tmp_path / f"{n}", n) for n in (1, 2))
    assert together.pop("search") == {**alone.pop("search"), "ranks": 2}
    for step in [*alone["steps"], *together["steps"]]:
        del step["seconds"]
    assert together == alone and alone["combine"] == "average"
    assert same_rows.equals(rows)
    kept = [tmp_path / f"{n}" / "postprocess" / "postprocess.safetensors" for n in (1, 2)]
    assert kept[0].read_bytes() == kept[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "2").glob(".*")) == []
