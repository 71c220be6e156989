"""HCT: six stripes, each with a small feature, and triplets of centres (Liu et al., TMM 2020)."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import Backbone
from two_stream import Output, TwoStream, pool


class HCT(TwoStream):
    """Each stripe has a small feature and a classifier; both features are the stripes' side by side."""

    linear = False
    head = ("local", "classifier")

    def add_parts(self, backbone: Backbone, stripes: int = 6, width: int = 256, power: float = 3.0) -> None:
        """stripes of the map; width of each one's feature; power of the generalised mean (RegDB's is 10)."""
        self.stripes, self.width, self.power = stripes, width, power

    def add_head(self, width: int, num_classes: int) -> None:
        """Make a layer and a classifier for each stripe."""
        self.dim = self.stripes * self.width
        self.local = nn.ModuleList(nn.Sequential(nn.Linear(width, self.width), nn.BatchNorm1d(self.width),
                                                 nn.ReLU()) for _ in range(self.stripes))
        for layer, _, _ in self.local:
            nn.init.kaiming_normal_(layer.weight)
        self.classifier = nn.Linear(self.width, self.stripes * num_classes)
        nn.init.normal_(self.classifier.weight, 0, 0.001)
        nn.init.zeros_(self.classifier.bias)

    def embed(self, maps: Tensor) -> Output:
        """The last maps -> features side by side, the sum of the stripes' logits, and those of each."""
        _, *stripes = pool(maps, self.method.pooling, self.stripes, self.power).chunk(1 + self.stripes, 1)
        parts = [layer(stripe) for layer, stripe in zip(self.local, stripes)]
        layer = self.classifier
        logits = list(map(F.linear, parts, layer.weight.chunk(self.stripes), layer.bias.chunk(self.stripes)))
        feats = torch.cat(parts, 1)
        return Output(feats, feats, sum(logits), extras={"part_feats": parts, "part_logits": logits})
