"""How sure a prediction is, by boosted trees trained on queries whose answer is known (extra `gbdt`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from guie import launch
from guie.durable import replace_file
from guie.errors import UserError
from guie.metrics.recognition import gap
from guie.metrics.votes import Votes
from guie.recognise.evidence import Evidence, features

FORMAT = 1
FILE = "confidence.json"

# Those of the second place of Landmark Recognition 2020.
TREES: dict[str, Any] = {
    "objective": "multiclass",
    "learning_rate": 0.1,
    "num_leaves": 7,
    "max_depth": 3,
    "min_data_in_leaf": 100,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "feature_fraction": 0.8,
}


class Boosted:
    """Chooses among the first `choices` candidates; its score is the probability of being right.

    One class per candidate and one for none of them. For each of `seeds` random cuts of the queries into
    `folds`, trees are trained on all folds but one, at most `rounds`, until the loss on that one has not
    fallen for `patience`; the `kept` cuts of the highest GAP on what was left out are averaged. Where
    another class wins, the answer is the first candidate with its own probability. `path`: the folder of a
    trained model. LightGBM (Ke et al., NeurIPS 2017).
    """

    def __init__(
        self,
        choices: int = 2,
        folds: int = 5,
        seeds: int = 10,
        kept: int = 5,
        rounds: int = 300,
        patience: int = 50,
        path: str | None = None,
    ):
        self.choices, self.folds, self.seeds, self.kept = choices, folds, seeds, kept
        self.rounds, self.patience = rounds, patience
        for name in ("choices", "folds", "seeds", "kept", "rounds", "patience"):
            _check(name, getattr(self, name), 2 if name == "folds" else 1)
        self.gaps: list[float] = []
        self._columns: list[str] = []
        self._made_by: dict[str, Any] = {}
        self._trees: list[Any] = []
        if path:
            self.load(path)

    def fit(self, evidence: Evidence, truth: np.ndarray) -> None:
        """Train on queries of label `truth` (Q,) int64, -1: nothing known; `gaps` are the GAP of each cut."""
        known = truth >= 0
        if len(truth) < self.folds or not known.any():
            count = f"{len(truth)} queries, {known.sum()} with a label"
            raise UserError(f"confidence: {count}; accepted: {self.folds} or more, some with a label")
        table, right = features(evidence), answers(evidence.votes, truth)
        rows = np.stack(list(table.values()), axis=1)
        cut = partial(self._cut, rows, right, evidence.votes.labels.shape[1] + 1)
        with ThreadPoolExecutor(
            len(launch.cores())
        ) as pool:  # one thread each: LightGBM's own wait for each other
            cuts, left_out = zip(*pool.map(cut, range(self.seeds)), strict=True)
        self.gaps = []
        for shares in left_out:
            labels, scores = chosen(evidence.votes, shares, self.choices)
            self.gaps.append(gap((labels == truth) & known, scores, known, answered=labels >= 0))
        best = np.argsort([-value for value in self.gaps], kind="stable")[: self.kept]
        self._made_by = dict(evidence.made_by)
        self._columns, self._trees = list(table), [tree for place in best for tree in cuts[place]]

    def choose(self, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """Return the label (Q,) int64, -1 where nobody voted, and its probability (Q,) float32.

        Raises UserError where it is not trained, or by other settings, models or embedding spaces.
        """
        if not self._trees:
            raise UserError("confidence: not trained; accepted: path=FOLDER of a trained one, or training")
        for key, then in self._made_by.items():
            if (now := evidence.made_by.get(key)) != then:
                raise UserError(f"confidence: {key}: {now}; accepted: {then}, as it was trained with")
        table = features(evidence)
        if list(table) != self._columns:
            odd = sorted(set(table) ^ set(self._columns)) or ["their order"]
            raise UserError(f"confidence: trained on other columns ({odd[0]}); accepted: the same models")
        rows = np.stack(list(table.values()), axis=1)
        return chosen(
            evidence.votes,
            np.mean([tree.predict(rows, num_threads=1) for tree in self._trees], axis=0),
            self.choices,
        )

    def save(self, folder: str | Path) -> Path:
        """Write the trained model and return `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = [tree.model_to_string() for tree in self._trees]
        plain = {"format": FORMAT, "columns": self._columns, "made_by": self._made_by}
        plain |= {"gaps": self.gaps, "trees": texts}
        replace_file(folder / FILE, json.dumps(plain).encode())
        return folder

    def load(self, folder: str | Path) -> None:
        """Take over a trained model; UserError where the folder holds none."""
        path = Path(folder).expanduser() / FILE
        try:
            plain = json.loads(path.read_bytes())
            if plain["format"] != FORMAT:
                raise ValueError(f"format {plain['format']}")
            texts, self._columns, self.gaps = plain["trees"], plain["columns"], plain["gaps"]
            self._made_by = dict(plain["made_by"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"confidence.path: {path} ({error}); accepted: what guie wrote") from error
        self._trees = [lightgbm().Booster(model_str=text) for text in texts]

    def _cut(
        self, rows: np.ndarray, right: np.ndarray, classes: int, seed: int
    ) -> tuple[list[Any], np.ndarray]:
        """Return the trees of one cut, and the probabilities (Q, classes) of what they did not see."""
        trees, left_out = [], np.zeros((len(rows), classes))
        for inside, outside in folds_of(len(rows), self.folds, seed):
            trees.append(self._trained(rows, right, classes, (inside, outside), seed))
            left_out[outside] = trees[-1].predict(rows[outside], num_threads=1)
        return trees, left_out

    def _trained(
        self,
        rows: np.ndarray,
        right: np.ndarray,
        classes: int,
        parts: tuple[np.ndarray, np.ndarray],
        seed: int,
    ) -> Any:
        """Return the trees of the first part's rows, as many as the second part likes."""
        lgb = lightgbm()
        train, watched = (lgb.Dataset(rows[part], right[part], free_raw_data=True) for part in parts)
        settings = {"num_class": classes, "seed": seed, "num_threads": 1, "verbosity": -1}
        stop = lgb.early_stopping(self.patience, verbose=False)
        exact = {"deterministic": True, "force_col_wise": True}
        return lgb.train(
            {**TREES, **settings, **exact}, train, self.rounds, valid_sets=[watched], callbacks=[stop]
        )


def answers(votes: Votes, truth: np.ndarray) -> np.ndarray:
    """Return (Q,) int64: which candidate is the true label (Q,), T where none is."""
    same = (votes.labels == truth[:, None]) & (truth >= 0)[:, None]
    return np.where(same.any(axis=1), same.argmax(axis=1), votes.labels.shape[1])


def chosen(votes: Votes, shares: np.ndarray, choices: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores (Q,) by probabilities (Q,T+1): see `Boosted`."""
    place = shares.argmax(axis=1)
    rows = np.arange(len(place))
    allowed = place < min(choices, votes.labels.shape[1])
    place = np.where(allowed, place, 0)
    place = np.where(votes.labels[rows, place] >= 0, place, 0)
    labels = votes.labels[rows, place]
    return labels, np.where(labels >= 0, shares[rows, place], 0).astype(np.float32)


def folds_of(rows: int, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows inside, rows left out) of each fold: each row is left out once, folds differ by one row."""
    order = np.random.default_rng(seed).permutation(rows)
    for part in np.array_split(order, folds):
        inside = np.ones(rows, dtype=bool)
        inside[part] = False
        yield np.flatnonzero(inside), np.sort(part)


def lightgbm() -> Any:
    """Return LightGBM; UserError with the cure where it is not installed."""
    try:
        import lightgbm as found
    except ImportError as error:
        raise UserError("confidence: Boosted needs lightgbm: pip install 'guie[gbdt]'") from error
    return found


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"confidence.{name}: {value}; accepted: {least} or more")
