"""Several models as one: joined by definition, averaged only where they share a space, told apart by name."""

import itertools

import numpy as np
import pytest

from guie.embed import ensemble, several
from guie.embed.ensemble import Ensemble, agreement
from guie.errors import UserError


def unit(rows, dim, seed=0):
    made = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def near(vectors, noise, seed=1):
    """Return what another model of the same space may give for the same pictures."""
    return vectors + noise * unit(*vectors.shape, seed)


def test_an_average_is_the_sum_of_unit_vectors_times_weight_of_unit_length():
    parts = {"a": 3 * unit(9, 4), "b": unit(9, 4, seed=1)}
    found = Ensemble({"a": 0.7, "b": 2.0}, "average").joined(parts)
    assert found.dtype == np.float32
    for row in range(9):
        lengths = [sum(float(x) ** 2 for x in part[row]) ** 0.5 for part in parts.values()]
        numbers = zip(parts["a"][row].tolist(), parts["b"][row].tolist(), strict=True)
        total = [0.7 * x / lengths[0] + 2.0 * y / lengths[1] for x, y in numbers]
        length = sum(x**2 for x in total) ** 0.5
        np.testing.assert_allclose(found[row], [x / length for x in total], rtol=1e-5, atol=1e-7)


def test_a_model_alone_stays_as_it_is():
    alone = 3 * unit(5, 4)
    np.testing.assert_array_equal(Ensemble({"": 2.0}).joined({"": alone}), alone)
    assert Ensemble({"": 2.0}).space_id({"": "space"}) == "space"


def test_agreement_is_the_correlation_of_the_numbers_around_their_means():
    one = unit(200, 6) + np.float32(0.3)
    other = near(one, 0.8)
    units = [part / np.linalg.norm(part.astype(np.float64), axis=1, keepdims=True) for part in (one, other)]
    whole = np.cov(np.concatenate(units, axis=1).T, bias=True)
    expected = np.trace(whole[:6, 6:]) / np.sqrt(np.trace(whole[:6, :6]) * np.trace(whole[6:, 6:]))
    assert agreement(one, other) == pytest.approx(expected, rel=1e-9)
    assert agreement(one, 5 * one) == pytest.approx(1)
    assert abs(agreement(one, np.ones_like(one))) < 1e-3


def test_a_space_that_is_turned_is_another_one():
    one = unit(2000, 32)
    turned = one @ np.linalg.qr(np.random.default_rng(5).standard_normal((32, 32)))[0].astype(np.float32)
    np.testing.assert_allclose(one @ one.T, turned @ turned.T, atol=1e-5)
    assert abs(agreement(one, turned)) < 0.1


def test_models_are_averaged_where_every_two_agree_and_the_pair_that_does_not_is_named():
    one = unit(300, 16)
    shared = {"a": one, "b": near(one, 0.3, 1), "c": near(one, 0.3, 2)}
    average = Ensemble(dict.fromkeys(shared, 1.0), "average")
    pairs = itertools.combinations(shared.values(), 2)
    assert average.check_shared(shared) == pytest.approx(min(agreement(*pair) for pair in pairs))
    apart = shared | {"b": unit(300, 16, seed=9)}
    said = (
        r"^combine: average of [ab] and [bc], whose .* agree by -?0\.0\d; accepted: 0\.5 or more \(runs that"
    )
    with pytest.raises(UserError, match=said):
        average.check_shared(apart)
    assert average.averages and not Ensemble(average.weights).averages
    assert not Ensemble({"a": 1.0}, "average").averages


def test_a_model_that_gives_all_pictures_one_vector_agrees_with_none():
    found = {"a": unit(40, 4), "b": np.ones((40, 4))}
    with pytest.raises(UserError, match=r"agree by -?0\.00; accepted: 0\.5 or more"):
        Ensemble({"a": 1.0, "b": 1.0}, "average").check_shared(found)


def test_a_few_pictures_do_not_tell_whether_models_share_a_space():
    found = dict.fromkeys("ab", unit(29, 4))
    with pytest.raises(
        UserError, match=r"^combine: average judged by 29 pictures; accepted: 30 or more, or con"
    ):
        Ensemble({"a": 1.0, "b": 1.0}, "average").check_shared(found)


@pytest.mark.parametrize("count", [0, 1, 7, 499, 501, 100_000])
def test_pictures_to_judge_by_are_drawn_evenly_from_each_set(count):
    rows = several._drawn(count, 3)
    assert len(rows) == min(count, 166) and len({*rows.tolist()}) == len(rows)
    assert all(rows[1:] > rows[:-1]) and all(rows < count)
    if count > 1:
        assert rows[0] == 0 and rows[-1] >= count - count / len(rows) - 1


def test_models_of_two_widths_stand_side_by_side_but_are_not_averaged():
    widths = {"a": 8, "b": 6}
    assert Ensemble({"a": 1.0, "b": 1.0}).width(widths) == 14
    with pytest.raises(
        UserError, match=r"^combine: average of a 8-d, b 6-d; accepted: models of one width, or c"
    ):
        Ensemble({"a": 1.0, "b": 1.0}, "average").width(widths)
    with pytest.raises(UserError, match=r"^combine: average of a 8-d, b 6-d"):
        Ensemble({"a": 1.0, "b": 1.0}, "average").check_shared({"a": unit(40, 8), "b": unit(40, 6)})
    assert Ensemble({"a": 1.0, "b": 1.0}, "average").width({"a": 8, "b": 8}) == 8


def test_order_weight_and_how_models_are_joined_each_make_a_space_of_their_own():
    spaces = {"a": "one", "b": "two"}
    turned = {"b": "two", "a": "one"}
    names = [
        Ensemble({"a": weight, "b": 1.0}, combine).space_id(order)
        for weight in (1.0, 2.0)
        for combine in ("concat", "average")
        for order in (spaces, turned, {"a": "one", "b": "three"})
    ]
    assert len({*names, *spaces.values()}) == len(names) + 2


def test_how_models_are_joined_is_chosen_by_name():
    assert ensemble.chosen({"a": 2}, "average", ["a", "b"]) == Ensemble({"a": 2.0, "b": 1.0}, "average")
    with pytest.raises(UserError, match=r"^combine: 'mean'; accepted: concat, average"):
        ensemble.chosen(None, "mean", ["a"])
