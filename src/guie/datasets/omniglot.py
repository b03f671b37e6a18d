"""Omniglot (Lake et al. 2015): handwritten characters, and the official 20-way one-shot runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guie.datasets.manifest import Manifest, from_columns, open_manifest
from guie.errors import UserError

_RUNS = "one_shot_runs"
_TRAIN_SOURCE = "small1"  # five alphabets; the one-shot runs draw from ten others


@dataclass(frozen=True)
class OneShotRun:
    """One run: name the character of each test picture, given one picture of each of 20 characters.

    Files are relative to the data set's root, as in `omniglot_one_shot`. `answers` (20) are the training
    files that match the test files.
    """

    training: list[str]
    test: list[str]
    answers: list[str]


def omniglot(root: str, *, data_root: str) -> Manifest:
    """Return `root/labels.csv`: `train` is the five alphabets of small1, all other characters are `test`.

    The label is `alphabet/character`, the domain handwriting.

    Raises:
        UserError: no labels.csv, or no picture of small1 in it.

    """
    place = Path(root).expanduser()
    listed = open_manifest(
        place / "labels.csv",
        place,
        "omniglot",
        columns={"file": "path", "label": "label_name"},
        constants={"domain": "handwriting"},
        cache_dir=Path(data_root).expanduser() / ".guie",
    )
    sources = np.asarray(listed.table["source"].to_pylist())
    if not (sources == _TRAIN_SOURCE).any():
        raise UserError(
            f"{place / 'labels.csv'}: no row with source {_TRAIN_SOURCE!r}; accepted: at least one"
        )
    table = listed.table
    columns = {name: table[name] for name in ("file", "label", "domain", "alphabet", "drawer")}
    # characters drawn in small1 are never tested, whatever other source they have too
    seen = set(np.asarray(listed.label_names)[np.unique(listed.labels[sources == _TRAIN_SOURCE])])
    labels = table["label"].to_pylist()
    columns["split"] = ["train" if label in seen else "test" for label in labels]
    return from_columns("omniglot", place, columns)


def one_shot_runs(root: str | Path) -> list[OneShotRun]:
    """Return the 20 official runs of `root/one_shot_runs`, in order.

    Raises:
        UserError: no run there, or a list that names a picture not among the run's.

    """
    base = Path(root).expanduser() / _RUNS
    lists = sorted(base.glob("run*/class_labels.txt"))
    if not lists:
        raise UserError(
            f"omniglot root: no {base}/run*/class_labels.txt; accepted: the official one-shot runs"
        )
    return [_run(base, path) for path in lists]


def omniglot_one_shot(root: str, *, data_root: str) -> Manifest:
    """Return the pictures of all runs; each run is a domain: its training pictures are the index.

    So the official error (Lake et al. 2015) is one minus R@1 on each domain's own index, averaged.
    """
    del data_root
    columns: dict[str, list[str]] = {"file": [], "label": [], "domain": [], "split": []}
    for run in one_shot_runs(root):
        labels = [_label(file) for file in run.training + run.answers]
        columns["file"] += run.training + run.test
        columns["label"] += labels
        columns["domain"] += [label.split("/")[0] for label in labels]
        columns["split"] += ["index"] * len(run.training) + ["query"] * len(run.test)
    return from_columns("omniglot_one_shot", Path(root).expanduser(), columns)


def _label(training_file: str) -> str:
    _, run, _, name = training_file.split("/")
    return f"{run}/{Path(name).stem}"


def _run(base: Path, path: Path) -> OneShotRun:
    pairs = [line.split() for line in path.read_text().splitlines() if line.strip()]
    known = {file.relative_to(base).as_posix() for file in path.parent.glob("t*/*.png")}
    for pair in pairs:
        if len(pair) != 2 or not set(pair) <= known:
            raise UserError(
                f"{path}: line {' '.join(pair)!r}; accepted: a test and a training picture of the run"
            )
    training = sorted(f"{_RUNS}/{file}" for file in known if "/training/" in file)
    return OneShotRun(
        training, [f"{_RUNS}/{test}" for test, _ in pairs], [f"{_RUNS}/{match}" for _, match in pairs]
    )
