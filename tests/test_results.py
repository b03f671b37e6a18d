"""What is printed after an evaluation beside the table: a protocol's own metrics, and the steps."""

import json

import numpy as np

from guie.evaluate import Evaluation, evaluate
from guie.protocols.graded import Revisited
from guie.results import print_protocols, print_steps, write_results
from guie.types import Embeddings, Pairs


def evaluation(**sets):
    return Evaluation(
        {name: numbers for name, (_, _, numbers) in sets.items()},
        {},
        {name: {"kind": kind, "metric": metric} for name, (kind, metric, _) in sets.items()},
    )


def test_a_protocols_own_metrics_are_told_and_no_others(capsys):
    graded = {"mAP E": 0.5, "mAP M": 0.25, "mAP H": 0.125, "mP@1 E": 1.0, "mAP E_interval": [0, 1]}
    found = {"GAP": 0.5, "GAP-": 0.75, "ACC": 0.8, "queries": 3}
    print_protocols(
        evaluation(
            ox=("Revisited", "mAP M", graded),
            met=("Recognition", "GAP", found),
            toy=("Retrieval", "mP@5", {"mP@5": 1.0}),
        )
    )
    assert capsys.readouterr().out.splitlines() == [
        "ox (Revisited): mAP M 0.2500, mAP E 0.5000, mAP H 0.1250",
        "met (Recognition): GAP 0.5000, GAP- 0.7500, ACC 0.8000",
    ]


def test_each_step_says_what_it_gave_and_cost(capsys):
    def step(name, value, seconds):
        return {"step": name, "metrics": {"x": "mP@5"}, "values": {"x": value}, "seconds": seconds}

    print_steps([step("", 0.5, 1.0), step("dba", 0.75, 3.5), step("qe", 0.5, 4.0)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["search", "0.5000", "1.0"] in lines
    assert ["dba", "0.7500", "(+0.2500)", "3.5", "(+2.5)"] in lines
    assert ["qe", "0.5000", "(-0.2500)", "4.0", "(+0.5)"] in lines


def test_without_steps_there_is_no_table(capsys):
    print_steps([])
    print_steps([{"step": "", "metrics": {"x": "mP@5"}, "values": {"x": 1.0}, "seconds": 1.0}])
    assert capsys.readouterr().out == ""


def test_what_is_not_defined_is_left_out_of_metrics_json(tmp_path):
    r = np.random.default_rng(0)
    files = np.array(["q", *"abcdef"], dtype=object)
    pairs = Pairs(*(np.array(column, dtype=object) for column in (["q"], ["a"], ["easy"], ["public"])))
    names = np.full(7, "x", dtype=object)
    splits = np.array(["query", *["index"] * 6], dtype=object)
    part = Embeddings(r.normal(size=(7, 4)).astype(np.float32), files, names, names, splits, "space", pairs)
    found = evaluate({"ox": part}, Revisited())
    assert np.isnan(found.metrics["ox"]["mAP H"])
    write_results(tmp_path, found, {"floors": {}, "space_id": "space", "seed": 0})
    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda word: 1 / 0)
    assert "mAP H" not in read["trained"]["ox"] and read["trained"]["ox"]["mAP E"] > 0
    assert (tmp_path / "report.html").exists()
