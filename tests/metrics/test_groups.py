"""Means over groups of queries."""

import numpy as np
import pytest

from guie.metrics.groups import group_means, mean, mean_of_groups, usage_means


def test_a_query_that_does_not_count_changes_no_mean():
    assert mean(np.array([1.0, np.nan, 0.0])) == 0.5
    assert np.isnan(mean(np.array([np.nan]))) and np.isnan(mean(np.empty(0)))


def test_the_mean_of_groups_weighs_small_groups_like_large_ones():
    values, groups = np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]
    assert group_means(values, groups) == {"a": 1.0, "b": 0.0}
    assert mean_of_groups(values, groups) == 0.5 and mean(values) == 0.75


def test_ignored_queries_count_neither_as_public_nor_as_private():
    values = np.array([0.2, 0.4, 0.9, 1.0])
    assert usage_means(values, ["public", "public", "private", "ignored"]) == pytest.approx(
        {"public": 0.3, "private": 0.9}
    )
    assert usage_means(values, ["public"] * 3 + ["ignored"]) == {"public": 0.5}


def test_another_usage_is_refused():
    with pytest.raises(ValueError, match="usage: 'Public'; expected public, private or ignored"):
        usage_means(np.zeros(1), ["Public"])
