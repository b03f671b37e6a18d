"""One-shot error on runs small enough to count by hand."""

import numpy as np
import pytest

from guie.errors import UserError
from guie.one_shot import Run, one_shot_error
from guie.types import Embeddings

FILES = ["a", "b", "c", "p", "q", "r"]
VECTORS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0], [0.6, 0.5, 0], [0, 0.2, 0.9]], np.float32)
RUN = Run(training=["a", "b", "c"], test=["p", "q", "r"], answers=["a", "b", "c"])


def embedded():
    strings = {name: np.array(FILES) for name in ("files", "labels", "domains", "splits")}
    return Embeddings(VECTORS, space_id="s", **strings)


def test_the_error_is_the_share_of_wrong_nearest_neighbours():
    result = one_shot_error(embedded(), [RUN, RUN._replace(answers=["a", "a", "c"])])
    assert result["runs"] == pytest.approx([1 / 3, 0])
    assert result["error"] == pytest.approx(1 / 6) and result["chance"] == pytest.approx(2 / 3)


def test_a_file_without_embedding_is_named():
    with pytest.raises(UserError, match="z has no embedding"):
        one_shot_error(embedded(), [RUN._replace(test=["p", "z", "r"])])
