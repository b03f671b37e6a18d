"""guie-eval against=PATH: what changed is in the report; a wrong path stops before anything is done."""

import json
import subprocess
import sys

import pytest
from reports import made_up

from guie import embeddings
from guie.evaluate import evaluate


def guie_eval(*keys):
    command = [sys.executable, "-m", "guie.cli.eval", *keys]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def saved(tmp_path):
    embeddings.save(made_up(), tmp_path / "toy")
    weaker = evaluate({"toy": made_up(noise=2)})
    (tmp_path / "weaker").mkdir()
    weaker.write_queries(tmp_path / "weaker" / "queries.parquet")
    (tmp_path / "weaker" / "metrics.json").write_text(json.dumps({"trained": weaker.metrics}))
    return tmp_path


def test_saved_embeddings_are_compared_with_another_evaluation(saved):
    keys = f"embeddings={saved / 'toy'}", f"against={saved / 'weaker'}", f"out={saved / 'out'}"
    done = guie_eval(*keys)
    assert done.returncode == 0, done.stderr
    text = (saved / "out" / "report.html").read_text()
    for title in ("Against weaker", "Queries that gained most", "precision by recall", "similarity of pairs"):
        assert title in text


def test_an_evaluation_that_is_not_there_is_named_before_anything_is_written(saved):
    done = guie_eval(f"embeddings={saved / 'toy'}", "against=nowhere", f"out={saved / 'out'}")
    assert done.returncode == 2 and not (saved / "out").exists()
    assert "against: nowhere: no evaluation; accepted: one folder with queries.parquet" in done.stderr
