"""The searches that a command line can choose."""

import json

import numpy as np
import pytest

from guie import embeddings
from guie.config.compose import composed, directory
from guie.evaluating import of_saved
from guie.search.chosen import chosen
from guie.types import Embeddings

NAMES = sorted(path.stem for path in (directory() / "search").glob("*.yaml"))


def test_the_choices_are_these():
    assert NAMES == ["exact", "hnsw", "ivf"]


@pytest.mark.parametrize("name", NAMES)
def test_each_choice_is_built_with_the_memory_of_the_command(name):
    if name != "exact":
        pytest.importorskip("faiss")
    cfg = composed("eval", [f"search={name}", "memory_mib=3", "embeddings=x"])
    search = chosen(cfg["search"], cfg["memory_mib"])
    assert getattr(search, "_exact", search).memory_mib == 3
    assert search.facts()["search"].lower() == name


def test_what_an_approximate_search_missed_is_in_the_results(tmp_path):
    pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).standard_normal((600, 8), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    files, labels = np.array([f"{row}.jpg" for row in range(600)]), np.arange(600).astype(str)
    labels[300:] = labels[:300]
    few = Embeddings(vectors, files, labels, np.full(600, ""), np.full(600, "test"), "space")
    embeddings.save(few, tmp_path / "drawn")
    asked = ["search=ivf", "search.probes=1", "search.check_every=1", f"embeddings={tmp_path / 'drawn'}"]
    of_saved(composed("eval", asked))
    facts = json.loads((tmp_path / "drawn" / "evaluation" / "metrics.json").read_text())["search"]
    assert facts["search"] == "IVF" and facts["probes"] == 1
    assert 0 < facts["recall@100"] < 0.9 and facts["recall@100_queries"] == 600
