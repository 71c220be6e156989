"""The losses against plain loops."""
import math

import pytest
import torch
from torch.nn import functional as F

from loss import (Criterion, batch_hard_triplet, modality_similarity, squared_triplet, weighted_distances,
                  weighted_triplet)
from model import METHODS, Loss, Output


def batch(seed: int, persons: int = 3, images: int = 4, dim: int = 5):
    generator = torch.Generator().manual_seed(seed)
    feats = torch.randn(persons * images, dim, generator=generator)
    return feats, torch.arange(persons).repeat(images)


@pytest.mark.parametrize("seed", range(3))
def test_batch_hard_triplet(seed):
    feats, labels = batch(seed)
    expected = 0.0
    for i in range(len(feats)):
        positives = [math.dist(feats[i], feats[j]) for j in range(len(feats))
                     if labels[i] == labels[j] and i != j]
        negatives = [math.dist(feats[i], feats[j]) for j in range(len(feats)) if labels[i] != labels[j]]
        expected += max(0.0, max(positives) - min(negatives) + 0.3) / len(feats)
    assert batch_hard_triplet(feats, labels, 0.3).item() == pytest.approx(expected, rel=1e-5)


def softplus_of_difference(positive: float, negative: float) -> float:
    """What AGW's code does with an anchor's weighted distances."""
    return math.log(1 + math.exp(positive - negative))


def soft_margin_of_square(positive: float, negative: float) -> float:
    """What CAJ's code does with them: a soft margin loss of their squared difference, target -1 or 1."""
    target = -1 if positive > negative else 1
    return math.log(1 + math.exp(-target * min((positive - negative) ** 2, 88)))


def published_weighted_triplet(feats: torch.Tensor, labels: torch.Tensor,
                               term=softplus_of_difference) -> float:
    """A loop over what AGW's code does: each kind's weights from distances with 0 for the other kind."""
    total = 0.0
    for i in range(len(feats)):
        far, near = [], []
        for kept, sign, same in ((far, 1, True), (near, -1, False)):
            masked = [sign * (0.0 if i == j else math.dist(feats[i], feats[j]))
                      if (labels[i] == labels[j]) == same else 0.0 for j in range(len(feats))]
            largest = max(masked)
            own = [value for j, value in enumerate(masked) if (labels[i] == labels[j]) == same]
            exponentials = [math.exp(value - largest) for value in own]
            kept += [sign * value * e / (sum(exponentials) + 1e-6) for value, e in zip(own, exponentials)]
        total += term(sum(far), sum(near)) / len(feats)
    return total


@pytest.mark.parametrize("scale", [0.1, 1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_weighted_triplet_is_that_of_the_published_code(seed, scale):
    feats, labels = batch(seed)
    found = weighted_triplet(scale * feats, labels).item()
    assert found == pytest.approx(published_weighted_triplet(scale * feats, labels), rel=1e-4)


@pytest.mark.parametrize("constant", [False, True])
def test_the_gradient_goes_through_the_weights_unless_they_are_constant(constant):
    feats, labels = batch(0)
    feats = (3 * feats).double().requires_grad_()
    positive, negative = weighted_distances(feats, labels, constant)
    distances = torch.cdist(feats, feats)
    for anchor in range(len(labels)):
        same = labels == labels[anchor]
        others = torch.arange(len(labels)) != anchor
        for found, chosen, sign in ((positive, same, 1), (negative, ~same, -1)):
            values = distances[anchor][chosen].detach()
            weights = (sign * values).exp() / ((sign * values).exp().sum() + (1e-6 if sign < 0 else 0))
            slopes = weights * (1 if constant else 1 + sign * (values - (weights * values).sum()))
            kept = others[chosen]
            expected, = torch.autograd.grad((slopes[kept] * distances[anchor][chosen & others]).sum(), feats,
                                            retain_graph=True)
            mine, = torch.autograd.grad(found[anchor], feats, retain_graph=True)
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [0.1, 1, 5, 100])
@pytest.mark.parametrize("seed", range(3))
def test_squared_triplet_is_that_of_the_published_code(seed, scale):
    feats, labels = batch(seed)
    found = squared_triplet(scale * feats, labels).item()
    expected = published_weighted_triplet(scale * feats, labels, soft_margin_of_square)
    assert found == pytest.approx(expected, rel=1e-4)


def pair_of_distances(positive: float, negative: float) -> torch.Tensor:
    """Features (6, 2) of two persons on two lines: their images `positive` apart, the lines `negative`."""
    return torch.tensor([[x * positive, y * negative] for y in (0.0, 1.0) for x in (0.0, 0.5, 1.0)],
                        requires_grad=True)


def gradient(feats: torch.Tensor) -> float:
    feats.grad = None
    squared_triplet(feats, torch.tensor([0, 0, 0, 1, 1, 1])).backward()
    return feats.grad.abs().max().item()


def test_the_gradient_of_the_squared_triplet_vanishes_where_its_docstring_says():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    # a distance of the lines at which an outer anchor's two weighted distances are equal
    low, high = 0.01, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        positive, negative = weighted_distances(pair_of_distances(1.0, middle), labels)
        low, high = (middle, high) if positive[0] > negative[0] else (low, middle)
    feats = pair_of_distances(1.0, low)
    positive, negative = weighted_distances(feats, labels)
    (positive - negative)[0].sign().mul((positive - negative)[0].square()).backward()
    assert feats.grad.abs().max() < 1e-4
    far_positives = pair_of_distances(40.0, 0.1)
    assert gradient(pair_of_distances(6.0, 0.1)) > 0.1 and gradient(far_positives) == 0
    assert squared_triplet(far_positives, labels).item() > 30  # and yet all of it is wrong


def test_losses_of_stripes_are_the_mean_of_the_whole_map_and_of_their_mean():
    feats, labels = batch(0, dim=20)
    logits = torch.randn(4, 12, 3)
    output = Output(feats, feats, logits[0], tuple(logits[1:]))
    parts = feats.chunk(4, 1)
    plain = {"id": [F.cross_entropy(part, labels) for part in logits],
             "triplet": [batch_hard_triplet(part, labels, 0.3) for part in parts],
             "weighted_triplet": [weighted_triplet(part, labels) for part in parts],
             "squared_triplet": [squared_triplet(part, labels) for part in parts]}
    for name, values in plain.items():
        parameters = {"margin": 0.3} if name == "triplet" else {}
        total, _ = Criterion({name: Loss(2.0, parameters)}, 3, 20)(output, labels)
        torch.testing.assert_close(total, values[0] + sum(values[1:]) / 3)


def test_weights_of_far_negatives_nearly_vanish_as_published():
    """56 negatives at a distance of 20, positives at 0: weights sum to 0.1, and the loss sees 2, not 20."""
    labels = torch.arange(8).repeat_interleave(8)
    feats = 20 / 2 ** 0.5 * torch.eye(8)[labels]
    seen = -math.log(math.expm1(weighted_triplet(feats, labels).item()))
    weights = 56 * math.exp(-20) / (56 * math.exp(-20) + 1e-6)
    assert 0.09 < weights < 0.11 and seen == pytest.approx(20 * weights, rel=1e-3)


def test_modality_similarity():
    visible, infrared = torch.rand(2, 3, 4, 4)
    expected = sum(abs(visible[b, i, j] - infrared[b, i, j]) for b in range(3) for i in range(4)
                   for j in range(4)) / 48
    torch.testing.assert_close(modality_similarity(visible, infrared), expected)


def test_identical_features_keep_finite_gradients():
    feats = torch.ones(6, 4, requires_grad=True)
    labels = torch.arange(3).repeat(2)
    (batch_hard_triplet(feats, labels, 0.3) + weighted_triplet(feats, labels)).backward()
    assert feats.grad.isfinite().all()
    assert batch_hard_triplet(feats, labels, 0.3).item() == pytest.approx(0.3)


@pytest.mark.parametrize("method", METHODS)
def test_a_criterion_is_the_weighted_sum_of_its_row(method):
    feats, labels = batch(0)
    logits, affinities = torch.randn(12, 3), dict(zip(("visible", "infrared"), torch.rand(2, 6, 4, 4)))
    losses = METHODS[method].losses
    total, parts = Criterion(losses, 3, 5)(Output(feats, feats, logits, extras={"affinities": affinities}),
                                           labels[:6])
    assert parts.keys() == losses.keys()
    plain = {"id": F.cross_entropy(logits, labels), "triplet": batch_hard_triplet(feats, labels, 0.3),
             "weighted_triplet": weighted_triplet(feats, labels),
             "squared_triplet": squared_triplet(feats, labels),
             "similarity": modality_similarity(*affinities.values())}
    torch.testing.assert_close(total, sum(loss.weight * plain[name] for name, loss in losses.items()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_distances_do_not_lose_digits_to_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True
    feats = torch.randn(64, 2048) + 10
    labels = torch.arange(8).repeat(8)
    on_gpu = batch_hard_triplet(feats.cuda(), labels.cuda(), 0.3).item()
    assert on_gpu == pytest.approx(batch_hard_triplet(feats.double(), labels, 0.3).item(), rel=1e-3)
