"""Steps as a search: their order, what each is fitted on, the space they lead to, what is deployed."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from guie.errors import UserError
from guie.postprocess.diffusion import Diffusion
from guie.postprocess.expansion import DBA, AlphaQE
from guie.postprocess.layers import Mapped
from guie.postprocess.maps import PCA, Discriminant, Prefix
from guie.postprocess.negatives import NegativeSubtraction, ScoreNormalisation
from guie.postprocess.pipeline import Pipeline
from guie.postprocess.reciprocal import KReciprocal
from guie.postprocess.step import Stage, Step
from guie.postprocess.superglobal import SuperGlobal
from guie.postprocess.traversal import EGT
from guie.search.exact import Exact, knn
from guie.types import Ranking, Side

STEPS = {
    "negatives": NegativeSubtraction(),
    "qe": AlphaQE(),
    "dba": DBA(),
    "diffusion": Diffusion(neighbours=10, truncate=100),
    "egt": EGT(neighbours=20),
    "superglobal": SuperGlobal(shortlist=50),
    "k_reciprocal": KReciprocal(),
}


def fitted(steps, bank):
    pipeline = Pipeline(steps, Exact())
    pipeline.fit(bank)
    return pipeline


def same(found, expected):
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_no_step_is_the_search_itself(gallery, queries):
    index = Pipeline({}, Exact()).index(gallery)
    plain = Exact().index(gallery)
    same(index.search(queries, 9), plain.search(queries, 9))
    assert index.tile == plain.tile


def test_each_step_finds_what_the_one_before_has_left(bank, gallery, queries):
    pipeline = fitted({"qe": AlphaQE(5), "pca": PCA(6), "dba": DBA(4), "late_qe": AlphaQE(3)}, bank)
    pca = pipeline.steps["pca"]
    moved = AlphaQE(5).of_queries(queries, Stage(gallery, Exact().index(gallery)), None)
    small = Side(pca.apply(gallery.vectors, "gallery"))
    augmented = DBA(4).of_gallery(Stage(small, Exact().index(small)))
    moved = Side(pca.apply(moved.vectors, "query"))
    moved = AlphaQE(3).of_queries(moved, Stage(augmented, Exact().index(augmented)), None)
    same(pipeline.index(gallery).search(queries, 9), knn(moved.vectors, augmented.vectors, 9))


def test_a_step_is_fitted_on_vectors_that_the_maps_before_it_have_changed(bank):
    pipeline = fitted({"pca": PCA(6), "negatives": NegativeSubtraction(smoothing=0)}, bank)
    alone = fitted({"pca": PCA(6)}, bank).steps["pca"]
    expected = alone.apply(bank.vectors, "gallery")
    np.testing.assert_array_equal(pipeline.steps["negatives"].state()["bank"], expected)


def test_queries_in_tiles_get_what_they_get_together(bank, gallery, queries):
    steps = {"n": NegativeSubtraction(), "qe": AlphaQE(), "egt": EGT(20), "diffusion": Diffusion(20)}
    index = fitted(steps, bank).index(gallery)
    whole = index.search(queries, 12)
    for row in range(len(queries.vectors)):
        alone = index.search(Side(queries.vectors[row : row + 1]), 12)
        np.testing.assert_array_equal(alone.ids[0], whole.ids[row])


def test_a_reranking_sees_its_depth_and_the_caller_gets_what_was_asked_for(gallery, queries):
    class Watching(Step):
        kind = "rerank"
        depth = 50

        def rerank(self, ranking, queries, stage, self_ids):
            seen.append(ranking.ids.shape)
            return Ranking(ranking.ids[:, ::-1], -ranking.scores[:, ::-1])

    seen: list[tuple[int, int]] = []
    index = Pipeline({"first": Watching(), "second": Watching()}, Exact()).index(gallery)
    same(index.search(queries, 7), Exact().index(gallery).search(queries, 7))
    index.search(queries, 60)
    assert seen == [(17, 50), (17, 50), (17, 60), (17, 60)]


def test_upto_gives_the_pipeline_after_each_step(bank, gallery, queries):
    pipeline = fitted({"pca": PCA(6), "dba": DBA(4), "superglobal": SuperGlobal(30)}, bank)
    parts = dict(pipeline.upto())
    assert list(parts) == ["", "pca", "dba", "superglobal"]
    same(parts[""].index(gallery).search(queries, 5), knn(queries.vectors, gallery.vectors, 5))
    same(parts["superglobal"].index(gallery).search(queries, 5), pipeline.index(gallery).search(queries, 5))


@pytest.mark.parametrize(
    "steps, message",
    [
        (
            {"egt": EGT(), "pca": PCA()},
            "postprocess: pca after egt, which re-ranks; accepted: steps over vectors",
        ),
        (
            {"norm": ScoreNormalisation(), "k": KReciprocal()},
            "postprocess: k after norm, whose vectors are no embeddings; accepted: before",
        ),
    ],
)
def test_a_step_in_a_place_where_it_cannot_work_is_refused(steps, message):
    with pytest.raises(UserError, match=message):
        Pipeline(steps, Exact())


@pytest.mark.parametrize(
    "step, message",
    [
        (AlphaQE(0), r"postprocess\.x\.neighbours: 0; accepted: 1 or more"),
        (KReciprocal(mix=1.5), r"postprocess\.x\.mix: 1\.5; accepted: 0 to 1"),
        (Diffusion(alpha=1.0), r"postprocess\.x\.alpha: 1\.0; accepted: 0 to 0\.9999"),
        (NegativeSubtraction(smoothing=-1), r"postprocess\.x\.smoothing: -1; accepted: 0 or more"),
        (Prefix(0), r"postprocess\.x\.dim: 0; accepted: 1 or more"),
    ],
)
def test_a_parameter_out_of_range_is_refused_before_anything_is_read(step, message):
    with pytest.raises(UserError, match=message):
        Pipeline({"x": step}, Exact())


@pytest.mark.parametrize("step", [PCA(), Discriminant(), Prefix(), ScoreNormalisation(), *STEPS.values()])
def test_ranges_are_those_of_parameters(step):
    assert set(step.ranges) <= set(step.settings())
    step.check()


def test_only_a_reranking_without_vectors_may_follow_normalised_scores(bank, gallery, queries):
    class Pictures(Step):
        kind = "rerank"
        reads_vectors = False

    pipeline = fitted({"norm": ScoreNormalisation(), "pictures": Pictures()}, bank)
    assert pipeline.index(gallery).search(queries, 3).ids.shape == (17, 3)


def test_an_unfitted_step_and_a_wrong_width_name_their_key(bank, gallery):
    with pytest.raises(UserError, match=r"postprocess\.pca: not fitted; accepted: training vectors"):
        Pipeline({"pca": PCA()}, Exact()).index(gallery)
    with pytest.raises(UserError, match=r"postprocess\.pca\.dim: 64 from 200 training vectors"):
        fitted({"pca": PCA(64)}, bank)
    with pytest.raises(UserError, match=r"postprocess\.pca\.vectors: 3-d received; accepted: 12-d"):
        fitted({"pca": PCA(4)}, bank).index(Side(np.ones((5, 3), np.float32)))


def test_the_space_changes_with_what_changes_vectors_and_with_nothing_else(bank, gallery):
    def name(steps, bank=bank):
        return fitted(steps, bank).space_id("model")

    other = Side(bank.vectors[:150], labels=bank.labels[:150])
    assert name({}) == "model" and name({"egt": EGT()}) == "model"
    names = [
        name({"a": PCA(4)}),
        name({"a": PCA(5)}),
        name({"a": PCA(4, whiten=True)}),
        name({"a": PCA(4)}, other),
        name({"a": Discriminant(4)}),
        name({"a": Prefix(4)}),
        name({"a": DBA()}),
        name({"a": PCA(4), "b": DBA()}),
        fitted({"a": PCA(4)}, bank).space_id("another model"),
    ]
    assert len({*names, "model"}) == len(names) + 1
    assert name({"renamed": PCA(4), "egt": EGT()}) == names[0]


def layer_by_layer(layers, vectors):
    """Return what `layers` say, in float64, one vector at a time."""
    made = []
    for vector in vectors.astype(np.float64):
        for layer in layers:
            if isinstance(layer, Mapped):
                vector = layer.weight.astype(np.float64) @ vector + layer.bias
            else:
                nearest = np.argsort(-(layer.bank.astype(np.float64) @ vector))[: layer.neighbours]
                vector = vector - layer.beta * layer.bank[nearest].astype(np.float64).mean(axis=0)
            vector = vector / np.linalg.norm(vector)
        made.append(vector)
    return np.array(made)


@pytest.mark.parametrize(
    "steps",
    [
        {"discriminant": Discriminant(8), "prefix": Prefix(5), "whitening": PCA(3, True)},
        {"negatives": NegativeSubtraction(7, 0.4), "pca": PCA(4), "again": NegativeSubtraction(3, 0.2)},
        {"all": NegativeSubtraction(10_000, 0.5, smoothing=0)},
    ],
)
def test_steps_over_one_vector_are_handed_out_for_deployment(bank, queries, steps):
    pipeline = fitted(steps, bank)
    vectors = queries.vectors
    for step in pipeline.steps.values():
        vectors = step.apply(vectors, "query")
    np.testing.assert_allclose(vectors, layer_by_layer(pipeline.layers(12), queries.vectors), atol=2e-6)
    with pytest.raises(UserError, match=rf"postprocess\.{next(iter(steps))}\.vectors: 7-d received; .*12-d"):
        pipeline.layers(7)


@pytest.mark.parametrize(
    "step, why",
    [
        (ScoreNormalisation(), "ScoreNormalisation gives no embedding"),
        (DBA(), "DBA changes the gallery by its own neighbours"),
        (AlphaQE(), "AlphaQE asks the gallery for neighbours"),
        (KReciprocal(), "KReciprocal orders the results of a search"),
        (Step(), "Step is known by its program alone"),
    ],
)
def test_a_step_that_is_more_than_a_function_of_one_vector_stays_out_of_files(step, why, bank):
    said = rf"^postprocess\.x\._target_: {why}; accepted: in a file linear maps and negative subtraction \(th"
    with pytest.raises(UserError, match=said):
        fitted({"pca": PCA(4), "x": step}, bank).layers(12)
    with pytest.raises(UserError, match=r"^postprocess\.pca: not fitted; accepted: training vectors, or a s"):
        Pipeline({"pca": PCA(4)}, Exact()).layers(12)


def test_a_report_can_say_what_was_done():
    facts = Pipeline({"qe": AlphaQE(5), "k": KReciprocal()}, Exact(memory_mib=3)).facts()
    assert facts == Exact(memory_mib=3).facts() | {
        "postprocess": {"qe": {"neighbours": 5, "alpha": 3.0}, "k": {"k1": 20, "k2": 6, "mix": 0.3}}
    }


@pytest.mark.parametrize("name", list(STEPS))
def test_no_step_holds_the_scores_of_all_pairs(name):
    r = np.random.default_rng(0)
    rows = r.standard_normal((4500, 16), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    asked = 500 if STEPS[name].all_queries else 100
    pipeline = fitted({name: STEPS[name]}, Side(rows[:1000]))
    tracemalloc.start()
    pipeline.index(Side(rows[500:])).search(Side(rows[:asked]), 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # scores within the gallery, or of all nodes with each other for the step that sees all queries
    nodes = 4500 if STEPS[name].all_queries else 4000
    assert peak < 4 * nodes**2


def test_importing_steps_brings_neither_torch_nor_scipy():
    modules = "pipeline saved maps negatives expansion reciprocal diffusion traversal superglobal".split()
    code = "".join(f"import guie.postprocess.{name}\n" for name in modules)
    code += "import sys\nprint([n for n in ('torch', 'scipy', 'faiss', 'safetensors') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
