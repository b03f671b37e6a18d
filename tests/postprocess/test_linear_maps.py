"""Linear maps against the outputs of other programs and against their definitions in float64."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from guie.errors import UserError
from guie.postprocess import maps
from guie.types import Side


@pytest.fixture
def expected(shared):
    return json.loads((shared / "reference" / "synthetic" / "reference_outputs.json").read_text())


def similarities(step, reference):
    queries, gallery = (step.apply(reference[name], "gallery") for name in "QX")
    return queries.astype(np.float64) @ gallery.T.astype(np.float64)


@pytest.mark.parametrize("program", ["met_pcaw16", "cirtorch_pcaw16"])
def test_whitening_equals_that_of_two_other_programs(reference, expected, program):
    step = maps.PCA(16, whiten=True)
    step.fit(Side(reference["X"]))
    found = similarities(step, reference)
    np.testing.assert_allclose(found[0, :5], expected[program]["sim_q0_first5"], atol=5e-6)
    assert found.sum() == pytest.approx(expected[program]["sim_sum"], abs=2e-3)


def test_a_discriminant_of_pairs_is_the_learned_whitening_of_another_program(reference, expected):
    vectors, labels = reference["X"].astype(np.float64), reference["x_labels"]
    first, second = [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        first.extend(rows[:-1])
        second.extend(rows[1:])
    assert len(first) == expected["cirtorch_lw"]["n_pairs"]
    mean = vectors[first].mean(axis=0)
    differences = vectors[first] - vectors[second]
    total = (vectors - mean).T @ (vectors - mean)
    within = differences.T @ differences / len(first)
    step = maps.Discriminant(48, shrinkage=0)
    weight = maps.discriminant(total, within, 48, 0)
    step.load({"weight": weight.astype(np.float32), "bias": (-weight @ mean).astype(np.float32)})
    found = similarities(step, reference)
    np.testing.assert_allclose(found[0, :5], expected["cirtorch_lw"]["sim_q0_first5"], atol=2e-5)
    assert found.sum() == pytest.approx(expected["cirtorch_lw"]["sim_sum"], abs=2e-2)


def test_pca_keeps_the_variance_that_a_singular_value_decomposition_finds(bank):
    step = maps.PCA(5)
    step.fit(bank)
    centred = bank.vectors.astype(np.float64) - bank.vectors.mean(axis=0, dtype=np.float64)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(step.weight @ axes[:5].T), np.eye(5), atol=1e-4)
    np.testing.assert_allclose(step.bias, -step.weight @ bank.vectors.mean(axis=0), atol=1e-5)


def test_shrinkage_keeps_whitening_from_blowing_up_what_hardly_varies(bank):
    flat = bank.vectors.copy()
    flat[:, 0] *= 1e-7
    with pytest.raises(UserError, match=r"dim: 12 with a bank of rank 11; accepted: at most 11"):
        maps.PCA(12, whiten=True).fit(Side(flat))
    step = maps.PCA(12, whiten=True, shrinkage=0.1)
    step.fit(Side(flat))
    assert np.abs(step.weight).max() < 100


def test_scatter_over_chunks_equals_covariances_by_definition(bank, monkeypatch):
    monkeypatch.setattr(maps, "ROWS", 13)
    classes = np.unique(bank.labels, return_inverse=True)[1]
    mean, total, within = maps.scatter(bank.vectors, classes)
    vectors = bank.vectors.astype(np.float64)
    np.testing.assert_allclose(mean, vectors.mean(axis=0))
    np.testing.assert_allclose(total, np.cov(vectors.T, bias=True), atol=1e-12)
    centred = np.concatenate([vectors[classes == c] - vectors[classes == c].mean(axis=0) for c in range(8)])
    np.testing.assert_allclose(within, centred.T @ centred / len(vectors), atol=1e-12)


def test_classes_lie_further_apart_along_the_discriminant_than_along_pca(bank):
    classes = np.unique(bank.labels, return_inverse=True)[1]
    separated = {}
    for step in (maps.PCA(4), maps.Discriminant(4, shrinkage=0.01)):
        step.fit(bank)
        raw = bank.vectors @ step.weight.T + step.bias
        _, total, within = maps.scatter(raw, classes)
        separated[type(step)] = np.trace(np.linalg.solve(within, total))
    assert separated[maps.Discriminant] > separated[maps.PCA]


def test_each_map_is_its_matrix_and_a_length_of_one(bank, gallery, tmp_path):
    r = np.random.default_rng(0)
    save_file(
        {
            "weight": r.standard_normal((6, 12)).astype(np.float32),
            "bias": r.standard_normal(6).astype(np.float32),
        },
        tmp_path / "map.safetensors",
    )
    steps = [maps.PCA(5), maps.PCA(5, whiten=True), maps.Discriminant(5), maps.Prefix(5)]
    for step in [*steps, maps.Linear(str(tmp_path / "map.safetensors"))]:
        step.fit(bank)
        weight, bias = step.layer(12)
        by_hand = gallery.vectors.astype(np.float64) @ weight.T.astype(np.float64) + bias
        by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
        np.testing.assert_allclose(step.apply(gallery.vectors, "query"), by_hand, atol=2e-6)
        with pytest.raises(UserError, match="3"):
            step.layer(3)


def test_a_map_from_a_file_may_lack_a_bias_but_not_a_weight(tmp_path):
    path = tmp_path / "map.safetensors"
    save_file({"weight": np.eye(2, 3, dtype=np.float16)}, path)
    np.testing.assert_array_equal(maps.Linear(str(path)).layer(3).bias, np.zeros(2))
    save_file({"matrix": np.eye(3)}, path)
    with pytest.raises(UserError, match=r"holds \{'matrix': \(3, 3\)\}; accepted: weight"):
        maps.Linear(str(path))
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read"):
        maps.Linear(str(path))
    with pytest.raises(UserError, match="there is no file"):
        maps.Linear(str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    "step, rows, message",
    [
        (maps.PCA(13), 200, "dim: 13 from 200 training vectors of 12 dimensions; accepted: 1 to 12"),
        (maps.PCA(8), 5, "dim: 8 from 5 training vectors of 12 dimensions; accepted: 1 to 4"),
        (maps.Discriminant(0), 200, "dim: 0 from"),
    ],
)
def test_a_bank_too_small_is_named(bank, step, rows, message):
    with pytest.raises(UserError, match=message):
        step.fit(Side(bank.vectors[:rows], labels=bank.labels[:rows]))


def test_a_discriminant_needs_labels_of_classes_that_vary(bank):
    with pytest.raises(UserError, match="bank: without labels"):
        maps.Discriminant(4).fit(Side(bank.vectors))
    lone = np.array([str(i) for i in range(200)], dtype=object)
    with pytest.raises(UserError, match="bank: no class varies"):
        maps.Discriminant(4).fit(Side(bank.vectors, labels=lone))
