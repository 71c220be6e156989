"""CMC, mAP and mINP against a plain loop written from their definitions."""
from __future__ import annotations

import tracemalloc
from itertools import product

import numpy as np
import pytest

import eval_metrics
from eval_metrics import distance_matrix, eval_regdb, eval_sysu, evaluate


def by_definition(dist_mat, q_pids, g_pids, seen=None, count_persons=False, max_rank=20):
    """One query after the other, one image after the other."""
    curves, precisions, penalties = [], [], []
    for q, pid in enumerate(q_pids):
        images = [g for g in range(len(g_pids)) if seen is None or seen[q][g]]
        images.sort(key=lambda g: (dist_mat[q][g], g))
        ranked = [g_pids[g] for g in images]
        if pid not in ranked:
            continue
        ranks = [rank for rank, other in enumerate(ranked, start=1) if other == pid]
        precisions.append(sum(i / rank for i, rank in enumerate(ranks, start=1)) / len(ranks))
        penalties.append(len(ranks) / ranks[-1])
        listed = list(dict.fromkeys(ranked)) if count_persons else ranked
        curves.append([pid in listed[:k] for k in range(1, max_rank + 1)])
    return np.mean(curves, axis=0), np.mean(precisions), np.mean(penalties)


def sysu_rule(q_camids, g_camids):
    """SYSU-MM01's rule, a pair at a time: queries of camera 3 do not see camera 2."""
    return [[(query, gallery) != (3, 2) for gallery in g_camids] for query in q_camids]


def by_sysu(dist_mat, q_pids, g_pids, q_camids, g_camids):
    return by_definition(dist_mat, q_pids, g_pids, sysu_rule(q_camids, g_camids), True)


def assert_same(found, expected):
    assert found[0].dtype == np.float64 and type(found[1]) is type(found[2]) is float
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def draw(rng, n_queries, n_gallery, n_pids, steps):
    """A search whose distances take `steps` values; every fourth person is in one of the two sets only."""
    pids = rng.choice(np.arange(-n_pids, n_pids), n_pids, replace=False)
    q_pids = rng.choice(pids[n_pids // 4:], n_queries)
    g_pids = rng.choice(pids[:max(1, n_pids - n_pids // 4)], n_gallery)
    g_pids[0] = q_pids[0]
    dist_mat = (rng.integers(0, steps, (n_queries, n_gallery)) / steps).astype(np.float32)
    return dist_mat, q_pids, g_pids, rng.choice([3, 6], n_queries), rng.choice([1, 2, 4, 5], n_gallery)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 3), (7, 1, 2), (9, 12, 4), (15, 60, 12), (6, 700, 2)])
@pytest.mark.parametrize("steps", [1, 5, 1 << 24])
def test_random_searches(shape, steps):
    rng = np.random.default_rng(shape)
    dist_mat, q_pids, g_pids, q_camids, g_camids = draw(rng, *shape, steps)
    q_camids[0], g_camids[0] = 6, 1  # one match that nothing excludes
    assert_same(eval_regdb(dist_mat, q_pids, g_pids), by_definition(dist_mat, q_pids, g_pids))
    assert_same(eval_sysu(dist_mat, q_pids, g_pids, q_camids, g_camids),
                by_sysu(dist_mat, q_pids, g_pids, q_camids, g_camids))
    seen = rng.random(dist_mat.shape) < 0.7
    seen[0, 0] = True
    for count_persons, max_rank in product((False, True), (1, 50)):
        assert_same(evaluate(dist_mat, q_pids, g_pids, seen, count_persons=count_persons, max_rank=max_rank),
                    by_definition(dist_mat, q_pids, g_pids, seen, count_persons, max_rank))


@pytest.mark.parametrize("dtype",
                         [np.float16, np.float32, np.float64, np.longdouble, np.int8, np.uint64, bool, ">f4"])
def test_any_real_numbers(dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(-40 if np.dtype(dtype).kind in "fi" else 0, 51, (15, 40)).astype(dtype)
    _, q_pids, g_pids, q_camids, g_camids = draw(rng, 15, 40, 9, 1)
    expected = by_sysu(values, q_pids, g_pids, q_camids, g_camids)
    assert_same(eval_sysu(np.asfortranarray(values), q_pids, g_pids, q_camids, g_camids), expected)
    assert_same(eval_sysu(values.tolist(), q_pids.tolist(), g_pids.astype(np.int16),
                          q_camids.astype(np.uint8), list(g_camids)), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_wide_ranges(dtype, scale):
    rng = np.random.default_rng(1)
    _, q_pids, g_pids, *_ = draw(rng, 15, 40, 9, 1)
    values = (rng.choice([-1, 1, 1e-9], (15, 40)) * rng.random((15, 40)) * scale).astype(dtype)
    # also both zeros, equal
    values[:, ::3] *= rng.choice([-1.0, 0.0, 1.0], values[:, ::3].shape).astype(dtype)
    before, seen = values.copy(), rng.random(values.shape) < 0.6
    assert_same(evaluate(values, q_pids, g_pids, seen), by_definition(values, q_pids, g_pids, seen))
    np.testing.assert_array_equal(values, before)


def test_known_ranking():
    # Query 1 finds persons 2 2 1 3 1: matches at images 3 and 5, second person of three.
    dist_mat, g_pids, g_camids = [[0.3, 0.1, 0.2, 0.5, 0.4]], [1, 2, 2, 1, 3], [1, 1, 2, 4, 5]
    cmc, mean_ap, mean_inp = eval_sysu(dist_mat, [1], g_pids, [6], g_camids, max_rank=4)
    assert cmc.tolist() == [0, 1, 1, 1] and mean_ap == (1 / 3 + 2 / 5) / 2 and mean_inp == 2 / 5
    assert eval_regdb(dist_mat, [1], g_pids, max_rank=4)[0].tolist() == [0, 0, 1, 1]
    # Camera 3 does not see the third image: matches at 2 and 4 of four.
    cmc, mean_ap, mean_inp = eval_sysu(dist_mat, [1], g_pids, [3], g_camids, max_rank=4)
    assert cmc.tolist() == [0, 1, 1, 1] and mean_ap == (1 / 2 + 2 / 4) / 2 and mean_inp == 2 / 4


def test_blocks_and_threads_change_nothing(monkeypatch):
    search = draw(np.random.default_rng(3), 60, 40, 12, 40)
    expected = by_sysu(*search)
    for threads, block_bytes in product((1, 3), (1, 2000, 1 << 20)):
        monkeypatch.setattr(eval_metrics, "THREADS", threads)
        monkeypatch.setattr(eval_metrics, "BLOCK_BYTES", block_bytes)
        assert_same(eval_sysu(*search), expected)


def test_memory_of_a_search_as_large_as_sysu():
    rng = np.random.default_rng(0)
    dist_mat, q_pids, g_pids = rng.random((3803, 301), np.float32), np.arange(3803) % 96, np.arange(301) % 96
    tracemalloc.start()
    try:
        eval_sysu(dist_mat, q_pids, g_pids, rng.choice([3, 6], 3803), rng.choice([1, 2, 4, 5], 301))
        assert tracemalloc.get_traced_memory()[1] < 2 * dist_mat.nbytes  # beside the matrix itself
    finally:
        tracemalloc.stop()


GOOD = {"dist_mat": np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]), "q_pids": [1, 2], "g_pids": [1, 2, 2],
        "seen": [[True, False, True], [True, True, True]]}


@pytest.mark.parametrize("change, message", [
    ({"dist_mat": [[0.1, np.nan, 0.3], [np.inf, 0.5, -np.inf]]},
     r"dist_mat: found 1 NaN and 2 infinite distances, the first in row 0, column 1"),
    ({"dist_mat": np.full((2, 3), -np.nan, np.float16)}, "dist_mat: found 6 NaN and 0 infinite"),
    # in no ranking
    ({"dist_mat": [[0.1, 0.2, np.nan], [0.4, 0.5, 0.6]], "q_pids": [9, 1]}, "dist_mat: found 1 NaN"),
    ({"dist_mat": [[0.1, np.nan, 0.3], [0.4, 0.5, 0.6]]}, "dist_mat: found 1 NaN"),  # in an excluded image
    ({"dist_mat": np.zeros((0, 3))}, r"dist_mat: found shape \(0, 3\)"),
    ({"dist_mat": np.zeros((2, 3), complex)}, "dist_mat: found dtype complex128"),
    ({"q_pids": [1, 2, 3]}, r"q_pids: found shape \(3,\), expected \(2,\)"),
    ({"g_pids": [1.0, 2.0, 2.0]}, "g_pids: found dtype float64, expected integers"),
    ({"seen": [True, False, True]}, r"seen: found bool of shape \(3,\), expected bool of shape \(2, 3\)"),
    ({"q_pids": [7, 2], "seen": [[True] * 3, [True, False, False]]}, "q_pids: found no query with a match"),
    ({"max_rank": 0}, "max_rank: found 0, expected at least 1")])
def test_errors_name_the_argument(change, message):
    evaluate(**GOOD)
    with pytest.raises(ValueError, match=message) as error:
        evaluate(**{**GOOD, **change})
    assert "\n" not in str(error.value)


def test_errors_of_cameras_name_the_argument():
    with pytest.raises(ValueError, match=r"q_camids: found shape \(1,\), expected \(2,\)"):
        eval_sysu(GOOD["dist_mat"], GOOD["q_pids"], GOOD["g_pids"], [3], [1, 2, 4])


def test_distance_matrix():
    feats = np.random.default_rng(0).standard_normal((9, 5))
    feats = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)
    dist_mat = distance_matrix(feats[:4], feats)
    assert dist_mat.dtype == np.float32 and dist_mat.min() >= 0
    np.testing.assert_allclose(dist_mat, ((feats[:4, None] - feats) ** 2).sum(axis=2) / 2, atol=1e-6)
    assert distance_matrix([[1.0, 0.0]], [[-1.0, 0.0], [0.0, 1.0]]).tolist() == [[2, 1]]
    for bad, message in ((feats[:, :4], r"\(9, 5\) and \(9, 4\)"),
                         (feats[0], r"\(5,\)"), (feats[:0], r"\(0, 5\)"),
                         (np.where(feats > 0.5, np.nan, feats), "gallery_feats: found NaN or infinite")):
        with pytest.raises(ValueError, match=message):
            distance_matrix(feats, bad)
