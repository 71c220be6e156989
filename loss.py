"""Losses on a batch of visible and infrared features, all in float32, and the table of what each method minimises."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from model import Output

LOSSES = {
    "base": {"id": 1.0, "triplet": 1.0},
    "agw": {"id": 1.0, "weighted_triplet": 1.0},
    "cgrnet": {"id": 1.0, "triplet": 2.0, "similarity": 10.0},
}


def method_loss(method: str, output: Output, labels: Tensor, margin: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of a method's losses, and each of them unweighted; labels (B,) int64 as in `Output`."""
    compute: dict[str, Callable[[], Tensor]] = {
        "id": lambda: F.cross_entropy(output.logits, labels),
        "triplet": lambda: batch_hard_triplet(output.feats, labels, margin),
        "weighted_triplet": lambda: weighted_triplet(output.feats, labels),
        "similarity": lambda: modality_similarity(*output.affinities),
    }
    with torch.autocast(output.feats.device.type, enabled=False):
        parts = {name: compute[name]() for name in LOSSES[method]}
        total = sum(weight * parts[name] for name, weight in LOSSES[method].items())
    return total, parts


def euclidean_distances(feats: Tensor) -> Tensor:
    """Pairwise Euclidean distances (B, B) float32 of feats (B, D); the diagonal, without a gradient, is 1e-6.

    TF32 and bfloat16 would leave too few digits of a difference of squares: on CUDA the product is taken in float64.
    """
    feats = feats.float()
    precise = feats.double() if feats.is_cuda else feats
    squares = feats.square().sum(1)
    squared = squares[:, None] + squares[None, :] - 2 * (precise @ precise.t()).float()
    diagonal = torch.eye(len(feats), dtype=torch.bool, device=feats.device)
    return squared.masked_fill(diagonal, 0).clamp_min(1e-12).sqrt()


def batch_hard_triplet(feats: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Triplet loss with the farthest positive and the nearest negative of each anchor (Hermans et al., 2017).

    feats (B, D), labels (B,), margin in units of distance; returns the mean over anchors, a scalar. Needs two persons.
    """
    distances = euclidean_distances(feats)
    same = labels[:, None] == labels[None, :]
    farthest = distances.masked_fill(~same, -torch.inf).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    return F.relu(farthest - nearest + margin).mean()


def weighted_triplet(feats: Tensor, labels: Tensor) -> Tensor:
    """Weighted regularised triplet loss (Ye et al., TPAMI 2021): softplus(sum w_p d_p - sum w_n d_n), mean over anchors.

    Far positives and near negatives weigh most: w_p is the softmax of the distances to the positives (the anchor among
    them, as in the published code), w_n the softmax of the negated distances to the negatives. feats (B, D), labels (B,).
    """
    distances = euclidean_distances(feats)
    same = labels[:, None] == labels[None, :]
    positive = torch.softmax(distances.masked_fill(~same, -torch.inf), 1)
    negative = torch.softmax((-distances).masked_fill(same, -torch.inf), 1)
    return F.softplus((positive * distances).sum(1) - (negative * distances).sum(1)).mean()


def modality_similarity(visible: Tensor, infrared: Tensor) -> Tensor:
    """Mean absolute difference of the channel affinities (B, C, C) of image pairs that show the same persons."""
    return (visible.float() - infrared.float()).abs().mean()
