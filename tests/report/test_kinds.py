"""Every kind of protocol has a report, with its own metric, judged by its own truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
from reports import made_up, png

from guie.evaluate import evaluate
from guie.protocols.copies import Copies
from guie.protocols.graded import Revisited, Stated
from guie.protocols.one_shot import OneShot
from guie.protocols.recognition import KNN, Recognition
from guie.protocols.retrieval import Retrieval
from guie.protocols.self_in import SelfIn
from guie.protocols.several import Several
from guie.report.folder import read_queries
from guie.report.galleries import judge
from guie.report.page import write_report
from guie.types import Pairs


def queries_and_index(stated=False):
    """Return 40 queries and 80 pictures of the index; with stated pairs the labels say nothing."""
    found = made_up(dim=16, noise=1.2)
    splits = np.where(np.arange(120) % 6 < 2, "query", "index")
    if not stated:
        return replace(found, splits=splits)
    asks = [i for i in range(120) if splits[i] == "query"]
    rows = [(i, j) for i in asks for j in range(i // 6 * 6, i // 6 * 6 + 6) if splits[j] == "index"]
    pairs = Pairs(
        np.array([f"{i}.png" for i, _ in rows]),
        np.array([f"{j}.png" for _, j in rows]),
        np.array([("easy", "hard")[j % 2] for _, j in rows]),
        np.full(len(rows), "public"),
    )
    return replace(found, splits=splits, truth=pairs, labels=np.full(120, "?"))


def episodes():
    found = queries_and_index()
    kept = np.flatnonzero(np.arange(120) % 6 < 3)
    kept = kept[kept % 6 > 0]
    columns = {name: getattr(found, name)[kept] for name in ("vectors", "files", "labels", "domains")}
    return replace(found, splits=np.array(["query", "index"] * 20), **columns)


def unknown_too():
    found = queries_and_index()
    labels = found.labels.astype(object)
    labels[(found.splits == "query") & (np.arange(120) % 5 == 0)] = "distractor"
    return replace(found, labels=labels)


def several_labels():
    """Return pictures of which one in four shows a second class, too."""
    found = made_up(noise=1.5)
    classes = np.arange(120) // 6
    ids = [f"{c} {(c + 10) % 20}" if i % 4 == 0 else f"{c}" for i, c in enumerate(classes.tolist())]
    labels = np.array([f"x/{c}" for c in classes])
    return replace(found, labels=labels, further={"class_ids": np.array(ids, dtype=object)})


KINDS = {
    "retrieval": (Retrieval(metric="R@1"), queries_and_index()),
    "cross_domain": (Retrieval(match_domain=True, mean_of_domains=True, metric="mMP@5"), made_up(noise=2)),
    "several_labels": (Retrieval(), several_labels()),
    "self_in": (SelfIn(), made_up(noise=2)),
    "stated": (Stated(map_k=10, metric="mAP@10"), queries_and_index(stated=True)),
    "revisited": (Revisited(), queries_and_index(stated=True)),
    "copies": (Copies(), queries_and_index(stated=True)),
    "copies_by_label": (Copies(track="matching"), queries_and_index()),
    "recognition": (Recognition(), unknown_too()),
    "knn": (KNN(ks=(5,), metric="kNN@5", asks=("query",), answers=("index",)), queries_and_index()),
    "one_shot": (OneShot(), episodes()),
    "several": (Several({"first": Retrieval(), "copies": Copies()}), queries_and_index()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_protocol_has_a_report(kind, tmp_path):
    protocol, found = KINDS[kind]
    evaluation = evaluate({"toy": found}, protocol)
    evaluation.write_queries(tmp_path / "queries.parquet")
    numbers = {"trained": evaluation.metrics, "protocols": evaluation.protocols}
    (tmp_path / "metrics.json").write_text(json.dumps(numbers))
    text = write_report(tmp_path, read_picture=png, found={"toy": found}).read_text()
    metric = evaluation.named["toy"]
    value = f"{evaluation.metrics['toy'][metric]:.3f}"
    shown = value.removeprefix("0") if value.startswith("0") else value[:4]
    assert f"<small>{metric}, " in text and f"<b>{shown}</b>" in text
    for title in ("precision by recall", "similarity of pairs", "Worst queries", "Best queries"):
        assert title in text
    assert 'class="hit"' in text and 'class="miss"' in text
    assert ("Classes taken for each other" in text) == (found.truth is None and not found.further)
    # The same files, read again where the embeddings are not at hand: the pairs' curves are left out.
    again = write_report(tmp_path, read_picture=png).read_text()
    assert "precision by recall" not in again and "Worst queries" in again


def test_a_result_that_shares_any_of_several_labels_is_right(tmp_path):
    found = several_labels()
    evaluation = evaluate({"toy": found})
    evaluation.write_queries(tmp_path / "queries.parquet")
    numbers = {"trained": evaluation.metrics, "protocols": evaluation.protocols}
    queries = read_queries(tmp_path / "queries.parquet", numbers)
    judging = judge(queries, numbers, {"toy": found})
    for row in range(len(queries)):
        kinds = judging.kinds(queries, row)
        first = kinds.index("hit") + 1 if "hit" in kinds else 0
        assert first == (queries["first_hit"][row] if queries["first_hit"][row] <= 5 else 0)
    assert (
        evaluation.metrics["toy"]["mP@5"]
        != evaluate({"toy": replace(found, further={})}).metrics["toy"]["mP@5"]
    )
