"""A run folder to report on."""

import json

import pytest
from reports import made_up

from guie.evaluate import evaluate


@pytest.fixture
def run(tmp_path):
    """Return a run folder as training and evaluation leave it."""
    found = evaluate({"toy": made_up()})
    floors = {"colour_histogram": evaluate({"toy": made_up(noise=3, seed=1)}).metrics}
    numbers = {"trained": found.metrics, "floors": floors, "seed": 3, "bad_images": 2}
    (tmp_path / "metrics.json").write_text(json.dumps(numbers))
    found.write_queries(tmp_path / "queries.parquet")
    lines = [json.dumps({"step": s, "loss": 9 / (s + 1), "lr": 0.1, "eval/mP@5": s / 40}) for s in range(40)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 40, "lo']))
    (tmp_path / "config.yaml").write_text("head:\n  _target_: guie.heads.margin.ArcFace\n  scale: 30\n")
    return tmp_path
