import numpy as np
import pytest

from guie.prepare.duplicates import content_codes, leaks, nearest, popcount, under_two_labels


def hashes(rng, count):
    return rng.integers(0, 2**64, count, dtype=np.uint64)


def flipped(rng, value, bits):
    for bit in rng.choice(64, bits, replace=False).tolist():
        value ^= np.uint64(1 << bit)
    return value


@pytest.mark.parametrize("radius", [0, 1, 4, 8])
@pytest.mark.parametrize("count", [1, 30, 3000])
def test_the_nearest_hash_is_that_of_comparing_all(radius, count):
    rng = np.random.default_rng([radius, count])
    known, queries = hashes(rng, count), hashes(rng, 200)
    for i in range(0, 200, 2):
        queries[i] = flipped(rng, known[rng.integers(count)], int(rng.integers(0, 11)))
    distance = np.array([[(int(q) ^ int(k)).bit_count() for k in known] for q in queries])
    best = distance.min(axis=1)
    found, at = nearest(queries, known, radius)
    assert (found == np.where(best <= radius, distance.argmin(axis=1), -1)).all()
    assert (at == np.where(best <= radius, best, 0)).all()
    assert (best <= radius).any()


def test_crowded_buckets_are_searched_in_bounded_steps(monkeypatch):
    monkeypatch.setattr("guie.prepare.duplicates._AT_ONCE", 50)
    rng = np.random.default_rng(0)
    known = np.uint64(0xABCDEF) << np.uint64(40) | hashes(rng, 300) & np.uint64(0xFFF)
    found, distance = nearest(known.copy(), known, 4)
    assert (distance == 0).all() and (known[found] == known).all()


def test_popcount_counts_ones():
    values = np.array([0, 1, 2**64 - 1, 0x8000000000000001, 0xDEADBEEF], np.uint64)
    assert popcount(values).tolist() == [int(value).bit_count() for value in values]


def test_equal_bytes_have_equal_codes():
    rng = np.random.default_rng(0)
    content = rng.integers(0, 256, (20, 32)).astype(np.uint8)
    which = rng.integers(0, 20, 100)
    codes = content_codes(content[which])
    assert ((codes[:, None] == codes[None]) == (which[:, None] == which[None])).all()


def test_equal_bytes_under_two_labels_are_grouped():
    codes = np.array([5, 1, 5, 2, 1, 5, 3])
    labels = np.array([0, 1, 0, 2, 1, 3, 3])
    assert [group.tolist() for group in under_two_labels(codes, labels)] == [[0, 2, 5]]
    assert under_two_labels(codes[:0], labels[:0]) == []


def found_by_hand(codes, phash, structured, splits, radius):
    found = {}
    for row in range(len(codes)):
        if splits[row] not in ("query", "index", "test"):
            continue
        for source in range(len(codes)):
            if splits[source] != "train":
                continue
            bits = (int(phash[row]) ^ int(phash[source])).bit_count()
            distance = -1 if codes[row] == codes[source] else bits
            if distance >= 0 and (bits > radius or not (structured[row] and structured[source])):
                continue
            if row not in found or distance < found[row][0]:
                found[row] = (distance, source)
    return found


def test_leaks_are_those_of_comparing_all():
    rng = np.random.default_rng(1)
    count = 400
    codes = rng.integers(0, 300, count)
    kinds = hashes(rng, 40)
    phash = np.array([flipped(rng, kinds[rng.integers(40)], int(rng.integers(0, 5))) for _ in range(count)])
    phash = phash[codes]  # equal bytes have equal hashes
    structured = (rng.random(count) < 0.8)[codes]
    splits = rng.choice(["train", "val", "query", "index", "test"], count)
    found = leaks(codes, phash, structured, splits, 4)
    expected = found_by_hand(codes, phash, structured, splits, 4)
    assert len(expected) > 50 and len({distance for distance, _ in expected.values()}) > 3
    pairs = zip(found.distance.tolist(), found.sources.tolist(), strict=True)
    assert dict(zip(found.rows.tolist(), pairs, strict=True)) == expected
    assert found.exact.sum() == sum(distance == -1 for distance, _ in expected.values())


def test_without_training_or_evaluation_nothing_leaks():
    codes, phash, structured = np.zeros(3, int), np.zeros(3, np.uint64), np.ones(3, bool)
    for split in ("train", "test"):
        assert len(leaks(codes, phash, structured, np.array([split] * 3), 4).rows) == 0
