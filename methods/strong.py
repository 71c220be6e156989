"""The `strong` baseline: the features of horizontal stripes beside that of the whole map."""
from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from backbones import Backbone
from two_stream import Output, TwoStream, pool


class Striped(TwoStream):
    """The part-based baseline of RLE (Tan et al., NeurIPS 2024): each part has a BNNeck and a classifier.

    As there, means over the map and over its stripes have one scale already: parts are not normalised.
    """

    def add_parts(self, backbone: Backbone, stripes: int = 3) -> None:
        """stripes: horizontal parts of the map that are pooled beside the whole, perhaps 0."""
        self.stripes = stripes

    def add_head(self, width: int, num_classes: int) -> None:
        """Make BNNeck and a classifier for the whole map and for each stripe."""
        super().add_head(width, num_classes, 1 + self.stripes)

    def embed(self, maps: Tensor) -> Output:
        """The last maps -> features of the whole and of each stripe side by side, and their logits."""
        parts = 1 + self.stripes
        feats = pool(maps, self.method.pooling, self.stripes)
        neck = self.bottleneck(feats)
        logits, *stripes = map(F.linear, neck.chunk(parts, 1), self.classifier.weight.chunk(parts))
        return Output(feats, neck, logits, tuple(stripes))
