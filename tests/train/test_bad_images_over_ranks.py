"""Ranks that meet bad pictures of their own keep one list of all of them, and judge by it."""

import csv

import pytest
import torch.distributed as dist
from ranks import logs, run_ranks

from guie.data.augment import CropFlip
from guie.data.bad_images import BadImages
from guie.data.loader import sampler_facts, train_loader
from guie.data.sampling import Shuffled
from guie.datasets.manifest import from_columns
from guie.errors import UserError
from guie.types import Preprocess

NUM = 400


def manifest_of(folder, num=NUM):
    columns = {"file": [f"p{i:03d}.jpg" for i in range(num)], "label": [f"c{i // 4}" for i in range(num)]}
    return from_columns("spoiled", folder, columns)


def listed(path):
    with path.open(newline="") as file:
        return [(row["file"], row["reason"]) for row in csv.DictReader(file)]


def test_the_list_of_two_ranks_is_whole_sorted_and_names_each_once(tmp_path):
    path, rows = tmp_path / "run" / "bad.csv", manifest_of(tmp_path)

    def adds(world):
        bad = BadImages(rows, path, max_share=1.0)
        dist.barrier()
        for row in range(NUM // 2 if world.rank else 0, NUM, 2 - world.rank):
            bad.add(row, "two\nlines, and a comma")
        dist.barrier()
        assert len(BadImages(rows, path)) == NUM * 3 // 4

    assert run_ranks(2, adds, tmp_path / "ranks") == [0, 0], logs(tmp_path / "ranks")
    met = [i for i in range(NUM) if i >= NUM // 2 or i % 2 == 0]
    assert listed(path) == [(f"p{i:03d}.jpg", "two\nlines, and a comma") for i in met]


def test_the_limit_is_on_what_all_ranks_have_found(tmp_path):
    """Each rank meets 4 of 400, which is 1 %; together they are above 1.5 %, below 2 %."""
    rows = manifest_of(tmp_path)

    def adds(world):
        for limit, refused in ((0.02, False), (0.015, True)):
            bad = BadImages(rows, tmp_path / f"{limit}.csv", max_share=limit)
            for turn in range(4):
                for rank in range(2):
                    dist.barrier()
                    if rank != world.rank:
                        continue
                    if refused and (turn, rank) >= (3, 0):
                        with pytest.raises(UserError, match=rf"bad_images: {7 + rank} of 400 pictures"):
                            bad.add(2 * turn + rank, "cut short")
                    else:
                        bad.add(2 * turn + rank, "cut short")

    assert run_ranks(2, adds, tmp_path / "ranks") == [0, 0], logs(tmp_path / "ranks")


def test_an_epoch_of_two_ranks_lists_what_one_process_lists(tmp_path):
    rows, good = manifest_of(tmp_path, 32), (tmp_path / "good.png")
    write_picture(good)
    for i in range(32):
        data = b"" if i in (3, 8, 9, 21, 30) else good.read_bytes()
        (tmp_path / f"p{i:03d}.jpg").write_bytes(data)

    def epoch(name, rank=0, size=1):
        spec = Preprocess((16, 16))
        facts = {key: sampler_facts(rows)[key] for key in ("labels", "domains")}
        bad = BadImages(rows, tmp_path / name, max_share=0.5)
        loader = train_loader(
            rows,
            Shuffled(**facts, batch_size=8, seed=5),
            CropFlip(preprocess=spec),
            preprocess=spec,
            seed=5,
            cache_dir=tmp_path,
            bad_images=bad,
        )
        assert len(list(loader.batches(0, 4, rank, size))) == 4

    ranks = run_ranks(2, lambda world: epoch("two.csv", world.rank, 2), tmp_path / "ranks")
    assert ranks == [0, 0], logs(tmp_path / "ranks")
    epoch("one.csv")
    assert listed(tmp_path / "two.csv") == listed(tmp_path / "one.csv")
    assert [name for name, _ in listed(tmp_path / "one.csv")] == [f"p{i:03d}.jpg" for i in (3, 8, 9, 21, 30)]


def write_picture(path):
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").resize((24, 24)).save(path)
