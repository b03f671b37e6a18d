"""Submission files of rows: what is written is read back by other code, what is wrong is named by line."""

import csv
import gzip
import subprocess
import sys

import h5py
import numpy as np
import pytest

from guie import embeddings
from guie.config.schema import Submit
from guie.errors import UserError
from guie.metrics.copies import ScoredPairs
from guie.postprocess import saved as fitted
from guie.postprocess.maps import PCA
from guie.postprocess.pipeline import Pipeline
from guie.recognise.pipeline import Predictions
from guie.search.exact import Exact
from guie.submit import isc, landmarks
from guie.submit.story import submit_configured
from guie.submit.tables import stem, wanted_ids
from guie.types import Embeddings, Side

DRAW = np.random.default_rng(0)


def config(**keys):
    return vars(Submit(**keys))


def read(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
        return list(csv.reader(file))


def saved(folder, queries=("Q00002", "Q00001"), index=("R000003", "R000001", "R000002"), dim=8):
    """Save embeddings whose files lie in folders and archives, and return their unit vectors by id."""
    ids = [*queries, *index]
    vectors = DRAW.normal(size=(len(ids), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    files = [f"a/{name}.jpg" if i % 2 else f"t.tar#b/{name}.png" for i, name in enumerate(ids)]
    splits = ["query"] * len(queries) + ["index"] * len(index)
    columns = (np.array(column, dtype=object) for column in (files, ids, [""] * len(ids), splits))
    embeddings.save(Embeddings(vectors, *columns, "space"), folder)
    return dict(zip(ids, vectors, strict=True))


def predictions():
    labels = np.array(["17", "", "4"], dtype=object)
    ids = np.array(["x/a.jpg", "x/b.jpg", "x/c.jpg"], dtype=object)
    return Predictions(ids, labels, np.array([0.25, 0.0, 1e-7], dtype=np.float32))


def test_an_id_is_the_name_without_folder_archive_and_ending():
    assert [stem(file) for file in ("a/b.jpg", "t.tar#c/d.e.png", "f")] == ["b", "d.e", "f"]


def test_recognition_has_a_label_and_a_score_or_nothing(tmp_path):
    path = landmarks.write_recognition(tmp_path / "s.csv", predictions(), ["b", "a", "d", "c"])
    assert path.read_text() == "id,landmarks\nb,\na,17 0.25\nd,\nc,4 1.00000001e-07\n"
    assert landmarks.check_recognition(path, ["a", "b", "c", "d"]) == "4 queries, 2 with a landmark"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,x1 0.5", r"line 3: landmarks 'x1 0.5'; accepted: '<landmark number> <score>', or nothing"),
        ("a,1", r"line 3: landmarks '1'; accepted"),
        ("a,1 high", r"line 3: score 'high'; accepted: a finite number"),
        ("a,1 nan", r"line 3: score 'nan'; accepted: a finite number"),
        ("z,1 0.5", r"line 3: id 'z' again, after line 2; accepted: each once"),
        (",1 0.5", r"line 3: id ''; accepted: a name"),
        ("a,1 0.5,", r"line 3: 3 values; accepted: 2"),
        ("y,1 0.5", r"line 3: id 'y'; accepted: ids of the sample submission"),
        ("", r"line 3: 0 values; accepted: 2"),
    ],
)
def test_a_wrong_recognition_row_is_named(tmp_path, row, said):
    (tmp_path / "s.csv").write_text(f"id,landmarks\nz,\n{row}\n")
    with pytest.raises(UserError, match=said):
        landmarks.check_recognition(tmp_path / "s.csv", ["z", "a"])


def test_other_columns_or_ids_that_are_missing_are_refused(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("id,label\n")
    with pytest.raises(UserError, match=r"s.csv: columns 'id,label'; accepted: id,landmarks"):
        landmarks.check_recognition(path)
    path.write_text("id,landmarks\na,\n")
    with pytest.raises(UserError, match=r"s.csv: 2 ids missing, such as 'b'; accepted: one row for each"):
        landmarks.check_recognition(path, ["a", "b", "c"])
    path.with_suffix(".gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"s.gz: cannot be read .*; accepted: a csv, or csv.gz"):
        landmarks.check_recognition(path.with_suffix(".gz"))


def test_retrieval_has_a_hundred_images_at_most_best_first_each_once(tmp_path):
    results = {"q/one.jpg": [f"i/{i // 2}.jpg" for i in range(300)], "q/two.jpg": []}
    path = landmarks.write_retrieval(tmp_path / "s.csv.gz", results, ["two", "one"])
    assert read(path) == [["id", "images"], ["two", ""], ["one", " ".join(map(str, range(100)))]]
    assert landmarks.check_retrieval(path, ["one", "two"]) == "2 queries, 100 images"
    other = landmarks.write_retrieval(tmp_path / "t.csv.gz", results, ["two", "one"])
    assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("1 2 1", r"line 2: image '1' again, after line 2; accepted: each once"),
        (" ".join(map(str, range(101))), r"line 2: 101 images; accepted: at most 100"),
        ("1 9", r"line 2: image '9'; accepted: images of the index"),
    ],
)
def test_a_wrong_retrieval_row_is_named(tmp_path, images, said):
    (tmp_path / "s.csv").write_text(f"id,images\nq,{images}\n")
    with pytest.raises(UserError, match=said):
        landmarks.check_retrieval(tmp_path / "s.csv", index=[str(i) for i in range(9)] + ["200"])


def test_queries_that_the_sample_does_not_list_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"sample: 1 queries that it does not list, such as 'q'; accepted"):
        landmarks.write_retrieval(tmp_path / "s.csv", {"q.jpg": []}, ["p"])


def test_the_sample_is_gone_through_a_few_times_however_many_queries_there_are(tmp_path):
    class Sample(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    sample = Sample(map(str, range(50)))
    landmarks.write_retrieval(tmp_path / "s.csv", {f"{i}.jpg": [] for i in range(50)}, sample)
    assert sample.passes < 5


def test_matching_pairs_stand_best_first(tmp_path):
    pairs = ScoredPairs(np.array([0, 1]), np.array([1, 0]), np.array([0.5, 0.75], dtype=np.float32))
    path = isc.write_matching(tmp_path / "s.csv", pairs, ["Q00001.jpg", "Q00007.jpg"], ["R000001", "R000009"])
    assert read(path)[1:] == [["Q00007", "R000001", "0.75"], ["Q00001", "R000009", "0.5"]]
    assert isc.check_matching(path) == "2 pairs of 2 queries"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("Q1,R000001,0.5", r"line 3: query_id 'Q1'; accepted: ids as Q00001"),
        ("Q00001,R0001,0.5", r"line 3: reference_id 'R0001'; accepted: ids as R000001"),
        ("Q00001,R000002,inf", r"line 3: score 'inf'; accepted: a finite number"),
        ("Q00001,R000001,0.2", r"line 3: pair Q00001,R000001 again, after line 2; accepted: each pair once"),
        ("Q00001,R000002,0.2", r"line 3: pair number 2; accepted: at most 1 pairs"),
    ],
)
def test_a_wrong_pair_is_named(tmp_path, row, said, monkeypatch):
    monkeypatch.setattr(isc, "MOST_PAIRS", 1 if "number" in said else 500_000)
    (tmp_path / "s.csv").write_text(f"query_id,reference_id,score\nQ00001,R000001,1\n{row}\n")
    with pytest.raises(UserError, match=said):
        isc.check_matching(tmp_path / "s.csv")


def test_from_saved_embeddings_come_the_best_pairs_of_all(tmp_path, capsys):
    vectors = saved(tmp_path / "e")
    keys = {"kind": "isc_matching", "source": str(tmp_path / "e"), "max_pairs": 4}
    submit_configured(config(out=str(tmp_path / "s.csv"), **keys))
    scores = {
        (q, r): vectors[q] @ vectors[r] for q in vectors for r in vectors if q[0] == "Q" and r[0] == "R"
    }
    best = sorted(scores, key=lambda pair: -scores[pair])[:4]
    assert [(q, r) for q, r, _ in read(tmp_path / "s.csv")[1:]] == best
    assert "s.csv: 4 pairs of" in capsys.readouterr().out


def test_from_saved_embeddings_come_descriptors_that_the_check_takes(tmp_path, capsys):
    vectors = saved(tmp_path / "e")
    out = tmp_path / "s.h5"
    submit_configured(config(kind="isc_descriptor", source=str(tmp_path / "e"), out=str(out)))
    with h5py.File(out) as file:
        assert file["query_ids"].dtype == "S6" and file["reference_ids"].dtype == "S7"
        for side in ("query", "reference"):
            for name, row in zip(file[f"{side}_ids"], file[side], strict=True):
                np.testing.assert_array_equal(row, vectors[name.decode()])
    submit_configured(config(kind="isc_descriptor", check=str(out)))
    assert capsys.readouterr().out.count("s.h5: 2 query, 3 reference, 8-d") == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query": np.zeros((2, 300), "<f4")}, r"query of 300-d; accepted: 1 to 256-d"),
        (
            {"query": np.zeros((2, 8), "<f8")},
            r"query of float64, shape \(2, 8\); accepted: float32 of 2 axes",
        ),
        ({"query": np.zeros((3, 8), "<f4")}, r"2 query_ids for 3 rows; accepted: one each"),
        ({"query": np.zeros((2, 4), "<f4")}, r"query of 4-d, reference of 8-d; accepted: one width"),
        ({"reference": np.full((3, 8), np.nan, "<f4")}, r"reference row 0 \(R000003\) is not finite"),
        ({"query_ids": np.array([b"Q00001", b"Q00001"])}, r"query_ids row 1: 'Q00001' again, after row 0"),
        ({"query_ids": np.array([b"Q00001", b"X00001"])}, r"query_ids row 1: 'X00001'; accepted: ids as Q"),
        (
            {"query_ids": np.array([b"Q000012", b"Q000011"])},
            r"query_ids of \|S7, shape \(2,\); accepted: \|S6",
        ),
        ({"query_ids": None}, r"no data set query_ids; accepted: query, reference"),
    ],
)
def test_a_wrong_descriptor_is_named(tmp_path, change, said):
    saved(tmp_path / "e")
    out = tmp_path / "s.h5"
    submit_configured(config(kind="isc_descriptor", source=str(tmp_path / "e"), out=str(out)))
    with h5py.File(out, "r+") as file:
        for name, values in change.items():
            del file[name]
            if values is not None:
                file[name] = values
    with pytest.raises(UserError, match=said):
        submit_configured(config(kind="isc_descriptor", check=str(out)))


def test_retrieval_is_searched_where_no_lists_were_kept(tmp_path):
    vectors = saved(tmp_path / "run" / "embeddings" / "set", queries=("q1", "q2"), index=("a", "b", "c"))
    (tmp_path / "sample.csv").write_text("id,images\nq2,a\nq1,a\n")
    keys = {"source": str(tmp_path / "run"), "sample": str(tmp_path / "sample.csv")}
    submit_configured(config(kind="retrieval", out=str(tmp_path / "s.csv"), **keys))
    rows = dict(read(tmp_path / "s.csv")[1:])
    assert list(rows) == ["q2", "q1"]
    for query, images in rows.items():
        assert images.split() == sorted("abc", key=lambda name: -vectors[query] @ vectors[name])


def test_lists_that_an_evaluation_kept_are_what_is_submitted(tmp_path):
    from guie.evaluate import write_columns

    columns = {"query": ["q.jpg", "q.jpg", "p.jpg"], "item": ["b.jpg", "a.jpg", "c.jpg"]}
    columns |= {"rank": np.array([2, 1, 1]), "score": np.array([0.5, 0.7, 0.1])}
    for name in ("one", "two"):
        write_columns(columns, tmp_path / f"lists_{name}.parquet")
    keys = {"kind": "retrieval", "source": str(tmp_path), "out": str(tmp_path / "s.csv")}
    with pytest.raises(UserError, match="set: None; accepted: one of one, two"):
        submit_configured(config(**keys))
    submit_configured(config(set="two", **keys))
    assert read(tmp_path / "s.csv")[1:] == [["q", "a b"], ["p", "c"]]


def test_recognition_comes_from_predictions_or_from_an_evaluation(tmp_path):
    from guie.evaluate import write_columns

    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "predictions.csv").write_text("file,label,score\nx/a.jpg,17,0.25\nx/b.jpg,,0\n")
    columns = {"dataset": ["s", "s"], "file": ["x/a.jpg", "x/b.jpg"], "predicted": ["17", ""]}
    columns |= {"prediction_score": np.array([0.25, 0.0])}
    write_columns(columns, tmp_path / "queries.parquet")
    for source in (tmp_path / "p", tmp_path / "p" / "predictions.csv", tmp_path):
        out = tmp_path / "s.csv"
        submit_configured(config(kind="recognition", source=str(source), out=str(out), overwrite=True))
        assert read(out)[1:] == [["a", "17 0.25"], ["b", ""]]


def test_a_submission_that_is_wrong_or_half_written_does_not_stay(tmp_path, monkeypatch):
    (tmp_path / "p.csv").write_text("file,label,score\na.jpg,dog,0.5\n")
    with pytest.raises(UserError, match=r"line 2: landmarks 'dog 0\.5'; accepted"):
        keys = {"source": str(tmp_path / "p.csv"), "out": str(tmp_path / "s.csv")}
        submit_configured(config(kind="recognition", **keys))
    saved(tmp_path / "e")

    def full(path, *arguments):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(isc.formats, "write_h5", full)
    with pytest.raises(OSError, match="no space left"):
        keys = {"source": str(tmp_path / "e"), "out": str(tmp_path / "s.h5")}
        submit_configured(config(kind="isc_descriptor", **keys))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "p.csv"]


def test_the_submission_that_was_there_stays_where_the_new_one_is_wrong(tmp_path):
    (tmp_path / "p.csv").write_text("file,label,score\na.jpg,dog,0.5\n")
    (tmp_path / "s.csv").write_text("id,landmarks\na,17 0.5\n")
    keys = {"source": str(tmp_path / "p.csv"), "out": str(tmp_path / "s.csv"), "overwrite": True}
    with pytest.raises(UserError, match=r"/s\.csv, line 2: landmarks 'dog 0\.5'; accepted"):
        submit_configured(config(kind="recognition", **keys))
    assert (tmp_path / "s.csv").read_text() == "id,landmarks\na,17 0.5\n"


def test_a_score_that_is_no_number_is_named_by_line(tmp_path):
    (tmp_path / "p.csv").write_text("file,label,score\na.jpg,17,0.5\nb.jpg,17,high\n")
    keys = {"source": str(tmp_path / "p.csv"), "out": str(tmp_path / "s.csv")}
    with pytest.raises(UserError, match=r"p\.csv, line 3: score 'high'; accepted: a finite number"):
        submit_configured(config(kind="recognition", **keys))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "x"}, "kind: 'x'; accepted: guie, recognition, retrieval, isc_matching, isc_descriptor"),
        ({"kind": "guie", "out": "s.csv"}, r"out: s.csv; accepted: the name of a file that ends in .zip"),
        ({"kind": "guie", "out": "s.zip"}, "pt: not given; accepted: a file that guie-export wrote"),
        ({"kind": "retrieval", "out": "s.csv"}, "source: None; accepted: a folder of guie-eval"),
        ({"kind": "retrieval", "out": "s.csv", "source": "."}, "source: no embeddings in .; accepted"),
        ({"kind": "recognition", "out": "s.csv", "source": "."}, "source: queries.parquet cannot be read"),
        ({"kind": "retrieval", "check": "no.csv"}, "check: there is no file no.csv; accepted: a submission"),
        ({"kind": "retrieval", "sample": "no.csv"}, "sample: no.csv cannot be read"),
        (
            {"kind": "guie", "sample": "s.csv"},
            "sample: given with kind=guie; accepted: with recognition, ret",
        ),
        ({"kind": "isc_matching", "max_pairs": 0}, "max_pairs: 0; accepted: 1 to 500,000"),
        ({"kind": "retrieval", "fitted": "x"}, "fitted: x without steps; accepted: with 'postprocess="),
    ],
)
def test_a_wrong_key_is_named(tmp_path, monkeypatch, keys, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        submit_configured(config(**keys))


def test_what_exists_is_not_overwritten_unasked(tmp_path):
    saved(tmp_path / "e")
    (tmp_path / "s.csv").write_text("mine")
    with pytest.raises(UserError, match=r"out: .*s.csv exists; accepted: another name, or overwrite=true"):
        submit_configured(config(kind="retrieval", source=str(tmp_path / "e"), out=str(tmp_path / "s.csv")))
    assert (tmp_path / "s.csv").read_text() == "mine"


def test_names_that_are_no_ids_of_the_challenge_are_refused(tmp_path):
    saved(tmp_path / "e", queries=("q1",))
    keys = {"source": str(tmp_path / "e"), "kind": "isc_descriptor"}
    with pytest.raises(UserError, match="query: picture 'q1'; accepted: names as Q00001"):
        submit_configured(config(out=str(tmp_path / "s.h5"), **keys))
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_the_sample_may_be_compressed(tmp_path):
    path = tmp_path / "s.csv.gz"
    path.write_bytes(gzip.compress(b"id,images\nb,\na,\n"))
    assert wanted_ids(path) == ["b", "a"] and wanted_ids(None) is None


def test_the_command_says_in_one_line_what_is_wrong_and_where(tmp_path):
    (tmp_path / "a b.csv").write_text("id,images\nq,1 2\nq,1\n")
    words = ["-m", "guie.cli.submit", "kind=retrieval", f"check={tmp_path / 'a b.csv'}"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"guie-submit: {tmp_path / 'a b.csv'}, line 3: id 'q' again, after line 2; accepted: each once\n"
    )


def test_descriptors_are_written_after_the_maps_that_were_fitted_and_no_other_steps(tmp_path):
    vectors = saved(tmp_path / "e")
    pca = {"_target_": "guie.postprocess.maps.PCA", "dim": 3}
    pipeline = Pipeline({"pca": PCA(3)}, Exact())
    pipeline.fit(Side(np.stack(list(vectors.values()))))
    fitted.save(pipeline, tmp_path / "fitted", space_id="space")
    keys = {"kind": "isc_descriptor", "source": str(tmp_path / "e"), "out": str(tmp_path / "s.h5")}
    submit_configured(config(postprocess={"pca": pca}, fitted=str(tmp_path / "fitted"), **keys))
    with h5py.File(tmp_path / "s.h5") as file:
        expected = pipeline.steps["pca"].apply(np.stack([vectors["Q00002"], vectors["Q00001"]]), "query")
        np.testing.assert_array_equal(file["query"][:], expected)
        assert file["reference"].shape == (3, 3)
    expansion = {"_target_": "guie.postprocess.expansion.AlphaQE"}
    with pytest.raises(
        UserError, match=r"postprocess.qe: query step for descriptors; accepted: steps that map"
    ):
        submit_configured(config(postprocess={"qe": expansion}, overwrite=True, **keys))
    with pytest.raises(UserError, match=r"postprocess.pca: not fitted; accepted: fitted=FOLDER"):
        submit_configured(config(postprocess={"pca": pca}, overwrite=True, **keys))


def test_a_search_for_a_submission_takes_the_steps_of_the_config(tmp_path):
    vectors = saved(tmp_path / "e", queries=("q1",), index=("a", "b", "c"))
    prefix = {"prefix": {"_target_": "guie.postprocess.maps.Prefix", "dim": 2}}
    out = tmp_path / "s.csv"
    submit_configured(config(kind="retrieval", source=str(tmp_path / "e"), out=str(out), postprocess=prefix))
    cut = {name: vector[:2] / np.linalg.norm(vector[:2]) for name, vector in vectors.items()}
    assert read(out)[1][1].split() == sorted("abc", key=lambda name: -cut["q1"] @ cut[name])
