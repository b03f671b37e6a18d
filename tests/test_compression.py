"""Fewer bytes per vector: codes against their definition bit by bit, rows against a plain evaluation."""

import numpy as np
import pytest

from guie.compression import Compressed, codes, sheet
from guie.evaluate import evaluate
from guie.postprocess.vectors import unit
from guie.protocols.retrieval import Retrieval
from guie.search.exact import Exact, knn
from guie.types import Embeddings, Side

DRAW = np.random.default_rng(0)
VECTORS = unit(DRAW.normal(size=(300, 32)) * np.linspace(2, 0.3, 32) + 0.2)
QUERIES = unit(DRAW.normal(size=(20, 32)) * np.linspace(2, 0.3, 32) + 0.2)
NAMED = {code.name: code for code in codes(VECTORS)}


def search(name, k=10):
    return Compressed(Exact(), NAMED[name]).index(Side(VECTORS)).search(Side(QUERIES), k)


def embeddings():
    labels = np.repeat(np.arange(60), 5)
    centres = DRAW.normal(size=(60, 32))
    vectors = unit(centres[labels] + 0.8 * DRAW.normal(size=(300, 32)))
    names = (np.array([f"{kind}{i}" for i in values], dtype=object) for kind, values in
             (("f", range(300)), ("c", labels)))  # fmt: skip
    domain, split = (np.array([text] * 300, dtype=object) for text in ("", "test"))
    return Embeddings(vectors, *names, domain, split, "space")


def test_bytes_are_those_of_the_bits():
    found = {name: code.num_bytes for name, code in NAMED.items()}
    assert found["float32"] == 128 and found["int8"] == 32
    assert found["binary"] == found["binary, asymmetric"] == 4
    assert (
        found["pca16"] == found["prefix16"] == 64 and found["pca16 int8"] == 16 and found["prefix8 int8"] == 8
    )


def test_float32_is_the_search_itself():
    found, plain = search("float32"), knn(QUERIES, VECTORS, 10)
    np.testing.assert_array_equal(found.ids, plain.ids)


def test_binary_ranks_by_differing_bits_with_ties_to_the_lower_position():
    mean = VECTORS.mean(axis=0)
    items, asked = VECTORS >= mean, QUERIES >= mean
    for row, ids in zip(asked, search("binary").ids, strict=True):
        distance = (items != row).sum(axis=1)
        assert ids.tolist() == np.lexsort((np.arange(300), distance))[:10].tolist()


def test_asymmetric_binary_keeps_the_query_as_it_is():
    mean = VECTORS.mean(axis=0)
    signs = np.where(VECTORS >= mean, 1, -1)
    scores = (QUERIES.astype(np.float64) - mean) @ signs.T
    found = search("binary, asymmetric")
    for row, ids in zip(scores, found.ids, strict=True):
        np.testing.assert_allclose(row[ids], np.sort(row)[::-1][:10], rtol=1e-5)


def test_int8_multiplies_whole_numbers_of_one_scale():
    scale = np.float32(np.abs(VECTORS).max() / 127)
    held, asked = (np.clip(np.rint(v / scale), -127, 127).astype(np.int64) for v in (VECTORS, QUERIES))
    assert np.abs(held).max() == 127
    found = search("int8")
    for row, scores, ids in zip(asked @ held.T, found.scores, found.ids, strict=True):
        assert ids.tolist() == np.lexsort((np.arange(300), -row))[:10].tolist()
        np.testing.assert_array_equal(scores, row[ids])


def test_a_prefix_is_the_first_dimensions_made_unit_again():
    found = search("prefix8")
    plain = knn(unit(QUERIES[:, :8]), unit(VECTORS[:, :8]), 10)
    np.testing.assert_array_equal(found.ids, plain.ids)


def test_the_sheet_has_a_row_for_each_code_and_its_first_is_the_plain_evaluation():
    part = embeddings()
    rows = sheet({"set": part}, {"set": Retrieval()}, {}, Exact())
    plain = evaluate({"set": part}, {"set": Retrieval()}).metrics["set"]
    assert rows[0]["metrics"]["mP@5"] == pytest.approx(plain["mP@5"])
    assert rows[0]["metrics"]["R@1"] == pytest.approx(plain["R@1"])
    assert [row["name"] for row in rows] == list(NAMED)
    by_name = {row["name"]: row["metrics"]["mP@5"] for row in rows}
    assert by_name["float32"] > by_name["binary, asymmetric"] > by_name["binary"] > by_name["prefix8 int8"]
    assert {row["fitted_on"] for row in rows} == {"gallery of set, 300 rows"}


def test_with_training_rows_codes_are_fitted_on_those():
    part = embeddings()
    rows = sheet({"set": part}, {"set": Retrieval()}, {"a": part, "b": part}, Exact())
    assert rows[0]["fitted_on"] == "bank a+b, 600 rows"


def test_fewer_rows_than_dimensions_leave_pca_out():
    assert [code.name for code in codes(VECTORS[:12]) if "pca" in code.name] == ["pca8", "pca8 int8"]
