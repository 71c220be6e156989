"""Losses on a batch of several views of the same persons, all in float32, and the criterion that weighs them.

To add one, put a function of (output, labels, **parameters) or a class into `LOSSES`, and its name into a row
of METHODS. A class is a module made with (classes, feature size, **parameters) and called with (output,
labels); the optimiser holds its parameters, the checkpoint its buffers too, and a method `end_epoch` of it is
called with the mean weighted sum of the other losses over each epoch.

Labels are those of all maps of an output. A batch has equally many images of each person in each view: a
mean over images is one over persons.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.types import INFRARED, MODALITIES, VISIBLE
from two_stream import Loss, Output


class Criterion(nn.Module):
    """The weighted sum of a method's losses."""

    def __init__(self, losses: Mapping[str, Loss], num_classes: int, dim: int) -> None:
        super().__init__()
        self.weights = {name: loss.weight for name, loss in losses.items()}
        self.terms = {}
        for name, loss in losses.items():
            entry = LOSSES[name]
            self.terms[name] = (entry(num_classes, dim, **loss.parameters) if isinstance(entry, type)
                                else functools.partial(entry, **loss.parameters))
        self.learnt = nn.ModuleDict({name: term for name, term in self.terms.items()
                                     if isinstance(term, nn.Module)})

    def forward(self, output: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, and each loss unweighted; labels (B,) int64 of one view, the same for each."""
        labels = labels.repeat(len(output.logits) // len(labels))
        with torch.autocast(labels.device.type, enabled=False):
            parts = {name: term(output, labels) for name, term in self.terms.items()}
            return sum(weight * parts[name] for name, weight in self.weights.items()), parts

    def end_epoch(self, means: Mapping[str, float]) -> None:
        """Hand the mean weighted sum of the others over an epoch to each loss that has an `end_epoch`."""
        for name, term in self.learnt.items():
            if hasattr(term, "end_epoch"):
                term.end_epoch(sum(weight * means[other] for other, weight in self.weights.items()
                                   if other != name))


def of_parts(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of features (B, D) as one of an output: that of its features after pooling, of the whole map or,
    where there are stripes, the mean of that and of the stripes' mean.
    """
    @functools.wraps(loss)  # it keeps the parameters
    def of_output(output: Output, labels: Tensor, **parameters: Any) -> Tensor:
        parts = output.feats.chunk(1 + len(output.stripes), 1)
        return over_parts([loss(feats, labels, **parameters) for feats in parts])
    return of_output


def over_parts(losses: list[Tensor]) -> Tensor:
    """The loss of the whole map; where there are stripes, its mean with their mean."""
    whole, *stripes = losses
    return (whole + torch.stack(stripes).mean()) / 2 if stripes else whole


def identity_loss(output: Output, labels: Tensor) -> Tensor:
    """Cross entropy of each classifier behind BNNeck (see `over_parts`)."""
    return over_parts([F.cross_entropy(logits, labels) for logits in (output.logits, *output.stripes)])


def similarity_loss(output: Output, labels: Tensor) -> Tensor:
    """Mean absolute difference of the channel affinities (B, C, C) of the views `visible` and `infrared`,
    whose images show the same persons.

    Rows of an affinity sum to 1, so that the loss is at most 2 / C: 0.008 for the 256 channels of ResNet-50's
    stage 1.
    """
    affinities = output.extra("affinities", "similarity")
    return (affinities["visible"].float() - affinities["infrared"].float()).abs().mean()


def part_identity_loss(output: Output, labels: Tensor) -> Tensor:
    """The sum of the cross entropies of the parts' classifiers."""
    return sum(F.cross_entropy(logits, labels) for logits in output.extra("part_logits", "part_id"))


def hetero_center_loss(output: Output, labels: Tensor, margin: float = 0.3) -> Tensor:
    """`hetero_center_triplet` of the features after pooling (see `over_parts`)."""
    return over_parts([hetero_center_triplet(output, feats, labels, margin)
                       for feats in output.feats.chunk(1 + len(output.stripes), 1)])


def part_hetero_center_loss(output: Output, labels: Tensor, margin: float = 0.3) -> Tensor:
    """The sum of `hetero_center_triplet` over the parts' features."""
    return sum(hetero_center_triplet(output, feats, labels, margin)
               for feats in output.extra("part_feats", "part_hetero_center"))


def centre_pair_loss(output: Output, labels: Tensor, margin: float = 0.2) -> Tensor:
    """`centre_pairs` of the first map of each image with each of the others, summed."""
    maps = output.extra("further maps", "centre_pairs")
    single = output._replace(copies=1)
    first, *others = map(single.by_modality, maps)
    own = single.by_modality(labels[:len(maps[0])])
    return sum(centre_pairs(first, other, own, margin) for other in others)


def orthogonality_loss(output: Output, labels: Tensor) -> Tensor:
    """The sum over images of the products of an image's further features, over the number of maps (DEEN)."""
    _, one, two = output.extra("further maps", "orthogonality")
    return (one * two).sum() / len(output.feats)


def circle_loss(output: Output, labels: Tensor, margin: float = 0.45, gamma: float = 64.0) -> Tensor:
    """Circle loss (Sun et al., CVPR 2020) of the cosines after BNNeck: mean over anchors, over their number
    once more, as DNS's code has it. An anchor is no positive of itself.
    """
    cosines = F.normalize(output.neck) @ F.normalize(output.neck).t()
    same = labels[:, None] == labels
    others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    towards = -gamma * F.relu(1 + margin - cosines).detach() * (cosines - 1 + margin)
    apart = gamma * F.relu(cosines + margin).detach() * (cosines - margin)
    positive = towards.masked_fill(~(same & others), -torch.inf).logsumexp(1)
    loss = F.softplus(apart.masked_fill(same, -torch.inf).logsumexp(1) + positive).mean()
    return loss / len(labels)


def alignment_loss(output: Output, labels: Tensor) -> Tensor:
    """Domain alignment (DNS): 0.45 x the discrepancies between modalities, of the features after pooling and
    of those in the common space, + 0.05 x those between the two features, of each modality.
    """
    own, common = (list(output.by_modality(F.normalize(feats)).values())
                   for feats in (output.feats, output.extra("common", "alignment")))
    between = discrepancy(*own) + discrepancy(*common)
    within = sum(discrepancy(*pair) for pair in zip(own, common))
    return 0.45 * between + 0.05 * within


class BatchGraph(nn.Module):
    """DDAG's graph attention over the images of a batch (Ye et al., ECCV 2020), which sees labels.

    Nodes are features after pooling; each attends to all images of its person; the last head gives logits.
    The loss is weighted by 1 / (1 + the mean of the other losses in the epoch before), by 0 in the first.
    """

    def __init__(self, num_classes: int, dim: int, heads: int = 4, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = dropout
        self.heads = nn.ModuleList(GraphHead(dim, dim // heads, dropout) for _ in range(heads))
        self.last = GraphHead(heads * (dim // heads), num_classes, dropout)
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, output: Output, labels: Tensor) -> Tensor:
        """The weighted cross entropy."""
        same = labels[:, None] == labels
        nodes = F.dropout(output.feats, self.dropout, self.training)
        nodes = torch.cat([F.elu(head(nodes, same)) for head in self.heads], 1)
        logits = F.elu(self.last(F.dropout(nodes, self.dropout, self.training), same))
        return self.weight * F.cross_entropy(logits, labels)

    def end_epoch(self, others: float) -> None:
        """Weigh the next epoch by the mean of the other losses in this one."""
        self.weight.fill_(1 / (1 + others))


class GraphHead(nn.Module):
    """One head of graph attention (Velickovic et al., ICLR 2018)."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.W, self.a = nn.Parameter(torch.empty(inputs, outputs)), nn.Parameter(torch.empty(2 * outputs, 1))
        for parameter in (self.W, self.a):
            nn.init.xavier_uniform_(parameter, gain=1.414)

    def forward(self, nodes: Tensor, neighbours: Tensor) -> Tensor:
        """nodes (B, D), neighbours (B, B) bool -> (B, outputs)."""
        values = nodes @ self.W
        queries, keys = values @ self.a[:len(self.a) // 2], values @ self.a[len(self.a) // 2:]  # (B, 1)
        energies = F.leaky_relu(queries + keys.t(), 0.2).masked_fill(~neighbours, -torch.inf)
        return F.dropout(torch.softmax(energies, 1), self.dropout, self.training) @ values


class Distillation(nn.Module):
    """Domain distillation (DNS): a classifier of each modality, which imitates a slow copy of the other's.

    For the features after BNNeck and for those in the common space: the KL divergence (mean over images) of
    the own classifier's answer from that of the other's slow copy, + a quarter of the modalities' cross
    entropies. At each step a slow copy first moves by `rate` towards its classifier.
    """

    def __init__(self, num_classes: int, dim: int, rate: float = 0.2) -> None:
        super().__init__()
        self.rate = rate
        self.fast = nn.ModuleDict({name: nn.Linear(dim, num_classes, bias=False) for name in MODALITIES})
        for name, layer in self.fast.items():
            self.register_buffer(f"slow_{name}", layer.weight.detach().clone())

    def forward(self, output: Output, labels: Tensor) -> Tensor:
        """The loss; moves the slow copies in training."""
        slow = {name: getattr(self, f"slow_{name}") for name in self.fast}
        if self.training:
            for name, layer in self.fast.items():
                slow[name].lerp_(layer.weight.detach(), self.rate)
        labels = output.by_modality(labels)
        return sum(self.imitate(output.by_modality(feats), labels, slow)
                   for feats in (output.neck, output.extra("common", "distillation")))

    def imitate(self, feats: dict[str, Tensor], labels: dict[str, Tensor], slow: dict[str, Tensor]) -> Tensor:
        """The loss of one kind of features, by modality."""
        divergence, entropies, images = 0.0, 0.0, sum(map(len, feats.values()))
        for name, other in zip(MODALITIES, reversed(MODALITIES)):
            logits = self.fast[name](feats[name])
            with torch.no_grad():
                answer = F.log_softmax(F.linear(feats[name], slow[other]), 1)
            divergence += F.kl_div(answer, torch.softmax(logits, 1), reduction="sum") / images
            entropies += F.cross_entropy(logits, labels[name])
        return divergence + 0.25 * entropies


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


def batch_hard_triplet(feats: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """Triplet loss with the farthest positive and the nearest negative of each anchor (Hermans et al., 2017).

    feats (B, D), labels (B,) of two persons at least; returns the mean over anchors, a scalar.
    """
    distances = euclidean_distances(feats)
    same = labels[:, None] == labels
    farthest = distances.masked_fill(~same, -torch.inf).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    return F.relu(farthest - nearest + margin).mean()


def weighted_triplet(feats: Tensor, labels: Tensor, constant_weights: bool = False) -> Tensor:
    """Weighted regularised triplet loss (Ye et al., TPAMI 2021): mean softplus(sum w_p d_p - sum w_n d_n).

    Far positives and near negatives weigh most; an anchor is a positive of itself. feats (B, D), labels (B,);
    constant_weights: see `weighted_distances`.
    """
    positive, negative = weighted_distances(feats, labels, constant_weights)
    return F.softplus(positive - negative).mean()


def squared_triplet(feats: Tensor, labels: Tensor, constant_weights: bool = False) -> Tensor:
    """Squared difference form of the weighted triplet (CAJ, Ye et al., ICCV 2021): softplus(s |s|) with
    s = sum w_p d_p - sum w_n d_n, mean over anchors.

    s^2 is cut at 88, as in the published code, where exp would overflow float32. The gradient, 2 |s|
    sigmoid(s |s|), vanishes at s = 0 and beyond |s| = 9.4: also for anchors whose positives are that much
    farther than their negatives, as those of a random network are.
    """
    positive, negative = weighted_distances(feats, labels, constant_weights)
    difference = positive - negative
    return F.softplus(difference.sign() * difference.square().clamp_max(88)).mean()


def weighted_distances(feats: Tensor, labels: Tensor,
                       constant_weights: bool = False) -> tuple[Tensor, Tensor]:
    """The weighted sums (B,) of each anchor's distances to its positives and to its negatives.

    The gradient goes through the weights too, as in the published code, unless they are `constant_weights`:
    that of a distance d is then w (1 + d - sum) among positives and w (1 - d + sum) among negatives, not w,
    and changes its sign where d and the sum are more than 1 apart (docs/experiments.md).
    """
    distances = euclidean_distances(feats)
    same = (labels[:, None] == labels).to(distances.dtype)
    positive, negative = published_weights(distances, same), published_weights(-distances, 1 - same)
    if constant_weights:
        positive, negative = positive.detach(), negative.detach()
    return (positive * distances).sum(1), (negative * distances).sum(1)


def published_weights(values: Tensor, mask: Tensor) -> Tensor:
    """Weights (B, B) of the entries of `values` where `mask` (B, B) is 1, as AGW's published code takes them.

    exp(v - m) / (sum exp(v - m) + 1e-6), where m is the largest entry of each row with the others' entries
    set to 0. For negated distances m is 0: the weights of 56 negatives at a distance of 20 sum to 0.1, where
    the paper's softmax sums to 1.
    """
    largest = (values * mask).amax(1, keepdim=True)
    weights = torch.exp((values - largest).masked_fill(mask == 0, -torch.inf))
    return weights / (weights.sum(1, keepdim=True) + 1e-6)


def centres(feats: Tensor, labels: Tensor) -> Tensor:
    """For each of feats (B, D), the mean of those of its person."""
    same = (labels[:, None] == labels).to(feats.dtype)
    return same @ feats / same.sum(1, keepdim=True)


def hetero_center_triplet(output: Output, feats: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Hetero-centre triplet (Liu et al., TMM 2020): `batch_hard_triplet` of the mean feature of each person
    in each modality. feats (B, D) and labels (B,) of all maps of an output.
    """
    sides, labels_of_sides = output.by_modality(feats), output.by_modality(labels)
    images = len(feats) // (output.copies * len(output.views))  # of one view; others' centres are the same
    means = [centres(side, labels_of_sides[modality])[:images] for modality, side in sides.items()]
    return batch_hard_triplet(torch.cat(means), labels[:images].repeat(len(means)), margin)


def centre_pairs(first: Mapping[str, Tensor], other: Mapping[str, Tensor], labels: Mapping[str, Tensor],
                 margin: float = 0.2) -> Tensor:
    """Centre-guided pair mining loss (DEEN, Zhang and Wang, CVPR 2023) between an image's map and another of
    its maps. first, other (B, D) and labels (B,) by modality.

    With the centres a (visible) and b (infrared) of a person's first maps, and a', b' of its others: b is to
    be nearer to a' than a is, than a' is to other persons' a', and than a to other persons' a, each by the
    margin; and the same with the modalities exchanged: three hinges as in the published code, where the
    paper has one.
    """
    own, copied = ({modality: centres(feats[modality], labels[modality]) for modality in MODALITIES}
                   for feats in (first, other))
    different = labels[VISIBLE][:, None] != labels[VISIBLE]
    hinges = []
    for modality, opposite in ((VISIBLE, INFRARED), (INFRARED, VISIBLE)):
        reach = (own[opposite] - copied[modality]).norm(dim=1)
        stays = F.relu(reach - (own[modality] - copied[modality]).norm(dim=1).detach() + margin)
        nearest = [euclidean_distances(each[modality]).masked_fill(~different, torch.inf).amin(1)
                   for each in (copied, own)]
        hinges.append((stays + 0.5 * sum(F.relu(reach - distance + margin) for distance in nearest)).mean())
    return sum(hinges) / 2


def discrepancy(one: Tensor, two: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples (N, D) and (M, D) with five Gaussian kernels, biased.

    Their widths are 1/4, 1/2, 1, 2 and 4 times the mean squared distance of two different rows, through which
    no gradient goes.
    """
    rows = torch.cat([one, two])
    squared = (rows[:, None] - rows[None, :]).square().sum(2)
    width = squared.detach().sum() / (len(rows) ** 2 - len(rows))
    kernels = sum(torch.exp(-squared / (width * factor)) for factor in (0.25, 0.5, 1, 2, 4))
    count = len(one)
    return (kernels[:count, :count].mean() + kernels[count:, count:].mean()
            - kernels[:count, count:].mean() - kernels[count:, :count].mean())


LOSSES: dict[str, Callable[..., Any]] = {
    "id": identity_loss,
    "triplet": of_parts(batch_hard_triplet),
    "weighted_triplet": of_parts(weighted_triplet),
    "squared_triplet": of_parts(squared_triplet),
    "similarity": similarity_loss,
    "hetero_center": hetero_center_loss,
    "part_id": part_identity_loss,
    "part_hetero_center": part_hetero_center_loss,
    "graph": BatchGraph,
    "centre_pairs": centre_pair_loss,
    "orthogonality": orthogonality_loss,
    "circle": circle_loss,
    "alignment": alignment_loss,
    "distillation": Distillation,
}
