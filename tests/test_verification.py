"""Yes or no: thresholds against counting, on persons held out, in the record; ROC and gap."""
import itertools
import json

import numpy as np
import pytest
from conftest import draw_persons, make_checkpoint, make_regdb
from scipy.stats import binom, norm

from eval_metrics import modality_gap
from retrieval import verification
from retrieval.verification import RATES, Pairs, make_pairs, thresholds


def pairs_of(visible, infrared):
    same = np.eye(len(visible), dtype=bool)
    return make_pairs(visible @ infrared.T, np.ones_like(same), same)


def test_a_threshold_lets_through_as_many_impostors_as_the_rate_says():
    pairs = Pairs(np.linspace(0.3, 0.9, 50, dtype=np.float32),
                  np.random.default_rng(0).random(123_456, dtype=np.float32) / 2)
    for rate in RATES:
        found = thresholds(pairs)["i2v"][f"{rate:g}"]
        for shift in (-2e-8, 0, 2e-8):  # as another order of the same sums would
            assert np.count_nonzero(pairs.impostor + shift > found["threshold"]) == int(123_456 * rate)
        assert found["true_accept_rate"] == np.mean([value > found["threshold"] for value in pairs.genuine])
        assert found["impostor_pairs"] == 123_456
    tied = Pairs(np.ones(1, np.float32), np.repeat(np.float32([0.1, 0.2, 0.3]), 1000))
    assert (tied.impostor > tied.threshold(1e-2)).mean() <= 1e-2


@pytest.mark.parametrize("count, kept",
                         [(999, []), (1000, ["0.01"]), (9999, ["0.01"]),
                          (100_000, ["0.01", "0.001", "0.0001"])])
def test_rates_with_fewer_than_ten_impostors_to_accept_are_left_out_and_named(count, kept):
    pairs = Pairs(np.ones(3, np.float32), np.linspace(-1, 1, count, dtype=np.float32))
    found = thresholds(pairs)
    assert list(found["v2i"]) == list(found["i2v"]) == kept
    rows = verification.lines({"calibration": "X", "thresholds": {"pool": found}}, {"pool": pairs})
    assert sum("threshold 0." in row for row in rows) == len(kept)
    assert any("left out" in row for row in rows) == (len(kept) < 3)


def test_pairs_that_a_search_does_not_see_do_not_count():
    seen, same = np.array([[True, False, True]]), np.array([[True, True, False]])
    pairs = make_pairs(np.float32([[0.1, 0.2, 0.3]]), seen, same)
    np.testing.assert_array_equal(pairs.genuine, np.float32([0.1]))
    np.testing.assert_array_equal(pairs.impostor, np.float32([0.3]))


def held_out(seed):
    """How many impostors of the other half of persons each rate's threshold accepts, and all."""
    visible, infrared = draw_persons(800, seed)
    half = np.random.default_rng(seed).permutation(800) < 400
    found = thresholds(pairs_of(visible[half], infrared[half]))["v2i"]
    impostor = pairs_of(visible[~half], infrared[~half]).impostor
    accepted = [np.count_nonzero(impostor > found[f"{rate:g}"]["threshold"]) for rate in RATES]
    return accepted, len(impostor)


def test_on_held_out_persons_the_rate_lies_within_its_binomial_interval():
    found = [held_out(seed) for seed in range(6)]

    def within(factor):
        intervals = [[binom.interval(0.99, total, factor * rate) for rate in RATES] for _, total in found]
        return np.mean([low <= count <= high for (accepted, _), row in zip(found, intervals)
                        for count, (low, high) in zip(accepted, row)])

    assert within(1) > 0.85  # a threshold has an error of its own: 93 % are expected
    assert within(2) < 0.2


def test_the_equal_error_rate_is_that_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    pairs = Pairs(*(rng.normal(mean, 0.1, 40_000).astype(np.float32) for mean in (0.5, 0.2)))
    assert pairs.equal_error() == pytest.approx(norm.cdf(-1.5), abs=2e-3)
    assert Pairs(np.float32([0.8, 0.9]), np.float32([0.1, 0.2])).equal_error() == 0


def test_the_modality_gap_equals_loops_over_pairs():
    visible, infrared = draw_persons(9, width=6)
    infrared = infrared[:4]
    found = modality_gap(visible, infrared)
    assert found["across"] == pytest.approx(np.mean([1 - a @ b for a in visible for b in infrared]), abs=1e-6)
    for name, side in (("visible", visible), ("infrared", infrared)):
        assert found[name] == pytest.approx(np.mean([1 - a @ b for a, b in itertools.permutations(side, 2)]),
                                            abs=1e-6)
    assert found["centroids"] == pytest.approx(np.linalg.norm(visible.mean(0) - infrared.mean(0)), abs=1e-6)
    assert modality_gap(visible[:1], infrared)["visible"] == 0


def test_the_record_holds_what_the_saved_features_give(script, tmp_path):
    make_regdb(tmp_path / "RegDB", persons=20, images=5)
    done = script("test.py", "--data-path", tmp_path / "RegDB", "--gpu", "cpu",
                  "--resume", make_checkpoint(tmp_path / "last.t"), "--save-features", "features.npz")
    assert done.returncode == 0, done.stderr
    assert "calibrated on RegDB, v2i, trial 1, 10 persons" in done.stdout
    assert "0.001, 0.0001 pool left out" in done.stdout and done.stdout.count("modality gap ") == 2
    record = json.loads(next((script.cwd / "results").glob("*.json")).read_text())
    saved = np.load(script.cwd / "features.npz")
    assert record["calibration"] == "RegDB, v2i, trial 1, 10 persons"
    same = saved["query_pids"][:, None] == saved["gallery_pids"]
    for feature, ending in (("pool", "_pool"), ("bnneck", "")):
        similarity = saved[f"query_feats{ending}"] @ saved[f"gallery_feats{ending}"].T
        for direction in ("i2v", "v2i"):
            (rate, found), = record["thresholds"][feature][direction].items()
            assert rate == "0.01" and found["impostor_pairs"] == 50 * 45
            assert np.count_nonzero(similarity[~same] > found["threshold"]) == 22
            assert found["true_accept_rate"] == pytest.approx((similarity[same] > found["threshold"]).mean())
