"""Bootstrap intervals against theory."""

import numpy as np
import pytest

from guie.metrics.bootstrap import bootstrap_interval, paired_bootstrap, percentile_interval


@pytest.mark.parametrize("few_values", [True, False])
def test_the_bootstrap_interval_has_the_width_of_theory(few_values):
    r = np.random.default_rng(0)
    values = r.integers(5, size=2000) / 5 if few_values else r.normal(size=2000)
    low, high = bootstrap_interval(values, samples=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)


def test_very_many_values_are_drawn_in_groups_with_the_same_distribution():
    # Skewed, half of it zero, a few large: what differences of two systems look like.
    r = np.random.default_rng(0)
    size = r.choice([-1, 1], 12_000) * r.lognormal(sigma=1.5, size=12_000)
    values = np.where(r.random(12_000) < 0.5, 0.0, size)
    one_by_one = np.array([values[r.integers(12_000, size=12_000)].mean() for _ in range(3000)])
    low, high = bootstrap_interval(values, samples=20_000)
    expected = percentile_interval(one_by_one)
    assert (low, high) == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02 * (high - low))


def test_a_paired_difference_is_found_where_separate_intervals_overlap():
    r = np.random.default_rng(0)
    b = r.random(500)
    a = b + 0.01 + 0.02 * r.standard_normal(500)
    difference, low, high = paired_bootstrap(a, b, samples=2000, seed=1)
    assert difference == pytest.approx(np.mean(a - b)) and 0 < low < difference < high
    assert bootstrap_interval(a)[0] < bootstrap_interval(b)[1]


def test_paired_bootstrap_is_deterministic_and_refuses_other_queries():
    a, b = np.arange(10.0), np.ones(10)
    assert paired_bootstrap(a, b, seed=3) == paired_bootstrap(a, b, seed=3)
    with pytest.raises(ValueError, match="the same queries"):
        paired_bootstrap(a, b[:5])
