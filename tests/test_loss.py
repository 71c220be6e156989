"""The losses against plain loops."""
import math

import pytest
import torch
from torch.nn import functional as F

from loss import LOSSES, batch_hard_triplet, method_loss, modality_similarity, weighted_triplet
from model import METHODS, Output


def batch(seed: int, persons: int = 3, images: int = 4, dim: int = 5):
    generator = torch.Generator().manual_seed(seed)
    feats = torch.randn(persons * images, dim, generator=generator)
    return feats, torch.arange(persons).repeat(images)


@pytest.mark.parametrize("seed", range(3))
def test_batch_hard_triplet(seed):
    feats, labels = batch(seed)
    expected = 0.0
    for i in range(len(feats)):
        positives = [math.dist(feats[i], feats[j]) for j in range(len(feats)) if labels[i] == labels[j] and i != j]
        negatives = [math.dist(feats[i], feats[j]) for j in range(len(feats)) if labels[i] != labels[j]]
        expected += max(0.0, max(positives) - min(negatives) + 0.3) / len(feats)
    assert batch_hard_triplet(feats, labels, 0.3).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_triplet(seed):
    feats, labels = batch(seed)
    expected = 0.0
    for i in range(len(feats)):
        positives = [0.0 if i == j else math.dist(feats[i], feats[j]) for j in range(len(feats)) if labels[i] == labels[j]]
        negatives = [math.dist(feats[i], feats[j]) for j in range(len(feats)) if labels[i] != labels[j]]
        far = sum(d * math.exp(d) for d in positives) / sum(math.exp(d) for d in positives)
        near = sum(d * math.exp(-d) for d in negatives) / sum(math.exp(-d) for d in negatives)
        expected += math.log(1 + math.exp(far - near)) / len(feats)
    assert weighted_triplet(feats, labels).item() == pytest.approx(expected, rel=1e-5)


def test_modality_similarity():
    visible, infrared = torch.rand(2, 3, 4, 4)
    expected = sum(abs(visible[b, i, j] - infrared[b, i, j]) for b in range(3) for i in range(4) for j in range(4)) / 48
    torch.testing.assert_close(modality_similarity(visible, infrared), expected)


def test_identical_features_keep_finite_gradients():
    feats = torch.ones(6, 4, requires_grad=True)
    labels = torch.arange(3).repeat(2)
    (batch_hard_triplet(feats, labels, 0.3) + weighted_triplet(feats, labels)).backward()
    assert feats.grad.isfinite().all()
    assert batch_hard_triplet(feats, labels, 0.3).item() == pytest.approx(0.3)


@pytest.mark.parametrize("method", METHODS)
def test_method_loss_is_the_weighted_sum_of_the_table(method):
    feats, labels = batch(0)
    logits, affinities = torch.randn(12, 3), tuple(torch.rand(2, 6, 4, 4))
    total, parts = method_loss(method, Output(feats, feats, logits, affinities), labels, 0.3)
    assert parts.keys() == LOSSES[method].keys()
    plain = {"id": F.cross_entropy(logits, labels), "triplet": batch_hard_triplet(feats, labels, 0.3),
             "weighted_triplet": weighted_triplet(feats, labels), "similarity": modality_similarity(*affinities)}
    torch.testing.assert_close(total, sum(weight * plain[name] for name, weight in LOSSES[method].items()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_distances_do_not_lose_digits_to_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True
    feats = torch.randn(64, 2048) + 10
    labels = torch.arange(8).repeat(8)
    on_gpu = batch_hard_triplet(feats.cuda(), labels.cuda(), 0.3).item()
    assert on_gpu == pytest.approx(batch_hard_triplet(feats.double(), labels, 0.3).item(), rel=1e-3)
