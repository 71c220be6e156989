"""The paired bootstrap against plain loops, and its intervals against differences that are known."""
import numpy as np
import pytest

import bootstrap
from bootstrap import QueryScores, count_again, mean_of_means, paired_difference, weigh_again


def scores(ap: np.ndarray, pids: np.ndarray, first: np.ndarray | None = None) -> QueryScores:
    """Of one feature: ap (T, Q), pids (Q,), first ranks (T, Q), 1 where they are left out."""
    draws = np.repeat(np.arange(len(ap)), ap.shape[1]).astype(np.int16)
    first = np.ones(ap.shape) if first is None else first
    return QueryScores(draws, np.tile(pids, len(ap)), {"pool": first.reshape(-1).astype(np.int32)},
                       {"pool": ap.reshape(-1).astype(np.float32)})


def test_sums_of_draws_and_persons_equal_a_loop():
    rng = np.random.default_rng(0)
    pids, ap, first = rng.choice([3, 5, 9], 20), rng.random((2, 20)), rng.integers(0, 4, (2, 20))
    queries = scores(ap, pids, first)
    for measure, values in (("mAP", ap), ("rank-1", first == 1)):
        found = queries.sums("pool", measure)
        for t in range(2):
            for number, pid in enumerate((3, 5, 9)):
                chosen = [q for q in range(20) if pids[q] == pid and first[t, q] > 0]
                assert found[1, t, number] == len(chosen)
                assert found[0, t, number] == pytest.approx(sum(values[t, q] for q in chosen), rel=1e-5)


def test_means_of_resamples_equal_a_loop(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 7)
    rng = np.random.default_rng(1)
    records = [np.stack([rng.random((3, 5)), rng.integers(1, 9, (3, 5))]) for _ in range(2)]
    persons, draws, weights = count_again(5, rng), weigh_again(3, rng), weigh_again(2, rng, 1.3)
    found = mean_of_means(np.stack(records, 1), persons, draws, weights)
    for r in range(7):
        expected = sum(weights[r, k] * draws[r, t] * (persons[r] @ records[k][0, t])
                       / (persons[r] @ records[k][1, t]) for k in range(2) for t in range(3))
        assert found[r] == pytest.approx(expected)


def test_weights_sum_to_one_and_vary_as_much_as_a_mean():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=4), weigh_again(4, rng, 1.4)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (weights @ values).std() == pytest.approx(1.4 * values.std(ddof=1) / 2, rel=0.05)
    assert (weigh_again(1, rng, 1.4) == 1).all()


def world(rng: np.random.Generator, gain: float, seeds: int, persons: int = 40,
          draws: int = 4) -> list[list[np.ndarray]]:
    """Records of two methods, the second better by `gain`: persons, draws and seeds each move the scores."""
    pids = np.repeat(np.arange(persons), rng.integers(2, 8, persons))
    shared = rng.normal(0, 0.1, persons)[pids] + rng.normal(0, 0.05, (draws, 1))
    sides = []
    for mean in (0.5, 0.5 + gain):
        own = rng.normal(0, 0.1, persons)[pids] + rng.normal(0, 0.02, (draws, 1))
        sides.append([scores(mean + shared + own + rng.normal(0, 0.03) * (seeds > 1)
                             + rng.normal(0, 0.05, (draws, len(pids))),
                             pids).sums("pool", "mAP") for _ in range(seeds)])
    return sides


@pytest.mark.parametrize("seeds", [2, 5])
def test_intervals_hold_the_true_difference_where_seeds_alone_differ(seeds, monkeypatch):
    """Of 200 experiments, with Student's quantile for few seeds; 78 to 90 % with the normal one."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    rng, counts = np.random.default_rng(0), np.ones((2, 3))
    sides = ([[np.stack([counts * value, counts]) for value in rng.normal(0, 1, seeds)] for _ in range(2)]
             for _ in range(200))
    found = [paired_difference(*side, seed=number) for number, side in enumerate(sides)]
    assert 0.915 < np.mean([each.low <= 0 <= each.high for each in found]) < 0.985


@pytest.mark.parametrize("seeds", [1, 4])
def test_intervals_hold_the_true_difference(seeds, monkeypatch):
    """Of 100 experiments of one known difference, about 95 % of intervals hold it."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    found = [paired_difference(*world(rng, 0.02, seeds), seed=number) for number in range(100)]
    assert 0.88 < np.mean([each.low <= 0.02 <= each.high for each in found]) < 0.995
    assert np.mean([each.value for each in found]) == pytest.approx(0.02, abs=0.007)


def test_what_is_the_same_is_not_told_apart_and_what_differs_much_is():
    first, second = world(np.random.default_rng(0), 0.2, 1)
    same, found = paired_difference(first, first), paired_difference(first, second)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert found.low > 0 > paired_difference(second, first).high and found == paired_difference(first, second)


def test_seeds_that_differ_widen_the_interval_and_persons_are_drawn_with_all_their_queries():
    pids = np.repeat(np.arange(30), 10)
    steady, spread = ([scores(np.full((2, 300), value), pids).sums("pool", "mAP") for value in values]
                      for values in ((0.5, 0.5, 0.5), (0.5, 0.6, 0.7)))
    found = paired_difference(steady, spread)
    assert found.value == pytest.approx(0.1) and found.high - found.low > 0.15
    by_person = scores(np.random.default_rng(0).normal(0.5, 0.1, 30)[pids][None], pids).sums("pool", "mAP")
    found = paired_difference([steady[0][:, :1]], [by_person])
    assert 0.05 < found.high - found.low < 0.1  # 2 x 1.96 x 0.1 / sqrt(30) = 0.07; of 300 queries alone 0.02


def test_splits_whose_persons_differ():
    """RegDB: each split tests half of the persons; a resample without any of them takes all of them."""
    draws, pids = np.repeat([1, 2], 4), np.array([1, 1, 2, 2, 3, 3, 4, 4])
    ap = np.array([0.1, 0.3, 0.5, 0.7, 0.2, 0.2, 0.4, 0.4])
    sides = [[QueryScores(draws, pids, {"pool": np.ones(8, int)}, {"pool": ap + gain}).sums("pool", "mAP")]
             for gain in (0, 0.25)]
    found = paired_difference(*sides)
    assert sides[0][0].shape == (2, 2, 4)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
