import numpy as np
import pytest

from guie.data.buckets import AspectBuckets, aspects
from guie.data.draws import permutation, uniforms
from guie.data.sampling import (
    DomainRoundRobin,
    DomainWeighted,
    PerClass,
    Rounds,
    Shuffled,
    oriented,
    rank_slots,
)
from guie.datasets.manifest import from_columns
from guie.errors import UserError

RNG = np.random.default_rng(0)


def facts(labels, domains=None, batch_size=12, seed=3):
    domains = np.zeros_like(labels) if domains is None else domains
    return {"labels": labels, "domains": domains, "batch_size": batch_size, "seed": seed}


def test_uniforms_are_uniform_and_uncorrelated():
    u = uniforms(1, 2, np.arange(4000), 8)
    assert u.min() >= 0 and u.max() < 1
    counts, _ = np.histogram(u, bins=20, range=(0, 1))
    assert ((counts - 1600) ** 2 / 1600).sum() < 45  # chi square, 19 degrees of freedom: 99.9 % is 43.8
    assert np.abs(np.corrcoef(u.T) - np.eye(8)).max() < 0.06
    steps = np.concatenate([uniforms(1, step, np.arange(1), 1)[0] for step in range(2000)])
    assert abs(np.corrcoef(steps[1:], steps[:-1])[0, 1]) < 0.07


def test_uniforms_do_not_depend_on_slicing_or_on_how_many_are_asked():
    whole = uniforms(5, 9, np.arange(64), 10)
    np.testing.assert_array_equal(whole[32:48], uniforms(5, 9, np.arange(32, 48), 10))
    np.testing.assert_array_equal(whole[:, :4], uniforms(5, 9, np.arange(64), 4))
    assert not np.allclose(whole, uniforms(6, 9, np.arange(64), 10))
    assert not np.allclose(whole, uniforms(5, 10, np.arange(64), 10))


def test_uniforms_never_change_between_versions():
    known = [[0.0919639401262835, 0.16213408626165982], [0.9581024100428656, 0.5933118475566092]]
    np.testing.assert_allclose(uniforms(0, 0, np.array([0, 1]), 2), known, rtol=0, atol=1e-15)


def test_shuffled_shows_every_row_once_per_epoch_in_a_new_order():
    sampler = Shuffled(**facts(np.arange(48)))
    first, second = (np.concatenate([sampler.batch(e * 4 + s) for s in range(4)]) for e in range(2))
    assert sorted(first) == sorted(second) == list(range(48))
    assert (first != second).any()


def test_shuffled_repeats_each_row_side_by_side_where_views_are_asked_for():
    sampler = Shuffled(views=2, **facts(np.arange(48)))
    rows = np.concatenate([sampler.batch(step) for step in range(sampler.steps_per_epoch)])
    np.testing.assert_array_equal(rows[::2], rows[1::2])
    assert sorted(rows[::2]) == list(range(48))
    with pytest.raises(UserError, match=r"sampler.views: 5 in a batch of \d+; accepted: a divisor"):
        Shuffled(views=5, **facts(np.arange(48)))


def test_shuffled_fills_a_batch_larger_than_the_data():
    rows = Shuffled(**facts(np.arange(5))).batch(7)
    assert len(rows) == 12 and set(rows) == set(range(5))


@pytest.mark.parametrize(
    "make",
    [
        Shuffled,
        PerClass,
        DomainRoundRobin,
        lambda **f: PerClass(1, **f),
        lambda **f: DomainWeighted(**f, domain_names=["a", "b"]),
        lambda **f: AspectBuckets(**{k: f[k] for k in f if k != "domains"}, aspects=f["labels"] / 10 + 0.1),
    ],
)
def test_a_batch_is_a_function_of_the_step_alone(make):
    labels = RNG.integers(0, 20, 200)
    known = facts(labels, labels % 2)
    ahead, jumped = make(**known), make(**known)
    wanted = [ahead.batch(step) for step in range(60)][57]
    np.testing.assert_array_equal(jumped.batch(57), wanted)
    assert (make(**{**known, "seed": 4}).batch(57) != wanted).any()


def test_per_class_gives_k_images_of_p_distinct_classes():
    labels = np.repeat(np.arange(11), RNG.integers(1, 9, 11))
    sampler = PerClass(k=4, **facts(labels))
    for step in range(200):
        groups = labels[sampler.batch(step)].reshape(3, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 3


def test_per_class_repeats_images_only_of_classes_that_have_too_few():
    labels = np.repeat(np.arange(10), [2, 4, 5, 6, 7, 8, 9, 4, 4, 1])
    sampler = PerClass(k=4, **facts(labels))
    for step in range(100):
        for rows in sampler.batch(step).reshape(3, 4):
            assert len(set(rows)) == min(4, (labels == labels[rows[0]]).sum())


@pytest.mark.parametrize("classes", [10, 11, 37])
def test_per_class_visits_every_class_as_often_as_any_other(classes):
    labels = np.repeat(np.arange(classes), RNG.integers(4, 30, classes))
    sampler = PerClass(k=4, **facts(labels))
    visits = np.bincount(
        np.concatenate([labels[sampler.batch(s)][::4] for s in range(50)]), minlength=classes
    )
    assert visits.max() - visits.min() <= 1


def test_per_class_shows_all_images_of_a_class_equally_often():
    labels = np.repeat(np.arange(9), 8)
    sampler = PerClass(k=4, **facts(labels))
    shown = np.bincount(np.concatenate([sampler.batch(step) for step in range(3 * 2 * 5)]))
    assert (shown == 5).all()


def test_per_class_by_power_1_follows_the_class_sizes():
    labels = np.repeat(np.arange(40), [40] * 20 + [4] * 20)
    sampler = PerClass(k=2, power=1.0, **facts(labels, batch_size=4))
    visits = np.bincount(np.concatenate([labels[sampler.batch(s)][::2] for s in range(1500)]), minlength=40)
    assert 7 < visits[:20].sum() / visits[20:].sum() < 13


def test_per_class_shows_each_image_as_often_as_views_say():
    labels = np.repeat(np.arange(6), 8)
    sampler = PerClass(k=2, views=3, **facts(labels))
    rows = sampler.batch(4).reshape(2, 2, 3)  # classes, images, views
    assert (rows == rows[:, :, :1]).all()
    assert len(np.unique(rows)) == 4
    assert (labels[rows] == labels[rows[:, :1, :1]]).all()
    assert sampler.steps_per_epoch == 12


def test_per_class_says_what_it_cannot_do():
    labels = np.repeat(np.arange(2), 9)
    with pytest.raises(
        UserError, match=r"sampler.k: 5 images per class, views 1, in a batch of 12; accepted: k x views a"
    ):
        PerClass(k=5, **facts(labels))


def test_per_class_takes_more_images_where_classes_are_few():
    labels = np.repeat(np.arange(2), 9)
    sampler = PerClass(k=4, **facts(labels))
    assert (sampler.k, sampler.classes_per_batch) == (6, 2)
    assert np.bincount(labels[sampler.batch(3)]).tolist() == [6, 6]


def test_domain_weights_are_kept_in_every_batch():
    domains = np.repeat([0, 1, 2], [700, 200, 100])
    sampler = DomainWeighted(
        {"b": 2.0, "c": 1.0, "a": 1.0}, **facts(domains, domains), domain_names=list("abc")
    )
    for step in range(40):
        counts = np.bincount(domains[sampler.batch(step)], minlength=3)
        assert np.abs(counts - [3, 6, 3]).max() <= 1


def test_domain_power_one_is_as_the_rows_are_and_zero_makes_all_alike():
    domains = np.repeat([0, 1], [900, 100])
    for power, share in ((1.0, 0.1), (0.0, 0.5), (0.5, 0.25)):
        known = facts(domains, domains)
        sampler = DomainWeighted(power=power, **known, domain_names=["a", "b"])
        seen = np.concatenate([domains[sampler.batch(step)] for step in range(200)])
        assert abs(seen.mean() - share) < 0.01


def test_domain_rows_go_round_evenly():
    domains = np.repeat([0, 1], [30, 6])
    sampler = DomainWeighted({"a": 1, "b": 1}, **facts(domains, domains), domain_names=["a", "b"])
    shown = np.bincount(np.concatenate([sampler.batch(step) for step in range(50)]))
    assert shown[:30].max() - shown[:30].min() <= 1 and shown[30:].max() - shown[30:].min() <= 1


def test_domain_weights_name_the_domain_that_does_not_exist():
    labels = np.zeros(20, int)
    with pytest.raises(UserError, match=r"sampler.weights: unknown domain 'fod'; accepted: food, logo"):
        DomainWeighted({"fod": 1.0}, **facts(labels), domain_names=["food", "logo"])
    with pytest.raises(UserError, match=r"sampler.weights.food: -1; accepted: 0 or more"):
        DomainWeighted({"food": -1}, **facts(labels), domain_names=["food"])


def test_a_domain_of_weight_zero_never_comes():
    domains = np.repeat([0, 1], 20)
    sampler = DomainWeighted({"a": 0.0}, **facts(domains, domains), domain_names=["a", "b"])
    assert all((domains[sampler.batch(step)] == 1).all() for step in range(20))


def test_one_image_per_class_makes_every_class_as_likely():
    labels = np.repeat(np.arange(40), RNG.integers(1, 60, 40))
    sampler = PerClass(k=1, **facts(labels))
    visits = np.bincount(np.concatenate([labels[sampler.batch(step)] for step in range(100)]), minlength=40)
    assert visits.tolist() == [30] * 40


def test_domains_in_turn_have_a_batch_each_before_any_has_another():
    domains = np.repeat([0, 1, 2], [700, 20, 100])
    sampler = DomainRoundRobin(**facts(domains, domains))
    seen = [domains[sampler.batch(step)] for step in range(90)]
    assert all((batch == batch[0]).all() for batch in seen)
    order = np.array([batch[0] for batch in seen]).reshape(30, 3)
    assert (np.sort(order, axis=1) == [0, 1, 2]).all() and len(np.unique(order, axis=0)) > 2
    shown = np.bincount(np.concatenate([sampler.batch(step) for step in range(90)]), minlength=820)
    for domain in range(3):
        assert np.ptp(shown[domains == domain]) <= 1


def test_rounds_show_all_of_a_group_before_any_again():
    groups = np.array([1, 0, 1, 1, 3])
    rounds = Rounds(groups, 0)
    assert rounds.sizes.tolist() == [1, 3, 0, 1]
    together = np.concatenate([rounds.take(1, first, 2) for first in range(0, 60, 2)]).reshape(20, 3)
    assert (np.sort(together, axis=1) == [0, 2, 3]).all() and len(np.unique(together, axis=0)) == 6
    np.testing.assert_array_equal(rounds.take(1, 4, 5), Rounds(groups, 0).take(1, 0, 9)[4:])
    assert rounds.take(3, 7, 2).tolist() == [4, 4] and rounds.take(2, 0, 0).tolist() == []


def test_buckets_come_by_their_share_and_their_rows_go_round():
    shape = np.repeat([0.5, 0.7, 1.0, 1.4, 2.0], [30, 100, 600, 250, 20])
    sampler = AspectBuckets(labels=np.zeros(1000, int), aspects=shape, batch_size=10, seed=3)
    seen = [sampler.batch(step) for step in range(500)]
    assert all(np.ptp(shape[batch]) == 0 for batch in seen)
    sizes = {0.5: (352, 512), 0.7: (384, 512), 1.0: (448, 448), 1.4: (512, 384), 2.0: (512, 352)}
    assert all(sampler.size_px(step) == sizes[shape[rows[0]]] for step, rows in enumerate(seen))
    shown = np.bincount(np.concatenate(seen), minlength=1000)
    for value, size in ((0.5, 30), (0.7, 100), (1.0, 600), (1.4, 250), (2.0, 20)):
        assert np.ptp(shown[shape == value]) <= 1
        assert abs(shown[shape == value].sum() / 10 - size * 5 / 10) <= 3  # steps
    assert sampler.batch(3).tolist() == seen[3].tolist()  # also backwards


def test_buckets_that_are_missing_never_come():
    shape = np.repeat([1.0, 1.4], [30, 10])
    sampler = AspectBuckets(labels=np.zeros(40, int), aspects=shape, batch_size=10, seed=0)
    assert {sampler.size_px(step) for step in range(50)} == {(448, 448), (512, 384)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aspects": None}, r"AspectBuckets needs each picture's size; accepted: .* width and height"),
        ({"aspects": np.array([1.0, 0.0])}, r"AspectBuckets needs each picture's size"),
        (
            {"edges": (1.5, 0.5), "sizes": [(8, 8)] * 3},
            r"sampler\.edges: \[1\.5, 0\.5\]; accepted: .* rising",
        ),
        ({"edges": (1.0,)}, r"sampler\.sizes: .*; accepted: 2 pairs"),
    ],
)
def test_buckets_say_what_they_cannot_do(options, message):
    with pytest.raises(UserError, match=message):
        AspectBuckets(**{"labels": np.zeros(2), "aspects": np.ones(2), "batch_size": 2, "seed": 0} | options)


def test_aspects_are_height_over_width_and_0_where_nobody_knows():
    columns = {"file": ["a", "b", "c"], "label": ["x"] * 3}
    assert aspects(from_columns("plain", "/data", columns)) is None
    sized = from_columns(
        "sized", "/data", columns | {"width": ["40", "30", None], "height": ["30", "0", "2"]}
    )
    assert aspects(sized).tolist() == [0.75, 0, 0]
    odd = from_columns("odd", "/data", columns | {"width": ["wide", "1", "1"], "height": ["1", "1", "1"]})
    assert aspects(odd).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 1)])
def test_ranks_and_pieces_make_up_the_same_global_batch(world, accumulate):
    pieces = [rank_slots(12, rank, world, accumulate) for rank in range(world)]
    together = np.stack(pieces, axis=1).reshape(-1)
    np.testing.assert_array_equal(together, np.arange(12))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(
        UserError, match=r"trainer.batch_size: 10 over 4 ranks x 1 .* accepted: a multiple of 4"
    ):
        rank_slots(10, 0, 4)


def test_orientations_make_several_classes_of_one():
    np.testing.assert_array_equal(oriented(np.array([2, 0]), 4), [8, 9, 10, 11, 0, 1, 2, 3])


def test_permutation_is_a_permutation_and_changes_by_epoch():
    assert sorted(permutation(1, 2, 9)) == list(range(9))
    assert (permutation(1, 2, 99) != permutation(1, 3, 99)).any()


def test_permutations_never_change_and_are_the_same_in_fewer_bytes():
    assert permutation(0, 0, 9).tolist() == KNOWN_ORDER
    for size in (9, 1000, 70_000):
        wanted = np.random.Generator(np.random.Philox(key=[3, 4])).permutation(size)
        np.testing.assert_array_equal(permutation(3, 4, size), wanted)
        np.testing.assert_array_equal(permutation(3, 4, size, np.int32), wanted)


KNOWN_ORDER = [0, 6, 7, 5, 8, 1, 3, 2, 4]
