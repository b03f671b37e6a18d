"""Two ranks embed what one process embeds, to the last bit, also where one of them was killed."""

import os
import signal
import sys

import numpy as np
import pytest
from ranks import logs, run_ranks, start_ranks, wait

from guie.data.bad_images import BadImages
from guie.embed.reading import Job, Reader, looks
from guie.embed.shards import MOST_BATCHES, Shards, reasons, rows_each
from guie.embed.space import space_id
from guie.embed.vectors import embed, vectors_file
from guie.errors import UserError
from guie.train.distributed import World
from guie.views import Views

READER = Reader(batch_size=2, threads=1)


def embedded(embedder, manifest, out, world, **options):
    """Embed and leave what this rank got in `out`."""
    found = embed(embedder, manifest, options.pop("reader", READER), here=world, **options)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / f"{world.size}-{world.rank}.npz", vectors=found.vectors, files=found.files.astype(str))


def saved(out, size, rank):
    with np.load(out / f"{size}-{rank}.npz") as found:
        return found["vectors"], found["files"].tolist()


def ranks(size, work, folder):
    assert run_ranks(size, work, folder) == [0] * size, logs(folder)


@pytest.mark.parametrize("views", [None, Views(flip=True)], ids=["plain", "views"])
def test_every_rank_returns_all_rows_as_one_process_does(embedder, manifest, tmp_path, views):
    reader = READER._replace(views=views)
    for number, folder in enumerate((None, tmp_path / "work")):
        out = tmp_path / f"out{number}"
        for size in (1, 2, 3):
            ranks(
                size,
                lambda world, out=out, folder=folder: embedded(
                    embedder, manifest, out, world, folder=folder, reader=reader
                ),
                tmp_path / f"ranks{number}-{size}",
            )
        vectors, files = saved(out, 1, 0)
        assert vectors.shape == (11, 6) and files == [f"{i}.png" for i in range(11)]
        for size, rank in ((2, 0), (2, 1), (3, 0), (3, 2)):
            found = saved(out, size, rank)
            np.testing.assert_array_equal(found[0], vectors)
            assert found[1] == files
    assert not list((tmp_path / "work").iterdir())


def test_a_killed_rank_costs_its_last_shard_and_another_number_of_ranks_goes_on(embedder, manifest, tmp_path):
    work = tmp_path / "work"
    ranks(1, lambda world: embedded(embedder, manifest, tmp_path / "out", world), tmp_path / "a")

    def killed(world):
        def progress(done, total):
            if world.rank == 1 and done == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        embedded(embedder, manifest, tmp_path / "x", world, folder=work, progress=progress)

    pids = start_ranks(2, killed, tmp_path / "b")
    codes = [wait(pid) for pid in pids]
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    there = sorted(path.name for path in work.glob(".vectors-*/*.npy"))
    assert there == [f"{number:06d}.npy" for number in (0, 1, 2, 3, 4)]  # 5 of 6: rank 1 had one more to do
    counts = []
    found = embed(
        embedder, manifest, READER, folder=work, progress=lambda done, total: counts.append((done, total))
    )
    assert counts == [(11, 11)]
    np.testing.assert_array_equal(found.vectors, saved(tmp_path / "out", 1, 0)[0])
    assert not list(work.iterdir())


def test_bad_pictures_of_all_ranks_are_listed_by_the_first_and_judged_together(embedder, manifest, tmp_path):
    for row in (0, 3, 6):
        (tmp_path / f"{row}.png").write_bytes(b"")

    def run(world, share, name):
        listed = BadImages(manifest, tmp_path / name / "bad_images.csv", max_share=share)
        options = {"bad_images": listed, "folder": tmp_path / name}
        if share > 3 / 11:
            return embedded(embedder, manifest, tmp_path / name, world, **options)
        with pytest.raises(UserError, match=r"bad_images: 3 of 11 pictures"):
            embed(embedder, manifest, READER, here=world, **options)

    ranks(2, lambda world: run(world, 0.5, "all"), tmp_path / "a")
    lines = (tmp_path / "all" / "bad_images.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["file", "0.png", "3.png", "6.png"]
    for rank in (0, 1):
        vectors, files = saved(tmp_path / "all", 2, rank)
        assert files == [f"{i}.png" for i in range(11) if i not in (0, 3, 6)] and len(vectors) == 8
    ranks(2, lambda world: run(world, 2.5 / 11, "few"), tmp_path / "b")  # neither rank alone is above


def test_reasons_of_bad_pictures_outlive_the_process_that_found_them(embedder, manifest, tmp_path):
    (tmp_path / "0.png").write_bytes(b"")

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lost = BadImages(manifest, max_share=0.5)
        embed(embedder, manifest, READER, folder=tmp_path / "work", bad_images=lost, progress=stop)
    listed = BadImages(manifest, max_share=0.5)
    found = embed(embedder, manifest, READER, folder=tmp_path / "work", bad_images=listed)
    assert len(found.files) == 10
    assert set(listed.reasons) == {("0.png", "")}


def test_vectors_that_were_joined_before_the_kill_are_taken_as_they_are(embedder, manifest, tmp_path):
    (tmp_path / "4.png").write_bytes(b"")
    bad = [BadImages(manifest, max_share=0.5) for _ in range(2)]
    job = Job(manifest, looks(manifest, embedder, None), READER, bad[0])
    path = vectors_file(embedder, job, tmp_path / "work", World(), space_id(embedder))
    joined, counts = np.load(path), []
    options = {"folder": tmp_path / "work", "bad_images": bad[1]}
    found = embed(embedder, manifest, READER, **options, progress=lambda done, total: counts.append(done))
    assert counts == []
    np.testing.assert_array_equal(found.vectors, np.delete(joined, 4, axis=0))
    assert set(bad[1].reasons) == {("4.png", "")}
    assert not list((tmp_path / "work").iterdir())


def test_one_process_that_fails_is_heard_by_those_that_go_on(tmp_path):
    one, other = (Shards(tmp_path / "shards", 11, 3, 4) for _ in range(2))
    one.begin()
    other.check_stopped()
    one.stop("bad_images: a.png cannot be used")
    with pytest.raises(UserError, match=r"bad_images: a\.png cannot be used"):
        other.check_stopped()
    other.begin()
    one.check_stopped()


def test_a_picture_that_can_be_read_after_a_kill_has_no_reason_left(tmp_path, monkeypatch):
    shards = Shards(tmp_path / "shards", 2, 3, 4)
    shards.begin()
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *arguments: sys.exit("killed"))
        with pytest.raises(SystemExit):
            shards.save(0, np.full((2, 3), np.nan, np.float32), {0: "not there for a moment"})
    shards.save(0, np.ones((2, 3), np.float32), {})
    shards.join(tmp_path / "all.npy")
    assert reasons(tmp_path / "all.npy") == {}


def test_shards_are_whole_batches_enough_of_them_and_not_too_large():
    for num_rows, batch in ((1, 128), (11, 4), (60_502, 128), (10**8, 128)):
        each = rows_each(num_rows, batch)
        assert each % batch == 0 and each <= MOST_BATCHES * batch
        if num_rows > 100 * batch:
            assert -(-num_rows // each) >= 64
    shards = Shards(None, 11, 3, 4)
    assert [list(shards.rows(number)) for number in range(len(shards))] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10],
    ]
