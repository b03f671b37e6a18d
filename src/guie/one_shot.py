"""Official Omniglot one-shot classification error (Lake, Salakhutdinov, Tenenbaum 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from guie.errors import UserError
from guie.types import Embeddings


class Run(NamedTuple):
    """One of the 20 runs: `training` files, `test` files, `answers`: for each test file its training file."""

    training: Sequence[str]
    test: Sequence[str]
    answers: Sequence[str]


def one_shot_error(embeddings: Embeddings, runs: Sequence[Run]) -> dict:
    """Return {"error": mean share of wrong nearest neighbours, "runs": [per run], "chance": ...}.

    Each test image is given the class of the training image of highest inner product in its run. Raises
    UserError naming the first file that has no embedding.
    """
    rows = {str(file): row for row, file in enumerate(embeddings.files)}
    errors = [_run_error(embeddings.vectors, rows, run) for run in map(Run._make, map(_fields, runs))]
    chance = 1 - float(np.mean([1 / len(_fields(run)[0]) for run in runs]))
    return {"error": float(np.mean(errors)), "runs": errors, "chance": chance}


def _fields(run: object) -> tuple:
    """Accept any object with the three attributes (the dataset's own type) or a plain tuple."""
    return run if isinstance(run, tuple) else (run.training, run.test, run.answers)  # type: ignore[attr-defined]


def _run_error(vectors: np.ndarray, rows: dict[str, int], run: Run) -> float:
    training, test = (vectors[[_row(rows, file) for file in files]] for files in (run.training, run.test))
    nearest = np.argmax(test @ training.T, axis=1)
    wrong = [run.training[i] != answer for i, answer in zip(nearest, run.answers, strict=True)]
    return float(np.mean(wrong))


def _row(rows: dict[str, int], file: str) -> int:
    if file not in rows:
        raise UserError(
            f"one-shot runs: {file} has no embedding; accepted: every file of the 20 runs embedded"
        )
    return rows[file]
