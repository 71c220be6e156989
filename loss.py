"""Losses on a batch of several views of the same persons, all in float32, and the criterion that weighs them.

To add one, put a function of (output, labels, **parameters) or a class into `LOSSES`, and its name into a row
of METHODS. A class is a module made with (classes, feature size, **parameters) and called with (output,
labels); the optimiser and the checkpoint hold its parameters.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from two_stream import Loss, Output


class Criterion(nn.Module):
    """The weighted sum of a method's losses."""

    def __init__(self, losses: Mapping[str, Loss], num_classes: int, dim: int) -> None:
        super().__init__()
        self.weights = {name: loss.weight for name, loss in losses.items()}
        self.terms = {name: build_loss(name, loss.parameters, num_classes, dim)
                      for name, loss in losses.items()}
        self.learnt = nn.ModuleDict({name: term for name, term in self.terms.items()
                                     if isinstance(term, nn.Module)})

    def forward(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, and each loss unweighted; labels (B,) int64 of one view, the same for each."""
        labels = labels.repeat(len(output.logits) // len(labels))
        with torch.autocast(labels.device.type, enabled=False):
            parts = {name: term(output, labels) for name, term in self.terms.items()}
            return sum(weight * parts[name] for name, weight in self.weights.items()), parts

    def end_epoch(self, means: Mapping[str, float]) -> None:
        """Hand the mean of each loss over an epoch to the losses that have an `end_epoch` of their own."""
        for term in self.learnt.values():
            if hasattr(term, "end_epoch"):
                term.end_epoch(means)


def build_loss(name: str, parameters: Mapping[str, Any], num_classes: int, dim: int) -> Callable[..., Tensor]:
    """One entry of `LOSSES`, ready to be called with (output, labels)."""
    entry = LOSSES[name]
    return entry(num_classes, dim, **parameters) if isinstance(entry, type) else partial(entry, **parameters)


def identity_loss(output: Output, labels: Tensor) -> Tensor:
    """Cross entropy of each classifier behind BNNeck (see `over_parts`)."""
    return over_parts([F.cross_entropy(logits, labels) for logits in (output.logits, *output.stripes)])


def triplet_loss(output: Output, labels: Tensor, margin: float = 0.3) -> Tensor:
    """`batch_hard_triplet` of the features after pooling (see `over_parts`)."""
    return over_parts([batch_hard_triplet(feats, labels, margin) for feats in parts_of(output)])


def weighted_triplet_loss(output: Output, labels: Tensor, constant_weights: bool = False) -> Tensor:
    """`weighted_triplet` of the features after pooling (see `over_parts`)."""
    return over_parts([weighted_triplet(feats, labels, constant_weights) for feats in parts_of(output)])


def squared_triplet_loss(output: Output, labels: Tensor, constant_weights: bool = False) -> Tensor:
    """`squared_triplet` of the features after pooling (see `over_parts`)."""
    return over_parts([squared_triplet(feats, labels, constant_weights) for feats in parts_of(output)])


def parts_of(output: Output) -> tuple[Tensor, ...]:
    """The features (B, D) after pooling of the whole map and of each stripe."""
    return output.feats.chunk(1 + len(output.stripes), 1)


def over_parts(losses: list[Tensor]) -> Tensor:
    """The loss of the whole map; where there are stripes, its mean with their mean."""
    whole, *stripes = losses
    return (whole + torch.stack(stripes).mean()) / 2 if stripes else whole


def similarity_loss(output: Output, labels: Tensor) -> Tensor:
    """`modality_similarity` of the views `visible` and `infrared`."""
    affinities = output.extra("affinities", "similarity")
    return modality_similarity(affinities["visible"], affinities["infrared"])


LOSSES: dict[str, Callable[..., Any]] = {
    "id": identity_loss,
    "triplet": triplet_loss,
    "weighted_triplet": weighted_triplet_loss,
    "squared_triplet": squared_triplet_loss,
    "similarity": similarity_loss,
}


def euclidean_distances(feats: Tensor) -> Tensor:
    """Pairwise Euclidean distances (B, B) float32 of feats (B, D); the diagonal, without a gradient, is 1e-6.

    TF32 and bfloat16 would leave too few digits of a difference of squares: on CUDA the product is taken in
    float64.
    """
    feats = feats.float()
    precise = feats.double() if feats.is_cuda else feats
    squares = feats.square().sum(1)
    squared = squares[:, None] + squares[None, :] - 2 * (precise @ precise.t()).float()
    diagonal = torch.eye(len(feats), dtype=torch.bool, device=feats.device)
    return squared.masked_fill(diagonal, 0).clamp_min(1e-12).sqrt()


def batch_hard_triplet(feats: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Triplet loss with the farthest positive and the nearest negative of each anchor (Hermans et al., 2017).

    feats (B, D), labels (B,), margin in units of distance; returns the mean over anchors, a scalar. Needs two
    persons.
    """
    distances = euclidean_distances(feats)
    same = labels[:, None] == labels[None, :]
    farthest = distances.masked_fill(~same, -torch.inf).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    return F.relu(farthest - nearest + margin).mean()


def weighted_triplet(feats: Tensor, labels: Tensor, constant_weights: bool = False) -> Tensor:
    """Weighted regularised triplet loss (Ye et al., TPAMI 2021): mean softplus(sum w_p d_p - sum w_n d_n).

    Far positives and near negatives weigh most. The weights are those of the published code
    (`published_weights`), which for negatives are far from the softmax of the paper. An anchor is a positive
    of itself. feats (B, D), labels (B,); constant_weights: see `weighted_distances`.
    """
    positive, negative = weighted_distances(feats, labels, constant_weights)
    return F.softplus(positive - negative).mean()


def squared_triplet(feats: Tensor, labels: Tensor, constant_weights: bool = False) -> Tensor:
    """Squared difference form of the weighted triplet (CAJ, Ye et al., ICCV 2021): softplus(s |s|) with
    s = sum w_p d_p - sum w_n d_n, mean over anchors.

    s^2 keeps the sign of s and is cut at 88, as in the published code, where exp would overflow float32. The
    gradient, 2 |s| sigmoid(s |s|), vanishes at s = 0, where positives and negatives are equally far, and
    beyond |s| = 9.4, where the cut is: also for anchors whose positives are that much farther than their
    negatives, as those of a random network are. feats (B, D), labels (B,); constant_weights: see
    `weighted_distances`.
    """
    positive, negative = weighted_distances(feats, labels, constant_weights)
    difference = positive - negative
    return F.softplus(difference.sign() * difference.square().clamp_max(88)).mean()


def weighted_distances(feats: Tensor, labels: Tensor,
                       constant_weights: bool = False) -> tuple[Tensor, Tensor]:
    """The weighted sums (B,) of each anchor's distances to its positives and to its negatives.

    The gradient goes through the weights too, as in the published code, unless they are `constant_weights`:
    that of a distance d is then w (1 + d - sum) among positives and w (1 - d + sum) among negatives, not w.
    So the loss pushes away a positive that is nearer than their weighted sum by more than 1, and draws near
    a negative that is farther by more than 1 (docs/experiments.md).
    """
    distances = euclidean_distances(feats)
    same = (labels[:, None] == labels[None, :]).to(distances.dtype)
    weights = published_weights(distances, same), published_weights(-distances, 1 - same)
    if constant_weights:
        weights = tuple(each.detach() for each in weights)
    positive, negative = ((each * distances).sum(1) for each in weights)
    return positive, negative


def published_weights(values: Tensor, mask: Tensor) -> Tensor:
    """Weights (B, B) of the entries of `values` where `mask` (B, B) is 1, as AGW's published code takes them.

    exp(v - m) / (sum exp(v - m) + 1e-6), where m is the largest entry of each row with the others' entries
    set to 0. For negated distances m is 0, so that 56 negatives at a distance of 20 have weights of a sum of
    0.1, not 1.
    """
    largest = (values * mask).amax(1, keepdim=True)
    weights = torch.exp((values - largest).masked_fill(mask == 0, -torch.inf))
    return weights / (weights.sum(1, keepdim=True) + 1e-6)


def modality_similarity(visible: Tensor, infrared: Tensor) -> Tensor:
    """Mean absolute difference of the channel affinities (B, C, C) of image pairs that show the same persons.

    Rows of an affinity sum to 1, so that the loss is at most 2 / C: 0.008 for the 256 channels of ResNet-50's
    stage 1.
    """
    return (visible.float() - infrared.float()).abs().mean()
