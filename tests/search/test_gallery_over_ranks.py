"""A gallery cut over ranks answers bit for bit as one index does."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from guie.search.approximate import HNSW
from guie.search.exact import Exact, knn
from guie.search.sharded import Sharded
from guie.types import Side

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))  # the ranks of its tests

ROWS, QUERIES = 1003, 211  # divided by no number of ranks here, nor by a tile


class Meeting:
    """Ranks as threads: `gather` waits for all of them."""

    def __init__(self, size):
        self.size, self.barrier = size, threading.Barrier(size, timeout=30)
        self.values, self.largest = [None] * size, 0

    def gather(self, rank):
        def gathered(value):
            self.values[rank] = value
            if isinstance(value, tuple):
                self.largest = max(self.largest, sum(part.nbytes for part in value))
            self.barrier.wait()
            values = list(self.values)
            self.barrier.wait()
            return values

        return gathered

    def run(self, work):
        """Return what `work`(rank, gather) returned on each rank."""
        results = [None] * self.size

        def one(rank):
            results[rank] = work(rank, self.gather(rank))

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def things(seed):
    """Return gallery and queries: unit vectors, many of them equal or nearly, and queries of the gallery."""
    r = np.random.default_rng(seed)
    gallery = r.standard_normal((ROWS, 24), dtype=np.float32)
    gallery[::5] = gallery[3]
    gallery[1::7] = np.nextafter(gallery[2], 2)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    self_ids = np.where(np.arange(QUERIES) % 2, r.integers(0, ROWS, QUERIES), -1)
    return gallery, gallery[self_ids], self_ids


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("itself", [False, True])
def test_ranks_together_rank_bit_for_bit_as_one_process(size, itself):
    gallery, queries, self_ids = things(size)
    selves = self_ids if itself else None

    def work(rank, gather):
        index = Sharded(Exact(memory_mib=0.3), rank, size, gather).index(Side(gallery))
        assert QUERIES % index.tile and index.tile < QUERIES
        return index.search(Side(queries), 33, self_ids=selves)

    alone = knn(queries, gallery, 33, self_ids=selves)
    for ranking in Meeting(size).run(work):
        np.testing.assert_array_equal(ranking.ids, alone.ids)
        np.testing.assert_array_equal(ranking.scores, alone.scores)
        assert ranking.ids.dtype == np.int32 and ranking.scores.dtype == np.float32


def test_fewer_rows_than_ranks_and_than_neighbours_leave_places_empty():
    gallery, queries, _ = things(0)
    for rows in (0, 2):

        def work(rank, gather, rows=rows):
            return Sharded(Exact(), rank, 5, gather).index(Side(gallery[:rows])).search(Side(queries), 4)

        for ranking in Meeting(5).run(work):
            np.testing.assert_array_equal(ranking.ids, knn(queries, gallery[:rows], 4).ids)


def test_no_queries_are_an_empty_ranking():
    gallery, _, _ = things(0)

    def work(rank, gather):
        return Sharded(Exact(), rank, 2, gather).index(Side(gallery)).search(Side(gallery[:0]), 4)

    assert [ranking.ids.shape for ranking in Meeting(2).run(work)] == [(0, 4), (0, 4)]


def test_what_travels_between_ranks_is_a_tile_at_most():
    gallery, queries, _ = things(0)
    meeting = Meeting(2)
    index = meeting.run(lambda rank, gather: Sharded(Exact(0.3), rank, 2, gather).index(Side(gallery)))
    meeting.run(lambda rank, gather: index[rank].search(Side(queries), 50))
    assert 0 < meeting.largest <= index[0].tile * 50 * 8


def test_a_part_keeps_its_files_and_labels_and_says_what_searched_it():
    pytest.importorskip("faiss")
    gallery, queries, _ = things(0)
    seen = []

    class Spy(HNSW):
        def index(self, side):
            seen.append((len(side.vectors), side.files.tolist(), side.labels))
            return super().index(side)

    files = np.array([f"{i}.jpg" for i in range(ROWS)])
    search = Sharded(Spy(check_every=1), 1, 3, lambda value: [value])
    search.index(Side(gallery, files)).search(Side(queries), 5)
    assert seen == [(334, files[334:668].tolist(), None)]
    facts = search.facts()
    assert facts["search"] == "HNSW" and facts["ranks"] == 3 and facts["recall@5_queries"] == QUERIES


def test_gloo_ranks_rank_bit_for_bit_as_one_process(tmp_path):
    from ranks import logs, run_ranks

    gallery, queries, self_ids = things(11)

    def work(world):
        search = Sharded(Exact(memory_mib=0.3), world.rank, world.size, world.gather)
        ranking = search.index(Side(gallery)).search(Side(queries), 33, self_ids=self_ids)
        np.savez(tmp_path / f"{world.rank}.npz", ids=ranking.ids, scores=ranking.scores)

    assert run_ranks(2, work, tmp_path) == [0, 0], logs(tmp_path)
    alone = knn(queries, gallery, 33, self_ids=self_ids)
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            np.testing.assert_array_equal(found["ids"], alone.ids)
            np.testing.assert_array_equal(found["scores"], alone.scores)
