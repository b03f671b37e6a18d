import math

import pytest

from guie.train.schedule import lr_factor


def test_warm_up_rises_linearly_to_one():
    assert [lr_factor(step, 100, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_is_the_formula():
    for step in range(10, 100):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert lr_factor(step, 100, 10, "cosine", 0.1) == pytest.approx(expected)


def test_linear_and_constant():
    assert [lr_factor(step, 4, 0, "linear") for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert {lr_factor(step, 4, 0, "constant") for step in range(5)} == {1.0}


def test_a_run_of_one_step_learns():
    assert lr_factor(0, 1, 0, "cosine") == 1.0
