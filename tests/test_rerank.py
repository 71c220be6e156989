"""k-reciprocal re-ranking against a plain loop written from the paper's definitions."""
from __future__ import annotations

import math

import numpy as np
import pytest

from eval_metrics import k_reciprocal_distance


def by_definition(query_feats, gallery_feats, k1=20, k2=6, lam=0.3):
    """Sets and dictionaries, one pair of images after the other, in double precision."""
    feats = np.concatenate((query_feats, gallery_feats)).astype(np.float64)
    n = len(feats)
    dist = [[sum((a - b) ** 2) for b in feats] for a in feats]
    dist = [[d / (max(row) or 1) for d in row] for row in dist]
    nearest = [sorted(range(n), key=lambda q, p=p: (q != p, dist[p][q], q)) for p in range(n)]

    def reciprocal(p, k):
        return {q for q in nearest[p][:k + 1] if p in nearest[q][:k + 1]}

    weights = []
    for p in range(n):
        members = set(reciprocal(p, k1))
        for q in reciprocal(p, k1):
            others = reciprocal(q, round(k1 / 2))
            if 3 * len(others & reciprocal(p, k1)) >= 2 * len(others):
                members |= others
        total = sum(math.exp(-dist[p][q]) for q in members)
        weights.append({q: math.exp(-dist[p][q]) / total for q in members})
    mean = [{q: sum(weights[o].get(q, 0) for o in nearest[p][:k2]) / min(k2, n) for q in range(n)}
            for p in range(n)]
    result = np.empty((len(query_feats), len(gallery_feats)))
    for i, j in np.ndindex(*result.shape):
        a, b = mean[i], mean[len(query_feats) + j]
        jaccard = 1 - sum(min(a[q], b[q]) for q in range(n)) / sum(max(a[q], b[q]) for q in range(n))
        result[i, j] = lam * dist[i][len(query_feats) + j] + (1 - lam) * jaccard
    return result


def people(rng, n_queries, n_gallery):
    """L2-normalised features of images of four persons."""
    feats = rng.standard_normal((4, 8))[rng.integers(0, 4, n_queries + n_gallery)]
    feats = feats + 0.7 * rng.standard_normal(feats.shape)
    feats = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)
    return feats[:n_queries], feats[n_queries:]


@pytest.mark.parametrize("sizes, k1, k2, lam", [
    ((12, 30), 20, 6, 0.3), ((12, 20), 7, 3, 0.3), ((20, 9), 5, 1, 0.5), ((10, 10), 1, 2, 0.0),
    ((10, 20), 6, 9, 1.0), ((4, 5), 20, 6, 0.3), ((1, 1), 20, 6, 0.3), ((7, 1), 4, 20, 0.9)])
def test_random_features(sizes, k1, k2, lam):
    query, gallery = people(np.random.default_rng(sizes), *sizes)
    found = k_reciprocal_distance(query, gallery, k1, k2, lam)
    assert found.shape == sizes and found.dtype == np.float32
    np.testing.assert_allclose(found, by_definition(query, gallery, k1, k2, lam), atol=2e-6)


@pytest.mark.parametrize("values", [1, 2, 3])
def test_equal_distances_and_duplicates(values):
    # whole numbers: rounding breaks no tie
    feats = np.random.default_rng(values).integers(0, values, (25, 2))
    found = k_reciprocal_distance(feats[:8], feats[8:], 6, 3)
    np.testing.assert_allclose(found, by_definition(feats[:8], feats[8:], 6, 3), atol=2e-6)


def test_blocks_change_nothing(monkeypatch):
    query, gallery = people(np.random.default_rng(5), 40, 60)
    expected = k_reciprocal_distance(query, gallery)
    for block_bytes in (1, 1000):
        monkeypatch.setattr("eval_metrics.BLOCK_BYTES", block_bytes)
        np.testing.assert_array_equal(k_reciprocal_distance(query, gallery), expected)


def test_errors():
    feats = np.eye(3, dtype=np.float32)
    for arguments in ({"k1": 0}, {"k2": 0}, {"lam": -0.1}, {"lam": 1.1}):
        with pytest.raises(ValueError, match="k1, k2, lam: found"):
            k_reciprocal_distance(feats, feats, **arguments)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(3, 2\)"):
        k_reciprocal_distance(feats, feats[:, :2])
    with pytest.raises(ValueError, match="query_feats: found NaN or infinite numbers in 1 of 3 rows"):
        k_reciprocal_distance(np.array([[np.inf, 0, 0], [0, 1, 0], [0, 0, 1]]), feats)
