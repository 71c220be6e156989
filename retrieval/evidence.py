"""Evidence for the similarity of two images: what each of their places says for it and against it.

A similarity of two features is a sum over channels, and a feature after mean pooling is a mean over the
places of the last map. Both sums can be exchanged: the similarity is exactly the mean over places of
(feature of the place) . (feature of the other image) / (both lengths), a map on either image (as for class
activation maps, Zhou et al., CVPR 2016). For GeM pooling the same formula takes gradient times activation, a
first-order approximation of what a place does to the similarity.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data_loader import normalise
from datasets.images import read_image
from datasets.types import ImageSpec
from two_stream import TwoStream


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


def find_evidence(net: TwoStream, paths: tuple[str, str], modalities: tuple[str, str],
                  spec: ImageSpec, kind: str = "bnneck") -> Evidence:
    """The evidence of two image files; the network is put into eval mode."""
    return find_evidence_of_all(net, paths[0], paths[1:], modalities, spec, kind)[0]


def find_evidence_of_all(net: TwoStream, first: str, others: Sequence[str], modalities: tuple[str, str],
                         spec: ImageSpec, kind: str = "bnneck") -> list[Evidence]:
    """The evidence of an image file with each of others, which pass through the network as one batch."""
    device = next(net.parameters()).device
    pixels = [np.stack([read_image(path, spec) for path in paths]) for paths in ((first,), others)]
    (own,), found = (last_maps(net, normalise(torch.from_numpy(images).to(device)), modality)
                     for images, modality in zip(pixels, modalities))
    pairs = [pair_maps(net, own, x, kind) for x in found]
    exact = net.linear and net.method.pooling == "average"
    return [Evidence((first, other), float(maps[0].mean(dtype=np.float64)), maps, exact)
            for other, maps in zip(others, pairs)]


def evidence_maps(net: TwoStream, first: Tensor, second: Tensor, modalities: tuple[str, str],
                  kind: str = "bnneck") -> tuple[np.ndarray, np.ndarray]:
    """The evidence maps (rows, columns) float32 of two normalised images (3, height, width), one on either.

    kind: the feature, one of FEATURES. The network is put into eval mode.
    """
    maps = [last_maps(net, image.reshape(1, *image.shape[-3:]), modality)[0]
            for modality, image in zip(modalities, (first, second))]
    return pair_maps(net, *maps, kind)


@torch.no_grad()
def last_maps(net: TwoStream, images: Tensor, modality: str) -> Tensor:
    """The last maps (B, copies, D, rows, columns) of normalised images (B, 3, height, width) of one modality.

    copies: 1, but for a network that gives several maps of an image.
    """
    maps = net.eval().feature_maps({modality: images})[0].float()
    return maps.unflatten(0, (-1, len(images))).transpose(0, 1)


def pair_maps(net: TwoStream, x: Tensor, y: Tensor, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The evidence maps (rows, columns) on two images, of their last maps (copies, D, rows, columns)."""
    with torch.no_grad():
        units = [F.normalize(feature(net, each, kind)) for each in (x, y)]
    return evidence_map(net, x, units[1], kind), evidence_map(net, y, units[0], kind)


def feature(net: TwoStream, x: Tensor, kind: str) -> Tensor:
    """The feature (1, D') of an image's last maps (copies, D, rows, columns), not normalised."""
    output = net.embed(x)
    return output.neck if kind == "bnneck" else output.feats


@torch.enable_grad()
def evidence_map(net: TwoStream, x: Tensor, other: Tensor, kind: str) -> np.ndarray:
    """The map on one image: its last maps x (copies, D, rows, columns), the other's unit feature (1, D').

    Activation times the gradient of the similarity, the length of the own feature held fast; what that
    leaves, such as the shift of BNNeck, is spread over all places.
    """
    x = x.detach().requires_grad_()
    found = feature(net, x, kind)
    similarity = (found * other).sum() / found.detach().norm()
    (gradient,) = torch.autograd.grad(similarity, x)
    shares = (x * gradient).sum((0, 1))
    return (shares * shares.numel() + similarity - shares.sum()).detach().cpu().numpy()
