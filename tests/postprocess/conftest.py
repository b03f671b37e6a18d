"""Vectors that lie in clusters, so that neighbours mean something."""

import numpy as np
import pytest

from guie.types import Side


def clustered(rows, dim=12, classes=8, noise=0.7, seed=0):
    """Return (rows,dim) unit float32 and their class (rows,)."""
    r = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, dim))
    names = r.integers(classes, size=rows)
    vectors = centres[names] + noise * r.standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), names


@pytest.fixture
def gallery():
    return Side(clustered(120, seed=1)[0])


@pytest.fixture
def queries():
    return Side(clustered(17, seed=2)[0])


@pytest.fixture
def bank():
    vectors, names = clustered(200, seed=3)
    return Side(vectors, labels=np.array([f"label {name}" for name in names], dtype=object))


@pytest.fixture
def reference(shared):
    """Return the arrays of the shared retrieval fixture: Q (90,48), X (235,48), labels and similarities."""
    return np.load(shared / "reference" / "synthetic" / "retrieval_fixture.npz")
