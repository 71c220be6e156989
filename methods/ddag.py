"""DDAG: attention among the parts of an image, and a graph over the images of a batch (Ye et al., ECCV 2020).

The graph sees labels and only trains: it is a loss (loss.BatchGraph), not a layer.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import Backbone
from two_stream import Output, TwoStream, pool


class PartAttention(nn.Module):
    """Intra-modality weighted-part aggregation: attention among P horizontal stripes of the map is added to a
    feature (B, C), behind a BNNeck of its own.

    The paper relates the parts of all images of a modality; its code, as here, those of one image.
    """

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.gate = nn.Parameter(torch.full((parts,), 1 / parts))
        self.bottleneck = nn.BatchNorm1d(channels)
        self.bottleneck.bias.requires_grad_(False)
        nn.init.normal_(self.bottleneck.weight, 1.0, 0.01)

    def forward(self, maps: Tensor, neck: Tensor) -> Tensor:
        """maps (B, C, H, W) float32, the feature neck (B, C) -> (B, C)."""
        stripes = F.adaptive_avg_pool2d(maps, (len(self.gate), 1))
        queries, keys, values = (layer(stripes).squeeze(3) for layer in (self.query, self.key, self.value))
        attention = torch.softmax(queries.transpose(1, 2) @ keys, 2)  # (B, P, P)
        parts = values @ attention.transpose(1, 2)  # (B, C, P)
        return self.bottleneck(parts @ torch.softmax(self.gate, 0) + neck)


class DDAG(TwoStream):
    """`base` with the part feature, which has the classifier of the whole and is the one that is tested."""

    linear = False
    head = (*TwoStream.head, "wpa")

    def add_parts(self, backbone: Backbone, stripes: int = 3) -> None:
        """stripes: horizontal parts of the map among which there is attention."""
        self.wpa = PartAttention(backbone.width("layer4"), stripes)

    def embed(self, maps: Tensor) -> Output:
        """The last maps -> the pooled feature, the part feature, and the logits of both behind BNNeck."""
        feats = pool(maps, self.method.pooling)
        whole = self.bottleneck(feats)
        parts = self.wpa(maps, whole)
        return Output(feats, parts, self.classifier(whole), extras={"part_logits": [self.classifier(parts)]})
