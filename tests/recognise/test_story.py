"""What guie-recognise makes of saved embeddings: its numbers are those of the protocol."""

import csv

import numpy as np
import pytest

from guie.evaluate import evaluate
from guie.protocols.recognition import Recognition
from guie.recognise import story
from guie.recognise.pipeline import Recogniser
from guie.types import Embeddings

QUERIES, INDEX = 40, 30


@pytest.fixture
def part():
    """Return queries with several landmarks, distractors and ignored ones among them."""
    r = np.random.default_rng(0)
    index = r.choice([*"12345", "distractor"], INDEX)
    asked = r.choice(list("12345"), (QUERIES, 2)).astype(object)
    asked[::5] = "distractor"
    further = {
        "landmarks": ["" if first == "distractor" else f"{first} {second}" for first, second in asked],
        "usage": r.choice(["public", "private", "ignored"], QUERIES),
    }
    rows = QUERIES + INDEX
    return Embeddings(
        r.standard_normal((rows, 8)).astype(np.float32),
        files=np.array([f"{i}.jpg" for i in range(rows)], dtype=object),
        labels=np.array([*asked[:, 0], *index], dtype=object),
        domains=np.full(rows, "", dtype=object),
        splits=np.array(["query"] * QUERIES + ["index"] * INDEX, dtype=object),
        space_id="s",
        further={name: np.array([*column, *[""] * INDEX], dtype=object) for name, column in further.items()},
    )


def test_numbers_are_those_of_the_protocol(part, tmp_path):
    expected = evaluate(part, Recognition(k=3)).metrics["data"]
    found = story.predicted(Recogniser(neighbours=3), story.views_of({"all": part}), tmp_path)
    numbers = story.scored(found, part)
    assert numbers.keys() >= {"GAP", "GAP-", "ACC", "GAP public", "ACC private"}
    assert numbers == pytest.approx({name: expected[name] for name in numbers}, rel=1e-6)


def test_where_the_gallery_s_distractors_win_nothing_is_predicted(part, tmp_path):
    story.predicted(Recogniser(neighbours=1), story.views_of({"all": part}), tmp_path)
    with (tmp_path / story.FILE).open() as file:
        labels = {row["label"] for row in csv.DictReader(file)}
    assert labels <= {"", *"12345"} and "" in labels


class Watched:
    """A confidence model that keeps what it is trained on."""

    def fit(self, evidence, truth):
        self.evidence, self.truth = evidence, truth


def test_a_judge_is_told_any_of_a_query_s_landmarks_and_of_distractors_none(part):
    judge, gallery = Watched(), part.labels[QUERIES:].tolist()
    names = list(dict.fromkeys(gallery))
    Recogniser(confidence=judge).fit(story.views_of({"all": part}), story.truth_of(part))
    for q, label in enumerate(judge.truth.tolist()):
        right = [names.index(name) for name in part.further["landmarks"][q].split() if name in names]
        best = [c for c in judge.evidence.votes.labels[q].tolist() if c in right]
        assert label == (best[0] if best else right[0] if right else -1)
    assert (judge.truth[::5] == -1).all() and (judge.truth >= 0).sum() == QUERIES * 4 // 5
