"""The `strong` baseline: the features of horizontal stripes beside that of the whole map."""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones import Backbone
from two_stream import Output, TwoStream


class Striped(TwoStream):
    """The part-based baseline of RLE (Tan et al., NeurIPS 2024): each part has a BNNeck and a classifier."""

    def add_parts(self, backbone: Backbone, stripes: int = 3) -> None:
        """stripes: horizontal parts of the map that are pooled beside the whole, perhaps 0."""
        self.stripes = stripes

    def add_head(self, width: int, num_classes: int, parts: int = 1) -> None:
        """Make BNNeck and a classifier for the whole map and for each stripe."""
        super().add_head(width, num_classes, 1 + self.stripes)

    def embed(self, maps: Tensor) -> Output:
        """The last maps -> features of the whole and of each stripe side by side, and their logits."""
        parts = 1 + self.stripes
        feats = pool_stripes(maps, self.method.pooling, self.stripes)
        neck = self.bottleneck(feats)
        logits, *stripes = (F.linear(*part) for part in zip(neck.chunk(parts, 1),
                                                            self.classifier.weight.chunk(parts)))
        return Output(feats, neck, logits, tuple(stripes))


def pool_stripes(x: Tensor, kind: str, stripes: int, power: float = 3.0) -> Tensor:
    """(B, C, H, W) float32 -> (B, (1 + stripes) C): `pool` of the whole map, then of each of its horizontal
    stripes from the top.

    As in RLE, parts are not normalised one by one: means over a map and over its stripes have one scale
    already. Stripes overlap by a row where they do not divide the map.
    """
    powers = x if kind == "average" else x.pow(power)
    means = powers.mean((2, 3))
    if stripes:
        rows = F.adaptive_avg_pool2d(powers, (stripes, 1)).squeeze(3)  # (B, C, stripes)
        means = torch.cat([means, rows.transpose(1, 2).flatten(1)], 1)
    return means if kind == "average" else (means + 1e-12).pow(1 / power)
