"""Recognition: one predicted label per image, or none, with a score (Google Landmarks, Met).

Some images show nothing that is known; a score should tell. Shapes: M images.
"""

from __future__ import annotations

import numpy as np

from guie.metrics.micro import Answers, average_precision, sorted_answers

# The label of an image that shows nothing known, and the prediction where there is none.
NOTHING = -1


def evaluate(predicted: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return GAP, GAP- and ACC of `predicted` (M,) int64 with `scores` (M,) against `labels` (M,) int64.

    Label -1: the image shows nothing known; prediction -1: none was made. Equal scores keep the order of the
    images, by key. Raises ValueError where no image has a label.
    """
    known = np.asarray(labels) != NOTHING
    correct = (np.asarray(predicted) == labels) & known
    return judged(correct, scores, known, np.asarray(predicted) != NOTHING)


def judged(
    correct: np.ndarray, scores: np.ndarray, known: np.ndarray, answered: np.ndarray
) -> dict[str, float]:
    """Return GAP, GAP- and ACC; arguments as in `gap`."""
    return {
        "GAP": gap(correct, scores, known, answered=answered),
        "GAP-": gap(correct, scores, known, answered=answered & known),
        "ACC": accuracy(correct, known),
    }


def gap(
    correct: np.ndarray, scores: np.ndarray, known: np.ndarray, *, answered: np.ndarray | None = None
) -> float:
    """Return GAP, micro-AP with one prediction per image (Weyand et al., CVPR 2020; Kaggle's tie rule).

    (1/M') sum over images i by falling score of P(i) correct(i); M' counts the `known` (M,) bool, the images
    that show something known. The others rank as mistakes; of equal scores the one given first is first.
    Images not `answered` (M,) bool are not ranked: without the unknown ones it is GAP-.
    """
    return average_precision(ranked_predictions(correct, scores, known, answered=answered))


def ranked_predictions(
    correct: np.ndarray, scores: np.ndarray, known: np.ndarray, *, answered: np.ndarray | None = None
) -> Answers:
    """Return the predictions as one list; arguments as in `gap`. Raises ValueError on a NaN score."""
    images = np.arange(len(known)) if answered is None else np.flatnonzero(answered)
    correct, scores = np.asarray(correct)[images], np.asarray(scores)[images]
    return sorted_answers(images, correct, scores, np.asarray(known, dtype=np.int64), ties="given")


def accuracy(correct: np.ndarray, known: np.ndarray) -> float:
    """Return ACC: the share of the `known` images (M,) bool whose prediction is `correct` (M,) bool."""
    if not np.any(known):
        raise ValueError("known: no image shows anything known; expected at least one")
    return float(np.asarray(correct)[np.asarray(known)].mean())
