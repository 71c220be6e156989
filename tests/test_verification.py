"""Yes or no: thresholds against counting, on persons held out, in the record; ROC, gap, embedding."""
import itertools
import json

import numpy as np
import pytest
import torch
from conftest import make_regdb
from scipy.stats import binom, norm

from eval_metrics import modality_gap
from model import build_network
from retrieval import verification
from retrieval.verification import RATES, Pairs, make_pairs, thresholds


def make_features(persons, width=128, noise=0.8, seed=0):
    """Unit features of one visible and one infrared image of each person, (persons, width) float32 each."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((persons, width))
    sides = own + noise * rng.standard_normal((2, persons, width))
    return (sides / np.linalg.norm(sides, axis=2, keepdims=True)).astype(np.float32)


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
    assert thresholds(pairs)["i2v"] == thresholds(pairs)["v2i"]


@pytest.mark.parametrize("count, kept",
                         [(999, []), (1000, ["0.01"]), (9999, ["0.01"]), (10_000, ["0.01", "0.001"]),
                          (100_000, ["0.01", "0.001", "0.0001"])])
def test_rates_with_fewer_than_ten_impostors_to_accept_are_left_out_and_named(count, kept):
    pairs = Pairs(np.ones(3, np.float32), np.linspace(-1, 1, count, dtype=np.float32))
    found = thresholds(pairs)
    assert list(found["v2i"]) == kept
    rows = verification.lines({"calibration": "X", "thresholds": {"pool": found}}, {"pool": pairs})
    assert sum("threshold 0." in row for row in rows) == len(kept)
    assert any("left out" in row for row in rows) == (len(kept) < 3)
    assert not thresholds(Pairs(np.ones(0, np.float32), pairs.impostor))["v2i"]


def test_ties_never_let_more_through():
    pairs = Pairs(np.ones(1, np.float32), np.repeat(np.float32([0.1, 0.2, 0.3]), 1000))
    for rate in (1e-2, 5e-3):
        assert (pairs.impostor > pairs.threshold(rate)).mean() <= rate


def test_pairs_that_a_search_does_not_see_do_not_count():
    seen, same = np.array([[True, False, True]]), np.array([[True, True, False]])
    pairs = make_pairs(np.float32([[0.1, 0.2, 0.3]]), seen, same)
    np.testing.assert_array_equal(pairs.genuine, np.float32([0.1]))
    np.testing.assert_array_equal(pairs.impostor, np.float32([0.3]))


def held_out(seed, factor=1):
    """For each rate, whether the share that the other half of persons accepts is in its 99 % interval."""
    visible, infrared = make_features(800, seed=seed)
    half = np.random.default_rng(seed).permutation(800) < 400
    found = thresholds(pairs_of(visible[half], infrared[half]))["v2i"]
    impostor = pairs_of(visible[~half], infrared[~half]).impostor
    accepted = [np.count_nonzero(impostor > found[f"{rate:g}"]["threshold"]) for rate in RATES]
    intervals = [binom.interval(0.99, len(impostor), rate * factor) for rate in RATES]
    return [low <= count <= high for count, (low, high) in zip(accepted, intervals)]


def test_on_held_out_persons_the_rate_lies_within_its_binomial_interval():
    assert all(held_out(0))
    within = [held_out(seed) for seed in range(1, 9)]
    assert np.mean(within) > 0.85  # a threshold has an error of its own: 93 % are expected
    assert not np.mean([held_out(seed, factor=2) for seed in range(1, 9)]) > 0.2


def test_the_equal_error_rate_is_that_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    pairs = Pairs(*(rng.normal(mean, 0.1, 40_000).astype(np.float32) for mean in (0.5, 0.2)))
    assert pairs.equal_error() == pytest.approx(norm.cdf(-1.5), abs=2e-3)
    assert Pairs(np.float32([0.8, 0.9]), np.float32([0.1, 0.2])).equal_error() == 0


def test_the_modality_gap_equals_loops_over_pairs():
    visible, infrared = make_features(9, width=6)
    infrared = infrared[:4]
    found = modality_gap(visible, infrared)
    assert found["across"] == pytest.approx(np.mean([1 - a @ b for a in visible for b in infrared]), abs=1e-6)
    for name, side in (("visible", visible), ("infrared", infrared)):
        assert found[name] == pytest.approx(np.mean([1 - a @ b for a, b in itertools.permutations(side, 2)]),
                                            abs=1e-6)
    assert found["centroids"] == pytest.approx(np.linalg.norm(visible.mean(0) - infrared.mean(0)), abs=1e-6)
    assert modality_gap(visible[:1], infrared)["visible"] == 0


# ----------------------------------------------------------------------------------------------- command line
@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A RegDB of ten test persons, and a checkpoint of an untrained network."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    facts = {"dataset": "regdb", "method": "base", "arch": "resnet18", "img_w": 16, "img_h": 32, "trial": 1}
    torch.save({"format": 1, "net": build_network("base", "resnet18", 4).state_dict(), "num_classes": 4,
                "epoch": 1, "trial": 1, "args": facts, "optimiser": {}}, folder / "last.t")
    make_regdb(folder / "RegDB", persons=20, images=5)
    return folder


def test_the_record_holds_what_the_saved_features_give(script, world):
    done = script("test.py", "--data-path", world / "RegDB", "--gpu", "cpu", "--resume", world / "last.t",
                  "--rerank", "k-reciprocal", "--save-features", "features.npz", "--out", "found")
    assert done.returncode == 0, done.stderr
    assert "calibrated on RegDB, v2i, trial 1, 10 persons" in done.stdout
    assert "0.001, 0.0001 pool left out" in done.stdout
    assert done.stdout.count("modality gap ") == 2
    record = json.loads((script.cwd / "found/results.json").read_text())
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
    assert {path.name for path in (script.cwd / "found").iterdir()} == {
        "results.json", "results.csv", "results.features.npz", "results.queries.npz",
        *(f"{name}.png" for name in ("cmc", "distances", "ranking", "verification", "evidence"))} | (
            {"embedding.png"} if "embedding.png: left out" not in done.stderr else set())


def test_without_scikit_learn_the_rest_is_drawn(script, world, tmp_path):
    (tmp_path / "hidden/sklearn").mkdir(parents=True)
    (tmp_path / "hidden/sklearn/__init__.py").write_text("raise ValueError('numpy.dtype size changed')")
    done = script("test.py", "--data-path", world / "RegDB", "--gpu", "cpu", "--resume", world / "last.t",
                  "--out", "found", env={"PYTHONPATH": str(tmp_path / "hidden")}, fresh=True)
    assert done.returncode == 0, done.stderr
    assert ("embedding.png: left out, as scikit-learn does not load (ValueError: numpy.dtype size changed); "
            "run: pip install -r requirements-figures.txt") in done.stderr
    assert not (script.cwd / "found/embedding.png").exists() and (script.cwd / "found/evidence.png").exists()
