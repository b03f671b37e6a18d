"""The card says what was measured and how sure that is, what it was made of, and nothing it cannot know."""

from __future__ import annotations

import json

import pytest
from small import evaluation_folder

from guie.bundle import measured
from guie.bundle.card import Contents, card, cell, count
from guie.bundle.lineage import Lineage
from guie.bundle.measured import NOTHING
from guie.export.formats import Tolerance
from guie.export.verify import Verified

FACTS = {"space_id": "abc", "vectors_space_id": "abc"}


def cells(text, start):
    """Return the cells of the table rows that begin with `start`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[one.strip() for one in line.strip("| ").split(" | ")] for line in lines]


@pytest.fixture
def text(bundle):
    return (bundle / "card.md").read_text()


def test_numbers_have_their_intervals_the_floor_and_the_counts(text):
    assert cells(text, "toy | mP@5") == [
        ["toy", "mP@5", "0.5000", "0.2500 to 0.7500", "0.3750", "1,500", "2,000"]
    ]
    assert cells(text, "toy | R@1") == [["toy", "R@1", "0.6250", "", "", "1,500", "2,000"]]


def test_a_name_stays_inside_its_cell(text):
    assert r"| toy, toys\|games | mP@5 | 0.4000 |" in text
    assert cell("a|b\nc") == r"a\|b c"


def test_every_model_file_states_how_near_it_is(text):
    rows = cells(text, "model.")
    assert [row[0] for row in rows] == ["model.pt"]
    assert float(rows[0][4]) < 1e-5
    assert rows[0][6] == "largest difference at most 1e-05"


def test_thresholds_have_intervals_and_say_where_pairs_are_few(text):
    assert cells(text, "toy | 0.01") == [
        ["toy", "0.01", "0.8750", "0.8125 to 0.9375", "0.750", "0.500 to 1.000", "no"]
    ]


def test_it_names_its_data_with_counts_and_licences_and_the_weights(text):
    assert cells(text, "run | toy") == [["run", "toy", "1,234", "2", "Apache-2.0"]]
    assert "Weights that training began from, or was taught by: resnet50 from resnet50.safetensors." in text
    assert cells(text, "weights")[0][1:3] == [
        "resnet50 from resnet50.safetensors",
        "not stated; look at whoever gave you the file",
    ]


def test_it_names_the_space_and_how_pictures_come_in(text, bundle):
    space = json.loads((bundle / "preprocess.json").read_text())["space_id"]
    assert f"Embedding space: `{space}`" in text
    assert "32 x 32 pixels by stretch (bicubic, antialiased)" in text
    assert "transparency on 10 200 30" in text


def contents(**further):
    told = {"space_id": "abc", "embed_dim": 4, "guie": "1", "precision": "fp32", "size_px": None}
    told["preprocess"] = {
        "size_px": [8, 8],
        "crop": "center",
        "crop_fraction": 0.5,
        "interpolation": "bicubic",
    }
    told["preprocess"]["background"] = [0, 0, 0]
    tried = {"sizes": ((1, 1),), "batches": (1,), "dtypes": ("uint8",), "path": None, "golden": None}
    verified = [Verified(difference=0.0, cosine=1.0, tolerance=Tolerance(1e-5), **tried)]
    models = [{"file": "model.pt", "format": "torchscript", "precision": "fp32", "bytes": 10}]
    known = {"name": "x", "told": told, "models": models, "verified": verified, "measured": NOTHING}
    return Contents(**{**known, "lineage": Lineage(), "software": [], **further})


def test_what_was_not_measured_is_not_claimed():
    text = card(contents())
    assert "Nothing is stated: no evaluation was given" in text
    assert "None were calibrated in this space" in text
    assert "| mP@5" not in text


def test_runs_that_are_gone_are_said_to_be_missing():
    text = card(contents(lineage=Lineage(gone=["runs/lost"])))
    assert "`runs/lost` is named as one that it came from and could not be read" in text
    assert "in the runs that could be read" in text


def test_counts_that_no_checkpoint_has_are_not_made_up():
    assert (count(None), count(1234567)) == ("not recorded", "1,234,567")


def read(tmp_path, facts=FACTS, **further):
    return measured.read(evaluation_folder(tmp_path / "evaluation", facts["space_id"], **further), facts)


def test_a_model_below_its_frozen_backbone_is_called_doubtful(tmp_path):
    short = {"where": "toy", "trained": 0.25, "frozen": 0.5, "metric": "mP@5"}
    found = read(tmp_path, below_frozen=[short])
    assert "Doubtful: toy is below the backbone that training began from: mP@5 0.250" in card(
        contents(measured=found)
    )


def test_steps_that_act_on_results_are_said_to_be_in_no_file(tmp_path):
    steps = [
        {"step": name, "metrics": {"toy": "mP@5"}, "values": {"toy": value}}
        for name, value in (("", 0.4), ("pca", 0.45), ("expansion", 0.5))
    ]
    facts = {**FACTS, "postprocess": {"pca": {}}}
    found = read(tmp_path, facts, postprocess=["pca", "expansion"], steps=steps)
    assert found.beyond == ["expansion"]
    text = card(contents(measured=found))
    assert "act on results and are in no file: expansion" in text
    assert "search (toy mP@5 0.4000);\npca (toy mP@5 0.4500);\nexpansion (toy mP@5 0.5000)." in text


def test_thresholds_of_the_space_before_the_steps_are_left_out(tmp_path):
    folder = evaluation_folder(tmp_path / "evaluation", "abc")
    told = json.loads((folder / "thresholds.json").read_text())
    (folder / "thresholds.json").write_text(json.dumps({**told, "space_id": "before"}))
    assert measured.read(folder, {"space_id": "abc", "vectors_space_id": "before"}).thresholds is None


def test_the_merged_index_is_told_only_where_there_are_several_sets(tmp_path):
    assert {row.dataset for row in read(tmp_path).numbers} == {"toy"}
    of_set = {"mP@5": 0.5, "queries": 1, "gallery": 2}
    trained = {"a": of_set, "b": of_set, "merged": of_set}
    (tmp_path / "more").mkdir()
    assert [row.dataset for row in read(tmp_path / "more", trained=trained).numbers] == ["a", "b", "merged"]
