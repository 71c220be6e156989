"""Evidence for the similarity of two images: what each of their places says for it and against it.

A similarity of two features is a sum over channels, and a feature after mean pooling is a mean over the
places of the last map. Both sums can be exchanged: the similarity is exactly the mean over places of
(feature of the place) . (feature of the other image) / (both lengths), a map on either image (as for class
activation maps, Zhou et al., CVPR 2016). For GeM pooling the same formula takes gradient times activation, a
first-order approximation of what a place does to the similarity.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data_loader import normalise
from datasets.images import read_batches
from datasets.types import ImageSpec
from devices import precision
from two_stream import TwoStream, folded

PAIRS = 128  # at once: 200 MB of maps of ResNet-50
BATCH = 32  # images, and pairs, in one pass


@dataclass(frozen=True)
class Evidence:
    """A pair of images with its similarity and the evidence map on either (rows, columns) float32.

    exact: the mean of either map is the similarity, and each place's value its share of it; else the maps are
    approximate.
    """

    paths: tuple[str, str]
    similarity: float
    maps: tuple[np.ndarray, np.ndarray]
    exact: bool

    @property
    def name(self) -> str:
        """What the maps are, in words."""
        return "evidence" if self.exact else "approximate evidence (gradient times activation)"


def find_evidence(net: TwoStream, paths: tuple[str, str], modalities: tuple[str, str], spec: ImageSpec,
                  kind: str = "bnneck") -> Evidence:
    """The evidence of two image files."""
    return next(find_all(net, [paths], modalities, spec, kind))


def find_all(net: TwoStream, pairs: Sequence[tuple[str, str]], modalities: tuple[str, str], spec: ImageSpec,
             kind: str = "bnneck", bf16: bool = False, workers: int = 4) -> Iterator[Evidence]:
    """The evidence of pairs of image files; of pairs that are near each other, each image is embedded once.

    kind: the feature; BNNeck's stands for the sum of both. bf16: compute the last maps in bfloat16, to look
    at. Raises `UserError` naming an image that cannot be read.
    """
    net, exact = folded(net), net.linear and net.method.pooling == "average"
    for start in range(0, len(pairs), PAIRS):
        some = pairs[start:start + PAIRS]
        sides = []
        for modality, paths in zip(modalities, zip(*some)):
            distinct = list(dict.fromkeys(paths))
            found = torch.cat([last_maps(net, images, modality, bf16)
                               for images in read_batches(distinct, spec, BATCH, workers)])
            sides.append(found[[distinct.index(path) for path in paths]].split(BATCH))
        maps = [batch for x, y in zip(*sides) for batch in zip(*pair_maps(net, x, y, kind))]
        for paths, (own, other) in zip(some, maps):
            yield Evidence(paths, float(own.mean(dtype=np.float64)), (own, other), exact)


@torch.no_grad()
def last_maps(net: TwoStream, images: np.ndarray, modality: str, bf16: bool = False) -> Tensor:
    """The last maps (B, copies, D, rows, columns) of images (B, height, width, 3) uint8 of one modality.

    copies: 1, but for a network that gives several maps of an image.
    """
    pixels = normalise(torch.from_numpy(images).to(next(net.parameters()).device))
    with precision(pixels.device, bf16):
        maps = net.feature_maps({modality: pixels})[0].float()
    return maps.unflatten(0, (-1, len(images))).transpose(0, 1)


def pair_maps(net: TwoStream, x: Tensor, y: Tensor, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The evidence maps (P, rows, columns) on both images of pairs.

    x, y: their last maps (P, copies, D, rows, columns).
    """
    with torch.no_grad():
        units = [F.normalize(feature(net, each, kind)) for each in (x, y)]
    return evidence_maps(net, x, units[1], kind), evidence_maps(net, y, units[0], kind)


def feature(net: TwoStream, x: Tensor, kind: str) -> Tensor:
    """The features (P, D') of images' last maps (P, copies, D, rows, columns), not normalised."""
    output = net.embed(x.transpose(0, 1).flatten(0, 1))
    return output.feats if kind == "pool" else output.neck


@torch.enable_grad()
def evidence_maps(net: TwoStream, x: Tensor, others: Tensor, kind: str) -> np.ndarray:
    """The maps (P, rows, columns) on images, of their last maps x (P, copies, D, rows, columns).

    others: the unit features (P, D') of the other images. Activation times the gradient of the similarity,
    the length of the own feature held fast; what that leaves, such as the shift of BNNeck, is spread over all
    places.
    """
    x = x.detach().requires_grad_()
    found = feature(net, x, kind)
    similarity = (found * others).sum(1) / found.detach().norm(dim=1)
    (gradient,) = torch.autograd.grad(similarity.sum(), x)
    shares = (x * gradient).sum((1, 2))
    rest = similarity - shares.sum((1, 2))
    return (shares * shares[0].numel() + rest[:, None, None]).detach().cpu().numpy()
