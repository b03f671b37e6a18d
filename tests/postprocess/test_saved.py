"""Fitted steps come back exactly as they were, or not at all."""

import json

import numpy as np
import pytest

from guie.build import build
from guie.errors import UserError
from guie.postprocess import saved
from guie.postprocess.maps import PCA, Discriminant
from guie.postprocess.negatives import NegativeSubtraction, ScoreNormalisation
from guie.postprocess.pipeline import Pipeline
from guie.postprocess.step import Step
from guie.postprocess.traversal import EGT
from guie.search.exact import Exact


def steps():
    return {
        "whitening": PCA(9, whiten=True),
        "discriminant": Discriminant(7),
        "negatives": NegativeSubtraction(),
        "scores": ScoreNormalisation(),
    }


@pytest.fixture
def folder(bank, tmp_path):
    pipeline = Pipeline(steps(), Exact())
    pipeline.fit(bank)
    return saved.save(pipeline, tmp_path / "fitted", space_id="model")


def test_a_saved_pipeline_ranks_to_the_bit_like_the_one_that_was_fitted(folder, bank, gallery, queries):
    first, second = Pipeline(steps(), Exact()), Pipeline(steps(), Exact())
    first.fit(bank)
    saved.load(second, folder, space_id="model")
    before, after = (pipeline.index(gallery).search(queries, 20) for pipeline in (first, second))
    np.testing.assert_array_equal(before.ids, after.ids)
    np.testing.assert_array_equal(before.scores, after.scores)
    assert first.space_id("model") == second.space_id("model")
    for name, step in first.steps.items():
        for key, value in step.state().items():
            other = second.steps[name].state()[key]
            assert value.dtype == other.dtype and value.tobytes() == other.tobytes()


def test_saved_steps_can_be_built_from_their_own_nodes(folder, gallery, queries):
    made = {name: build(node) for name, node in saved.nodes(folder).items()}
    assert list(made) == list(steps())
    pipeline = Pipeline(made, Exact())
    saved.load(pipeline, folder, space_id="model")
    assert pipeline.index(gallery).search(queries, 3).ids.shape == (17, 3)


def test_rerankings_may_be_chosen_anew(folder, gallery):
    pipeline = Pipeline({"discriminant": Discriminant(7)}, Exact())
    with pytest.raises(UserError, match="postprocess: discriminant; accepted: whitening, discriminant, neg"):
        saved.load(pipeline, folder, space_id="model")
    of_vectors = dict(list(steps().items())[:3])
    with pytest.raises(UserError, match="accepted: whitening, discriminant, negatives, scores"):
        saved.load(Pipeline({**of_vectors, "egt": EGT()}, Exact()), folder, space_id="model")


def test_rerankings_are_not_part_of_what_is_saved(bank, tmp_path):
    pipeline = Pipeline({"pca": PCA(4), "egt": EGT()}, Exact())
    pipeline.fit(bank)
    saved.save(pipeline, tmp_path, space_id="model")
    assert list(saved.nodes(tmp_path)) == ["pca"]
    saved.load(Pipeline({"pca": PCA(4)}, Exact()), tmp_path, space_id="model")


class Remembering(Step):
    kind = "rerank"
    needs_bank = True

    def __init__(self):
        self.seen = {}

    def fit(self, bank):
        self.seen = {"labels": np.arange(len(bank.labels))}

    def state(self):
        return self.seen

    def load(self, state):
        self.seen = state


def test_a_reranking_that_is_fitted_is_saved_too(bank, tmp_path):
    pipeline, other = (Pipeline({"egt": EGT(), "memory": Remembering()}, Exact()) for _ in range(2))
    pipeline.fit(bank)
    saved.save(pipeline, tmp_path, space_id="model")
    saved.load(other, tmp_path, space_id="model")
    np.testing.assert_array_equal(other.steps["memory"].seen["labels"], np.arange(200))
    assert list(saved.nodes(tmp_path)) == ["memory"]


def test_another_setting_or_space_is_refused_by_name(folder):
    other = Pipeline({**steps(), "discriminant": Discriminant(6)}, Exact())
    with pytest.raises(UserError, match=r"postprocess\.discriminant\.dim: 6; accepted: 7, as"):
        saved.load(other, folder, space_id="model")
    with pytest.raises(UserError, match="fitted in space model; accepted: other"):
        saved.load(Pipeline(steps(), Exact()), folder, space_id="other")


def test_a_folder_without_a_whole_fit_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="no saved post-processing"):
        saved.nodes(tmp_path / "nowhere")
    (folder / saved.ARRAYS).write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read"):
        saved.load(Pipeline(steps(), Exact()), folder, space_id="model")
    (folder / saved.PLAIN).write_text(json.dumps({"format": 2, "steps": {}, "fitted_in": ""}))
    with pytest.raises(UserError, match="format 2"):
        saved.nodes(folder)
